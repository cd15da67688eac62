"""One file over HTTP: resumed by Range, verified by SHA-256, tried again when the line breaks.

What has arrived lies in a `.part` file beside a `.validator` file (the ETag it came with), so a
pull that was killed goes on where it stopped. RFC 9110: a Range is sent with If-Range, so a
file that changed meanwhile, or a server that knows no ranges, gives a 200 and a fresh start.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from headrace.registry.errors import (
    ChecksumMismatch,
    NoRoom,
    SourceRefused,
    SourceUnreachable,
)
from headrace.registry.progress import Progress

CHUNK = 1 << 18  # bytes read at once
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row without a byte gained
LONGEST_WAIT = 30.0  # seconds between two attempts, whatever the server asks for
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Remote:
    """A file at a source. `sha256` (hex) and `size` (bytes) where they are known."""

    url: str
    name: str  # as the user is told
    sha256: str | None = None
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but carries no credentials to another host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            following.remove_header("Authorization")
        return following


_OPENER = urllib.request.build_opener(_Redirects())  # proxies as the environment says


def get(url: str, headers: Mapping[str, str]) -> Any:
    """Open `url`; the caller closes it. Raises SourceRefused or an OSError that may pass."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise SourceUnreachable(f"{url} is neither http nor https.")
    request = urllib.request.Request(url, headers={"User-Agent": "headrace", **headers})
    try:
        return _OPENER.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _TRANSIENT or error.code == 416:
            raise
        raise SourceRefused(
            f"{urlsplit(url).netloc} answered {error.code} ({error.reason}) for {url}.", error.code
        ) from None


def fetch(
    remote: Remote, part: Path, progress: Progress, sleep: Callable[[float], None] = time.sleep
) -> str:
    """Bring the bytes of `remote` into `part`, whose parent exists; returns their SHA-256 (hex).

    Raises SourceRefused, SourceUnreachable, ChecksumMismatch or NoRoom. What has arrived stays
    for the next try, except after ChecksumMismatch.
    """
    resumed = part.exists()
    _transfer_stubbornly(remote, part, progress, sleep)
    found = digest(part)
    if remote.sha256 is None or found == remote.sha256:
        return found
    part.unlink()
    _validator(part).unlink(missing_ok=True)
    if not resumed:
        raise ChecksumMismatch(remote.name, remote.sha256, found)
    return fetch(remote, part, progress, sleep)  # the old part was bad: once more, from nothing


def digest(path: Path) -> str:
    """The SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def need_room(directory: Path, size: int) -> None:
    """Raise NoRoom unless `directory` can take `size` more bytes."""
    free = shutil.disk_usage(directory).free
    if free < size:
        raise NoRoom(
            f"{directory} has {free / 1e6:.0f} MB free and {size / 1e6:.0f} MB are needed. "
            "Make room, or set HEADRACE_HOME to a larger disk."
        )


def _transfer_stubbornly(
    remote: Remote, part: Path, progress: Progress, sleep: Callable[[float], None]
) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(remote, part, progress)
            return
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise NoRoom(
                    f"The disk is full ({part.parent}). Make room and pull again."
                ) from None
            failures = 1 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise SourceUnreachable(
                    f"Cannot download {remote.name} from {urlsplit(remote.url).netloc}: "
                    f"{reason(error)}. Pull again to go on from {_size(part) / 1e6:.0f} MB."
                ) from None
            sleep(_pause(error, failures))


def _transfer(remote: Remote, part: Path, progress: Progress) -> None:
    """One request: append to `part` what is missing, or write it anew."""
    have = _size(part)
    if remote.size is not None and have == remote.size:
        progress.total(remote.size, have)
        return
    headers = {"Accept-Encoding": "identity", **remote.headers}
    mark = _validator(part).read_text() if have and _validator(part).exists() else None
    if have and (mark or remote.sha256):
        headers["Range"] = f"bytes={have}-"
        if mark:
            headers["If-Range"] = mark
    try:
        response = get(remote.url, headers)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") != f"bytes */{have}":
            part.unlink()  # longer than the file: not its beginning
            raise
        return  # all of it was there already
    with response:
        start = _start(response.status, response.headers, have)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else remote.size
        need_room(part.parent, (total or 0) - start)
        _remember(part, response.headers)
        progress.total(total, start)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            while block := response.read(CHUNK):
                file.write(block)
                progress.advance(len(block))
            file.flush()
            os.fsync(file.fileno())
        if total is not None and _size(part) < total:
            raise ConnectionResetError("the connection was cut")


def _start(status: int, headers: Message, have: int) -> int:
    """The offset at which the body of this response begins."""
    if status == 206 and str(headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
        return have
    if status == 206:
        raise HTTPException(f"asked for bytes from {have}, got {headers.get('Content-Range')}")
    return 0


def _remember(part: Path, headers: Message) -> None:
    etag = str(headers.get("ETag", ""))
    if etag and not etag.startswith("W/"):  # If-Range takes strong validators only
        _validator(part).write_text(etag)
    else:
        _validator(part).unlink(missing_ok=True)


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _pause(error: Exception, failures: int) -> float:
    """Seconds to wait: as the server asks, else doubling from half a second."""
    if isinstance(error, urllib.error.HTTPError):
        asked = str(error.headers.get("Retry-After", ""))
        if asked.isdigit():
            return min(float(asked), LONGEST_WAIT)
    return min(0.5 * 2.0 ** (failures - 1), LONGEST_WAIT)


def reason(error: Exception) -> str:
    """An error of the network in words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(inner) or type(inner).__name__
