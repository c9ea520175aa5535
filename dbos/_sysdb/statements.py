"""SQL text with named parameters, rendered once for the driver at hand.

Statements are written the same way everywhere: tables carry the prefix ``dbos.``, parameters are ``:named``, and a list
is matched with ``IN :names``. A :class:`Renderer` turns that into what the driver itself prepares, so no SQL toolkit
stands on the hot path and a statement reads the same for both databases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Rendered", "Renderer"]

MAX_RENDERED = 1000  # several times the statements of this library

_LIST = re.compile(r"\bIN\s+:([a-z_][a-z0-9_]*)")
_NAME = re.compile(r"(?<![:\w]):([a-z_][a-z0-9_]*)")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A statement as one driver takes it, and the names of its parameters in the driver's order."""

    sql: str
    names: tuple[str, ...]

    def bind(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Put named values into the order that the driver expects."""
        return [parameters[name] for name in self.names]


class Renderer:
    """Renders statements for one database: its placeholder style and its table prefix.

    ``numbered`` placeholders (``$1``, PostgreSQL) name a repeated parameter once; ``qmark`` ones (SQLite) repeat it.
    Rendered statements are kept, because there are few of them and each is used for the life of the process; the few
    that are put together at run time make it start over now and then.
    """

    def __init__(self, style: Literal["numbered", "qmark"], table_prefix: str) -> None:
        self._style = style
        self._table_prefix = table_prefix
        self._rendered: dict[str, Rendered] = {}

    def text(self, sql: str) -> str:
        """Replace the ``dbos.`` table prefix only; parameters are left alone."""
        return sql.replace("dbos.", self._table_prefix)

    def render(self, sql: str) -> Rendered:
        """The driver's form of ``sql``, rendered at its first use."""
        rendered = self._rendered.get(sql)
        if rendered is None:
            if len(self._rendered) >= MAX_RENDERED:
                self._rendered.clear()
            rendered = self._rendered[sql] = self._numbered(sql) if self._style == "numbered" else self._qmark(sql)
        return rendered

    def _numbered(self, sql: str) -> Rendered:
        numbers: dict[str, int] = {}

        def number(match: re.Match[str]) -> str:
            return f"${numbers.setdefault(match[1], len(numbers) + 1)}"

        # The prefix last: what follows a colon in the schema's name is no parameter.
        text = _NAME.sub(number, _LIST.sub(r"= ANY(:\1)", sql))
        return Rendered(self.text(text), tuple(numbers))

    def _qmark(self, sql: str) -> Rendered:
        names: list[str] = []

        def mark(match: re.Match[str]) -> str:
            names.append(match[1])
            return "?"

        text = _NAME.sub(mark, _LIST.sub(r"IN (SELECT value FROM json_each(:\1))", sql))
        return Rendered(self.text(text), tuple(names))
