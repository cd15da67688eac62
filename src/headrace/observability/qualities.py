"""The measured quality of models: what an evaluation found, for rules to ask (`quality_over`,
`best`). One file in the data directory, replaced as a whole."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

FILE = "qualities.json"

Share = Annotated[float, Meta(ge=0, le=1)]

log = logging.getLogger(__name__)


class Quality(Struct, frozen=True, kw_only=True):
    """The mean grade of one configured model, 0 to 1, and the bounds of its confidence interval.

    `experiment` is what found it, over `samples` answers, at `measured_at` (Unix seconds).
    """

    value: Share
    low: Share
    high: Share
    samples: Annotated[int, Meta(ge=1)]
    experiment: str
    measured_at: float


_decode = msgspec.json.Decoder(dict[str, Quality]).decode


class Qualities:
    """The qualities kept in `directory`, as of the last `refresh`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self.values: Mapping[str, float] = {}  # by configured model name
        self.refresh()

    def refresh(self) -> None:
        """Read them again; blocks. A file that is not in order is told in the log, and what was
        known stays."""
        try:
            self.values = {name: one.value for name, one in read(self._path).items()}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("The measured qualities cannot be read: %s", error)

    def keep(self, model: str, quality: Quality) -> None:
        """Put one in the file, durably; blocks. For one writer at a time."""
        every = {**read(self._path), model: quality}
        with tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False) as file:
            file.write(msgspec.json.encode(every))
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self._path)


def read(path: Path) -> dict[str, Quality]:
    """What the file says; nothing where there is none. Raises OSError and msgspec.DecodeError."""
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return {}
