"""A system of a test's own: a migrated database, made by copying one, and a DBOS object on it."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig
from dbos._dbos_config import process_config
from dbos._engine.engine import Engine
from dbos._process import process
from dbos._registry import Registry
from dbos._sysdb.dialects import open_dialect

__all__ = ["copy_sqlite", "fresh_dbos", "migrate"]


def migrate(url: str) -> None:
    """Make the tables of a system database, and leave no connection open, or it could not be copied."""
    settings = process_config({"name": "template", "system_database_url": url}, {})
    open_dialect(settings, process_tag="template").prepare(may_migrate=True)


def copy_sqlite(template: Path, path: Path) -> str:
    """Copy a database that nobody uses; returns the copy's URL."""
    shutil.copy(template, path)  # with its permissions
    return f"sqlite:///{path}"


@contextmanager
def fresh_dbos(config: DBOSConfig) -> Iterator[type[DBOS]]:
    """``DBOS``, constructed and not launched; at the end, it is destroyed with whatever still runs.

    What modules register when they are imported, before the block or in it, is there in every block from then on. What
    else is registered within it is forgotten.
    """
    DBOS.destroy()
    forget = _remember(process.registry)
    logger = logging.getLogger("dbos")
    level = logger.level
    try:
        DBOS(config=config)
        yield DBOS
    finally:
        DBOS.destroy()
        forget()
        logger.setLevel(level)  # a launch sets it


def _remember(registry: Registry[Engine]) -> Callable[[], None]:
    """Note what is registered; returns what forgets the rest, except for what is of modules imported since."""
    modules = set(sys.modules)
    functions, classes = registry.workflows.copy(), registry.classes.copy()
    instances, queues, scheduled = registry.instances.copy(), registry.queues.copy(), registry.scheduled.copy()

    def is_imported(defined: Any) -> bool:
        is_local = "<locals>" in getattr(defined, "__qualname__", "<locals>")
        return not is_local and defined.__module__ in sys.modules.keys() - modules

    def forget() -> None:
        of_modules = {name: each for name, each in registry.workflows.items() if is_imported(each.func)}
        classes_of_modules = {name: each for name, each in registry.classes.items() if is_imported(each)}
        if of_modules or classes_of_modules:
            # Who has made an instance or a queue cannot be told. The application needs its own, and those that a test
            # has made at the same time are hardly in anybody's way.
            instances.update(registry.instances)
            queues.update(registry.queues)
        scheduled.extend(each for each in registry.scheduled if each not in scheduled and is_imported(each.func))
        registry.clear()
        registry.workflows.update(functions | of_modules)
        registry.classes.update(classes | classes_of_modules)
        registry.instances.update(instances)
        registry.queues.update(queues)
        registry.scheduled.extend(scheduled)

    return forget
