"""PostgreSQL over psycopg 3: set-based statements, prepared once, one round trip for a batch."""

from __future__ import annotations

from .connection import PREPARE_THRESHOLD, PostgresConnection
from .dialect import PostgresDialect, grant_application_tables, prepare_application_database
from .writer import PostgresWriter

__all__ = [
    "PREPARE_THRESHOLD",
    "PostgresConnection",
    "PostgresDialect",
    "PostgresWriter",
    "grant_application_tables",
    "prepare_application_database",
]
