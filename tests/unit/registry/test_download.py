"""A download goes on where it stopped, and keeps only what was promised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.registry.download import ATTEMPTS, Remote, fetch
from headrace.registry.errors import ChecksumMismatch, SourceRefused, SourceUnreachable
from headrace.registry.progress import Silent
from tests.unit.registry.source import Source, serving

BODY = bytes(range(256)) * 4000  # about a megabyte
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def source() -> Iterator[Source]:
    with serving(Source(files={"/file": BODY})) as running:
        yield running


def remote(source: Source, sha256: str | None = SHA256) -> Remote:
    return Remote(f"{source.url}/file", "file", sha256)


def no_sleep(_: float) -> None:
    """The tests do not wait."""


def test_brings_the_file(source: Source, tmp_path: Path) -> None:
    assert fetch(remote(source), tmp_path / "part", Silent()) == SHA256
    assert (tmp_path / "part").read_bytes() == BODY


def test_goes_on_after_each_cut(source: Source, tmp_path: Path) -> None:
    source.cuts = [300_000, 200_000]
    fetch(remote(source), tmp_path / "part", Silent(), no_sleep)
    assert (tmp_path / "part").read_bytes() == BODY
    assert source.asked_ranges() == [None, "bytes=300000-", "bytes=500000-"]


def test_goes_on_from_what_an_earlier_process_left(source: Source, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(BODY[:700_000])
    fetch(remote(source), tmp_path / "part", Silent())
    assert (tmp_path / "part").read_bytes() == BODY
    assert source.asked_ranges() == ["bytes=700000-"]


def test_a_whole_part_needs_no_body(source: Source, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(BODY)
    assert fetch(remote(source), tmp_path / "part", Silent()) == SHA256


def test_starts_anew_where_ranges_are_ignored(source: Source, tmp_path: Path) -> None:
    source.ranges = False
    source.cuts = [300_000]
    fetch(remote(source), tmp_path / "part", Silent(), no_sleep)
    assert (tmp_path / "part").read_bytes() == BODY


def test_starts_anew_where_the_file_changed_meanwhile(source: Source, tmp_path: Path) -> None:
    source.files["/file"] = b"old" * 200_000
    source.cuts = [300_000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(SourceUnreachable):
        fetch(remote(source, None), tmp_path / "part", Silent(), no_sleep)
    source.cuts = []
    source.files["/file"], source.etag = BODY, '"two"'
    assert fetch(remote(source, None), tmp_path / "part", Silent()) == SHA256


def test_without_a_validator_or_a_checksum_nothing_is_appended(
    source: Source, tmp_path: Path
) -> None:
    source.etag = None
    source.cuts = [300_000]
    assert fetch(remote(source, None), tmp_path / "part", Silent(), no_sleep) == SHA256
    assert source.asked_ranges() == [None, None]


def test_a_bad_beginning_is_thrown_away_and_fetched_again(source: Source, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"x" * 700_000)
    fetch(remote(source), tmp_path / "part", Silent())
    assert (tmp_path / "part").read_bytes() == BODY


def test_a_part_longer_than_the_file_is_thrown_away(source: Source, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(BODY + b"more")
    fetch(remote(source), tmp_path / "part", Silent(), no_sleep)
    assert (tmp_path / "part").read_bytes() == BODY


def test_wrong_bytes_are_refused_and_not_kept(source: Source, tmp_path: Path) -> None:
    source.files["/file"] = b"something else"
    with pytest.raises(ChecksumMismatch, match="Nothing was kept"):
        fetch(remote(source), tmp_path / "part", Silent())
    assert not (tmp_path / "part").exists()


def test_a_busy_source_is_asked_again(source: Source, tmp_path: Path) -> None:
    source.statuses = [503, 429, 500]
    pauses: list[float] = []
    fetch(remote(source), tmp_path / "part", Silent(), pauses.append)
    assert pauses == [0.5, 1.0, 2.0]


def test_gives_up_on_a_source_that_stays_away_and_says_how_to_go_on(tmp_path: Path) -> None:
    with serving(Source()) as source:
        gone = source.url
    pauses: list[float] = []
    with pytest.raises(SourceUnreachable, match="Pull again to go on from 0 MB"):
        fetch(Remote(f"{gone}/file", "file"), tmp_path / "part", Silent(), pauses.append)
    assert len(pauses) == ATTEMPTS - 1


def test_a_no_is_not_asked_again(source: Source, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused) as refused:
        fetch(Remote(f"{source.url}/absent", "file"), tmp_path / "part", Silent())
    assert refused.value.status == 404
    assert len(source.requests) == 1


def test_a_token_does_not_follow_a_redirect_to_another_host(tmp_path: Path) -> None:
    with serving(Source(files={"/file": BODY})) as other, serving(Source()) as first:
        first.redirects["/file"] = f"{other.url}/file"
        headers = {"Authorization": "Bearer secret"}
        fetch(Remote(f"{first.url}/file", "file", headers=headers), tmp_path / "part", Silent())
    assert first.requests[0][1]["authorization"] == "Bearer secret"
    assert "authorization" not in other.requests[0][1]
