"""Forms with files: the same however they are cut into pieces, and refused where they are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from headrace.gateway.disconnect import ClientGone
from headrace.gateway.multipart import MAX_FIELD_BYTES, MAX_FIELDS, MAX_FILES, Form, read_form
from headrace.protocol.errors import BodyTooLarge, HeadraceError, InvalidField, MalformedBody

HEADERS = {"content-type": 'multipart/form-data; boundary="b"'}


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    said = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        said += f'; filename="{filename}"\r\nContent-Type: text/plain'
    return b"--b\r\n" + said.encode() + b"\r\n\r\n" + value + b"\r\n"


WHOLE = (
    part("model", "größer".encode())
    + part("file", b"one\r\n--bold\r\n", "ä.txt")
    + part("file", b"", "two")
    + b"--b--\r\n"
)


def receiving(pieces: Iterator[bytes], gone: bool = False) -> object:
    sent = list(pieces)

    async def receive() -> Message:
        if not sent:
            return {"type": "http.disconnect"}
        piece = sent.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(sent) or gone}

    return receive


def left(folder: Path) -> list[str]:
    return os.listdir(folder)


async def read(folder: Path, body: bytes, size: int = 10**9, limit: int = 10**6) -> Form:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    async with read_form(HEADERS, receiving(pieces), folder, limit) as form:  # type: ignore[arg-type]
        for upload in form.uploads:
            upload.content_type += "|" + upload.path.read_bytes().decode()
        return form


@settings(max_examples=30)
@given(size=st.integers(1, len(WHOLE)))
async def test_any_split_of_a_form_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    folder = tmp_path_factory.mktemp("form")
    form = await read(folder, WHOLE, size)
    assert form.fields == [("model", "größer")]
    assert [(one.name, one.filename, one.size) for one in form.uploads] == [
        ("file", "ä.txt", 13),
        ("file", "two", 0),
    ]
    assert form.uploads[0].content_type == "text/plain|one\r\n--bold\r\n"
    assert left(folder) == []


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (WHOLE[:-9], MalformedBody),
        (b"nothing of the kind", MalformedBody),
        (part("", b"x") + b"--b--\r\n", MalformedBody),
        (part("a", b"x") * (MAX_FIELDS + 1), MalformedBody),
        (part("a", b"x", "f") * (MAX_FILES + 1), MalformedBody),
        (part("a", b"x" * (MAX_FIELD_BYTES + 1)), InvalidField),
        (part("a", b"\xff") + b"--b--\r\n", InvalidField),
        (part("a", b"x" * 10**6, "f"), BodyTooLarge),
    ],
)
async def test_a_form_that_is_not_in_order_is_refused_and_leaves_nothing(
    tmp_path: Path, body: bytes, error: type[HeadraceError]
) -> None:
    with pytest.raises(error):
        await read(tmp_path, body, size=1000)
    assert left(tmp_path) == []


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ClientGone):
        async with read_form(
            HEADERS,
            receiving(iter([WHOLE[:100]]), gone=True),  # type: ignore[arg-type]
            tmp_path,
            10**6,
        ):
            pass
    assert left(tmp_path) == []
