"""SQL files into statements, and the ``dbos.`` prefix of their tables into the schema at hand.

Everything that puts a name into SQL text goes through :func:`quote_identifier`, so this is the one place to check
when a schema is called ``a"b`` or ``a%b``.
"""

from __future__ import annotations

import re

from dbos._error import DBOSInitializationError

__all__ = ["DEFAULT_SCHEMA", "qualify", "quote_identifier", "split_statements"]

DEFAULT_SCHEMA = "dbos"

MAX_IDENTIFIER_BYTES = 63  # PostgreSQL cuts longer names off silently: two schemas could become one

_PREFIX = re.compile(r"\bdbos\.(?=\w)")
_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* )
    | (?P<quoted>  '(?:[^']|'')*' | "(?:[^"]|"")*" | (?P<dollar>\$\w*\$).*?(?P=dollar) )
    | (?P<end>     ; )
    """,
    re.VERBOSE | re.DOTALL,
)


def quote_identifier(name: str) -> str:
    """Quote ``name`` for use as an identifier in SQL text, whatever characters it holds.

    Raises:
        DBOSInitializationError: It is empty, holds a NUL or what UTF-8 cannot encode, or is longer than 63 bytes.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise DBOSInitializationError(f"The name {name!r} cannot be encoded as UTF-8; choose another.") from error
    if not name or "\0" in name:
        raise DBOSInitializationError(f"The name {name!r} cannot be used in a database: it is empty or holds a NUL.")
    if size > MAX_IDENTIFIER_BYTES:
        raise DBOSInitializationError(
            f"The name {name!r} has {size} bytes; a database takes {MAX_IDENTIFIER_BYTES}. Choose a shorter one."
        )
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def qualify(sql: str, schema: str | None) -> str:
    """Put ``schema``, quoted, in place of the ``dbos.`` prefix of each table; None drops the prefix."""
    prefix = "" if schema is None else f"{quote_identifier(schema)}."
    return _PREFIX.sub(lambda _: prefix, sql)


def split_statements(script: str) -> tuple[str, ...]:
    """The statements of an SQL file in order, without comments and without their semicolons.

    Comments go because a schema's name could hold a line break and so end one early.
    """
    statements = [""]
    position = 0
    for token in _TOKEN.finditer(script):
        statements[-1] += script[position : token.start()]
        position = token.end()
        if token.lastgroup == "end":
            statements.append("")
        elif token["comment"] is None:
            statements[-1] += token[0]
    statements[-1] += script[position:]
    return tuple(statement.strip() for statement in statements if statement.strip())
