"""The control experiment: the same census in a plain loop, in one undisturbed process, without the library."""

from __future__ import annotations

from . import source
from .pipeline import CENSUSES, MODULES

__all__ = ["compute_rows"]


def compute_rows(limit: int | None) -> list[source.Row]:
    """What the user's table must hold in the end."""
    rows = []
    for census in CENSUSES:
        for package, paths in census.packages(limit).items():
            for path in paths:
                facts = source.measure_file(path, census.measures)
                values = {"census": census.config_name, "package": package, "path": path, **facts}
                rows.append(tuple(values.get(column.name) for column in MODULES.c))
    return rows
