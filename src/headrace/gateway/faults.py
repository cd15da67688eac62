"""What a caller is told of a fault of ours."""

from __future__ import annotations

import errno
import sqlite3

from sqlalchemy.exc import DBAPIError

from headrace.protocol.errors import InternalFault, ServiceError, StorageFull

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def fault_of(error: Exception, message: str) -> ServiceError:
    """StorageFull where the disk is, else an InternalFault with `message`."""
    return StorageFull() if disk_full(error) else InternalFault(message)


def disk_full(error: Exception) -> bool:
    """Whether a file or an embedded database could not be written for want of room."""
    if isinstance(error, DBAPIError):
        code = getattr(error.orig, "sqlite_errorcode", None)
        # the journal of a database asks the system for its room, which says so in its own way
        return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
    return isinstance(error, OSError) and error.errno in _FULL
