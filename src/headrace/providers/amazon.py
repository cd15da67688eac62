"""Amazon's signature and event stream: what Bedrock's HTTP has beside JSON.

Source: AWS Signature Version 4 (the canonical request and its signing key), and the specification
of `application/vnd.amazon.eventstream`: a prelude of two lengths and its CRC-32, headers, a
payload, and the CRC-32 of it all. Tested against botocore's own.
"""

from __future__ import annotations

import hmac
import struct
from binascii import crc32
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import quote, urlsplit

from headrace.protocol.errors import UpstreamError
from headrace.providers.upstream import Exchange

CONTENT_TYPE = "application/vnd.amazon.eventstream"
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

_PRELUDE = struct.Struct(">III")
_CHECK = struct.Struct(">I")
_STRING, _BYTES = 7, 6  # header types whose value has a length of two bytes
_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}  # of the others, in bytes


class Signer:
    """Signs requests to `service` in `region`. `clock` gives Unix seconds."""

    def __init__(
        self,
        access_key: str,
        secret: str,
        token: str | None,
        region: str,
        service: str,
        clock: Callable[[], float],
    ) -> None:
        self._access_key = access_key
        self._secret = secret
        self._token = token
        self._region = region
        self._service = service
        self._clock = clock

    def __call__(self, address: str, exchange: Exchange) -> Mapping[str, str]:
        """The headers that sign a POST of `exchange` at `address`."""
        url = urlsplit(address + exchange.path)
        now = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {"content-type": "application/json", "host": url.netloc, "x-amz-date": now}
        if self._token is not None:
            headers["x-amz-security-token"] = self._token
        names = ";".join(sorted(headers))
        canonical = "\n".join(
            [
                "POST",
                quote(url.path, safe="/-_.~"),  # what is encoded in the path is encoded again
                url.query,
                *(f"{name}:{headers[name]}" for name in sorted(headers)),
                "",
                names,
                sha256(exchange.body).hexdigest(),
            ]
        )
        scope = f"{now[:8]}/{self._region}/{self._service}/aws4_request"
        digest = sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}"
        key = f"AWS4{self._secret}".encode()
        for part in scope.split("/"):
            key = _mac(key, part)
        signature = _mac(key, text).hex()
        credential = f"Credential={self._access_key}/{scope}"
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
        )
        del headers["host"], headers["content-type"]  # which every request has
        return headers


def _mac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), sha256).digest()


class EventStreamDecoder:
    """Turns a byte stream, cut anywhere, into (headers, payload) pairs.

    Raises UpstreamError where a message is too large or not what its checksums say.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> Iterator[tuple[dict[str, str], bytes]]:
        """The messages that `chunk` completes."""
        self._buffer += chunk
        while len(self._buffer) >= _PRELUDE.size:
            total, headers, check = _PRELUDE.unpack_from(self._buffer)
            if crc32(self._buffer[:8]) != check or not 16 + headers <= total <= MAX_MESSAGE_BYTES:
                raise _malformed()
            if len(self._buffer) < total:
                return
            message = bytes(self._buffer[:total])
            del self._buffer[:total]
            if crc32(message[:-4]) != _CHECK.unpack(message[-4:])[0]:
                raise _malformed()
            start = _PRELUDE.size
            try:
                named = dict(_headers(message[start : start + headers]))
            except (IndexError, struct.error, UnicodeDecodeError, KeyError):
                raise _malformed() from None
            yield named, message[start + headers : -4]

    @property
    def partial(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._buffer)


def _headers(data: bytes) -> Iterator[tuple[str, str]]:
    """The headers whose values are strings."""
    at = 0
    while at < len(data):
        length = data[at]
        name = data[at + 1 : at + 1 + length].decode()
        at += 1 + length
        kind = data[at]
        at += 1
        if kind in (_STRING, _BYTES):
            (size,) = struct.unpack_from(">H", data, at)
            at += 2
        else:
            size = _SIZES[kind]
        if kind == _STRING:
            yield name, data[at : at + size].decode()
        at += size


def _malformed() -> UpstreamError:
    return UpstreamError("The upstream sent a malformed event stream.")
