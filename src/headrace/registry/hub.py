"""Models of a model hub: its HTTP interface for listings and files.

`HF_ENDPOINT` names another hub or a mirror, `HF_TOKEN` a token, as the hub's own tools read them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from headrace.registry.download import Remote, digest, fetch, get, reason
from headrace.registry.errors import ModelMissing, SourceRefused, SourceUnreachable
from headrace.registry.progress import Progress
from headrace.registry.references import HubReference

PUBLIC = "https://huggingface.co"
_TEXT = frozenset({".json", ".jinja", ".txt", ".model"})
_TEXT_LIMIT = 64 << 20  # bytes; larger than any tokenizer
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # as PEFT writes it


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    files: tuple[Remote, ...]


def listing(reference: HubReference) -> Listing:
    """The files that `reference` means. Raises ModelMissing, SourceRefused, SourceUnreachable."""
    endpoint = (os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    repository = quote(reference.repository)
    body = _json(f"{endpoint}/api/models/{repository}?blobs=true", reference, headers)
    try:
        commit = str(body["sha"])
        entries = {str(e["rfilename"]): e for e in body["siblings"]}
    except (KeyError, TypeError):
        raise SourceUnreachable(f"{endpoint} gave no listing of {reference.repository}.") from None
    names = _wanted(reference, entries)
    files = []
    for name in names:
        lfs = entries[name].get("lfs") or {}
        url = f"{endpoint}/{repository}/resolve/{quote(commit)}/{quote(name)}"
        size = entries[name].get("size")
        files.append(Remote(url, name, lfs.get("sha256"), size, headers))
    return Listing(commit, tuple(files))


def download(found: Listing, folder: Path, progress: Progress) -> dict[str, str]:
    """Bring all files into `folder`; returns SHA-256 (hex) by path. Whole files are kept."""
    digests = {}
    for number, remote in enumerate(found.files, 1):
        progress.stage(f"downloading {remote.name} ({number} of {len(found.files)})")
        path = folder / remote.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():  # put there whole by a pull that was cut later
            digests[remote.name] = digest(path)
            continue
        part = path.with_name(path.name + ".part")
        digests[remote.name] = fetch(remote, part, progress)
        part.rename(path)
        part.with_name(part.name + ".validator").unlink(missing_ok=True)
    return digests


def _json(url: str, reference: HubReference, headers: Mapping[str, str]) -> dict[str, Any]:
    try:
        with get(url, headers) as response:
            body = json.load(response)
    except SourceRefused as error:
        if error.status in {401, 403, 404}:
            raise ModelMissing(
                f"The hub has no '{reference.repository}' that you may read. Check the name; "
                "for a private or gated model set HF_TOKEN."
            ) from None
        raise
    except (OSError, HTTPException) as error:
        raise SourceUnreachable(
            f"Cannot reach the model hub ({url}): {reason(error)}. "
            "Set HF_ENDPOINT for a mirror, or give a path."
        ) from None
    except ValueError:
        raise SourceUnreachable(f"{url} did not answer with JSON.") from None
    return body if isinstance(body, dict) else {}


def _wanted(reference: HubReference, entries: Mapping[str, dict[str, Any]]) -> list[str]:
    """The names to fetch: the one asked for, or what a model's or an adapter's directory needs."""
    if reference.file is not None:
        if reference.file not in entries:
            several = ", ".join(n for n in entries if n.endswith((".gguf", ".safetensors")))
            raise ModelMissing(
                f"{reference.repository} has no file '{reference.file}'. It has: {several}."
            )
        return [reference.file]
    names = [n for n in entries if _safe(n) and _belongs(n, entries[n].get("size"))]
    if "config.json" in names and any(n.endswith(".safetensors") for n in names):
        return names
    if all(name in entries for name in _ADAPTER):
        return list(_ADAPTER)
    ggufs = [f"hf:{reference.repository}:{n}" for n in entries if n.endswith(".gguf")]
    hint = f" Name one file: {', '.join(ggufs)}." if ggufs else ""
    raise ModelMissing(
        f"{reference.repository} has neither config.json with safetensors nor {_ADAPTER[0]} with "
        f"{_ADAPTER[1]}.{hint}"
    )


def _belongs(name: str, size: object) -> bool:
    path = PurePosixPath(name)
    if path.suffix == ".safetensors":
        return "/" not in name
    small = not isinstance(size, int) or size <= _TEXT_LIMIT
    return path.suffix in _TEXT and small and len(path.parts) <= 2


def _safe(name: str) -> bool:
    parts = name.split("/")
    return not (name.startswith("/") or "\\" in name or {"..", ".", ""} & set(parts))
