"""The page's files, read once at start: a request never touches the disk, and no path a
client sends is ever joined to a directory."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_IMPORT_MAP = re.compile(rb'<script type="importmap">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True, slots=True)
class File:
    """One file as it is served."""

    body: bytes
    media_type: str
    etag: str


def read_all(directory: Path = STATIC) -> dict[str, File]:
    """Every servable file below `directory`, by its path with `/` between parts."""
    return {
        path.relative_to(directory).as_posix(): _read(path)
        for path in sorted(directory.rglob("*"))
        if path.suffix in TYPES and path.is_file()
    }


def content_security_policy(page: bytes) -> str:
    """The policy for `page`: our own files, and its one inline import map by its hash."""
    found = _IMPORT_MAP.search(page)
    digest = base64.b64encode(hashlib.sha256(found.group(1)).digest()).decode() if found else ""
    script = f"'self' 'sha256-{digest}'" if digest else "'self'"
    return (
        f"default-src 'none'; script-src {script}; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _read(path: Path) -> File:
    body = path.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    return File(body, TYPES[path.suffix], etag)
