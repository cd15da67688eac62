from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.observability.journal import (
    HEADER,
    MAGIC,
    Journal,
    JournalRefused,
    Segment,
    header,
    scan,
)

ENTRIES = [b"first", b"second entry", b"", b"the fourth " * 20]


def framed(entries: list[bytes]) -> bytes:
    return b"".join(header(entry) + entry for entry in entries)


def opened(directory: Path, **limits: int) -> Journal:
    sizes = {"segment_bytes": 1000, "max_bytes": 100_000} | limits
    return Journal(directory, **sizes)


def entries_of(segment: Segment) -> tuple[list[bytes], int]:
    entries: list[bytes] = []
    corrupt = 0
    while not segment.stored:
        found = segment.read(2)
        entries += found.entries
        corrupt += found.corrupt
        segment.moved += found.consumed
    return entries, corrupt


def test_an_entry_torn_at_any_byte_loses_only_itself() -> None:
    whole = framed(ENTRIES)
    last = len(framed(ENTRIES[:-1]))
    for cut in range(last, len(whole)):
        found = scan(whole[:cut], final=True, limit=100)
        assert found.entries == ENTRIES[:-1]
        assert found.consumed == cut
        assert found.corrupt == 0


def test_an_entry_that_is_still_being_read_waits_for_the_rest() -> None:
    whole = framed(ENTRIES)
    last = len(framed(ENTRIES[:-1]))
    for cut in range(last, len(whole)):
        found = scan(whole[:cut], final=False, limit=100)
        assert (found.entries, found.consumed, found.corrupt) == (ENTRIES[:-1], last, 0)


def test_one_damaged_byte_anywhere_in_the_middle_costs_one_entry() -> None:
    whole = framed(ENTRIES)
    start, end = len(framed(ENTRIES[:1])), len(framed(ENTRIES[:2]))
    for position in range(start, end):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        found = scan(bytes(damaged), final=True, limit=100)
        assert found.entries == [ENTRIES[0], *ENTRIES[2:]], position
        assert found.corrupt == 1


def test_garbage_between_frames_is_skipped_even_where_it_looks_like_a_frame() -> None:
    garbage = b"noise " + HEADER.pack(MAGIC, 4, 0) + b"more"
    found = scan(framed([b"a"]) + garbage + framed([b"b"]), final=True, limit=100)
    assert (found.entries, found.corrupt) == ([b"a", b"b"], 1)


@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(1, 7), st.integers(1, 400))
def test_reading_in_pieces_gives_every_entry_once(
    entries: list[bytes], limit: int, window: int
) -> None:
    data = framed(entries)
    seen: list[bytes] = []
    position, size = 0, window
    while position < len(data):
        piece = data[position : position + size]
        found = scan(piece, final=position + size >= len(data), limit=limit)
        assert found.corrupt == 0
        seen += found.entries
        position += found.consumed
        size = window if found.consumed else size * 2
    assert seen == entries


@given(st.binary(max_size=300), st.integers(1, 5))
def test_no_bytes_make_the_reader_fail_or_stall(data: bytes, limit: int) -> None:
    position = 0
    while position < len(data):
        found = scan(data[position:], final=True, limit=limit)
        assert found.consumed > 0
        position += found.consumed


def test_entries_larger_than_the_read_window_come_back_whole(tmp_path: Path) -> None:
    large = b"x" * (3 * 1024 * 1024)
    journal = opened(tmp_path, max_bytes=10_000_000)
    for entry in (b"small", large, b"after"):
        journal.append(entry)
    read = [entry for segment in journal.segments() for entry in entries_of(segment)[0]]
    assert read == [b"small", large, b"after"]
    journal.close()


def test_a_full_journal_refuses_until_a_stored_segment_is_deleted(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_bytes=100, max_bytes=300)
    for _ in range(4):
        journal.append(b"y" * 50)
    with pytest.raises(JournalRefused, match="maximum of 300 bytes"):
        journal.append(b"y" * 50)
    oldest = journal.segments()[0]
    entries_of(oldest)
    assert oldest.sealed
    journal.retire(oldest)
    journal.append(b"y" * 50)
    journal.close()


def test_segments_of_a_living_journal_are_left_alone_and_of_a_closed_one_adopted(
    tmp_path: Path,
) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    first.append(b"mine")
    second.adopt()
    assert second.segments() == []
    first.close()  # not stored, so the file stays
    second.adopt()
    (segment,) = second.segments()
    assert entries_of(segment) == ([b"mine"], 0)
    second.retire(segment)
    assert list(tmp_path.iterdir()) == []
    second.close()


def test_a_closed_journal_refuses_entries(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.close()
    with pytest.raises(JournalRefused):
        journal.append(b"late")
