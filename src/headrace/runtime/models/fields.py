"""Reading a description so that nothing in it is passed over in silence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..weights.gguf import WeightsError


class UnsupportedModel(WeightsError):
    """The file is sound, but its architecture has no description here."""


class Fields:
    """A mapping that remembers which of its fields were read.

    A field that nobody read may change the mathematics: `refuse_unread` names it, unless its
    value says "nothing" (None, False, 0, empty).
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or `default` where it is missing or null."""
        self.read.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def stated(self, name: str, missing: Any) -> Any:
        """The field as it stands there, null being None, or `missing` where it is not there."""
        self.read.add(name)
        return self.values.get(name, missing)

    def need(self, name: str) -> Any:
        """The field. Raises WeightsError where it is missing or null."""
        value = self.get(name)
        if value is None:
            raise WeightsError(f"{self.where} lacks {name}")
        return value

    def count(self, name: str, most: int = 2**24) -> int:
        """A field that is a whole number from 1. Raises WeightsError where it is none, or absurd:
        a file must not make a reader allocate what no file could hold."""
        value = self.need(name)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise WeightsError(f"{self.where}: {name} is {value!r}, not a count up to {most}")
        return value

    def ignore(self, *names: str) -> None:
        """Fields that change nothing here."""
        self.read.update(names)

    def only(self, name: str, *expected: Any) -> None:
        """Raise UnsupportedModel where the field is there and is none of the expected values."""
        value = self.get(name)
        if value is not None and value not in expected:
            raise UnsupportedModel(f"{self.where} has {name} {value!r}; supported: {expected}")

    def refuse_unread(self, harmless: Collection[str] = ()) -> None:
        """Raise UnsupportedModel on a field that nobody read and that is not `harmless`.

        Fields with a leading underscore say how a file was made, not what the model computes.
        """
        for name, value in self.values.items():
            if not (name in self.read or name in harmless or name.startswith("_")) and value:
                raise UnsupportedModel(f"{self.where} has {name} {value!r}, which is not known")
