"""Fixtures that several rooms share: the real model, a tiny one, a port, fake upstreams."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from headrace.registry.pull import pull
from headrace.runtime.backends.devices import has_nvidia
from tests.fakes.model import write_tiny_gguf
from tests.fakes.upstream import FakeUpstream

# Without a GPU, the CUDA backend's kernels run in Triton's interpreter. It is read wherever a
# kernel is defined, Triton's own included: before anything imports Triton.
if not has_nvidia():
    os.environ["TRITON_INTERPRET"] = "1"

# A shared machine may be slow at any moment: time is measured in benchmarks, not here.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1; pulled once and kept between runs."""
    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers over bytes; loads in milliseconds."""
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
async def first() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
async def second() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a mebibyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)
