"""Alembic's part in `database.migrate`."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

ENVIRONMENT = Path(__file__).parent / "migrations"


def upgrade(connection: Connection, versions: Path, version_table: str, head: str) -> bool:
    """Bring the tables that `versions` describes to revision `head`; False where they are at one
    that is not known here."""
    configuration = Config()
    configuration.set_main_option("script_location", _escaped(ENVIRONMENT))
    configuration.set_main_option("path_separator", "newline")
    configuration.set_main_option("version_locations", _escaped(versions))
    configuration.attributes["connection"] = connection
    configuration.attributes["version_table"] = version_table
    try:
        command.upgrade(configuration, head)
    except CommandError:
        return False
    return True


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")
