"""A file server on loopback that behaves, or misbehaves, as a download's source can."""

from __future__ import annotations

import hashlib
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Source:
    """What is served, and how. Paths begin with a slash."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)  # close after so many bytes, once each
    statuses: list[int] = field(default_factory=list)  # answer so first, once each
    forbidden: set[str] = field(default_factory=set)  # paths that answer 401 without a token
    redirects: dict[str, str] = field(default_factory=dict)
    gate: threading.Event | None = None  # bodies wait for it after their first half
    half_sent: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def asked_ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [headers.get("range") for _, headers in self.requests]


@contextmanager
def serving(source: Source) -> Iterator[Source]:
    """Serve `source` on a free port of the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(source))
    server.daemon_threads = True
    source.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield source
    finally:
        if source.gate is not None:
            source.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(source: Source) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            source.requests.append((path, headers))
            if source.statuses:
                self._refuse(source.statuses.pop(0))
            elif path in source.redirects:
                self.send_response(302)
                self.send_header("Location", source.redirects[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif path in source.forbidden and "authorization" not in headers:
                self._refuse(401)
            elif path not in source.files:
                self._refuse(404)
            else:
                self._send(source.files[path], headers)

        def _refuse(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, body: bytes, headers: dict[str, str]) -> None:
            start = self._start(headers)
            if start > len(body) or (start and start == len(body)):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            page = self.path.endswith("/")
            self.send_header("Content-Type", "text/html" if page else "application/octet-stream")
            if source.etag:
                self.send_header("ETag", source.etag)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self._write(body[start:])

        def _start(self, headers: dict[str, str]) -> int:
            found = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
            condition = headers.get("if-range")
            if not source.ranges or not found or condition not in (None, source.etag):
                return 0
            return int(found.group(1))

        def _write(self, body: bytes) -> None:
            if source.cuts:
                body = body[: source.cuts.pop(0)]
                self.close_connection = True
            half = len(body) // 2
            self.wfile.write(body[:half])
            if source.gate is not None:
                self.wfile.flush()
                source.half_sent.set()
                source.gate.wait(30)
            self.wfile.write(body[half:])

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    return Handler


def wheel(path: Path, members: dict[str, bytes], name: str = "tiny-model") -> Path:
    """A wheel of version 1.0 in the folder `path` that holds `members`."""
    module = name.replace("-", "_")
    file = path / f"{module}-1.0-py3-none-any.whl"
    info = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return file


def offer(source: Source, file: Path, name: str = "tiny-model") -> None:
    """Put a wheel on `source` as a package index does."""
    body = file.read_bytes()
    digest = hashlib.sha256(body).hexdigest()
    source.files[f"/files/{file.name}"] = body
    link = f'<a href="/files/{file.name}#sha256={digest}">{file.name}</a>'
    source.files[f"/simple/{name}/"] = f"<!doctype html><body>{link}</body>".encode()
