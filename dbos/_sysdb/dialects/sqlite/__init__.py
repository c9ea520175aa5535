"""SQLite, used as it should be: WAL, one writer, explicit transactions, our own checkpoints."""

from __future__ import annotations

from .connection import SQLiteConnection, begin_immediate, configure
from .dialect import SQLiteDialect, prepare_application_database
from .writer import SQLiteWriter

__all__ = [
    "SQLiteConnection",
    "SQLiteDialect",
    "SQLiteWriter",
    "begin_immediate",
    "configure",
    "prepare_application_database",
]
