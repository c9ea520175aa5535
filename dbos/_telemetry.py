"""The library's log and its alerts.

There is one logger, ``dbos``, with a child for each area (``dbos.queue``, ``dbos.scheduler`` …).

:func:`configure_logging` is called when ``DBOS`` is made, and again when it knows its version and executor. An
application that has given the logger handlers of its own keeps them.

The fields of a record (which workflow, which executor) are asked of a function that the caller passes in, because what
knows them lives in higher layers. They are added by a filter on each *handler*: a filter on a logger does not see the
records of its children.

What the application adds to the log may fail: a handler, a filter, an exporter. That costs the record and nothing else;
no workflow is to fail because of a line in a log. So the loggers are of a class that sees to it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TextIO

__all__ = ["ALERTS", "RecordFields", "add_record_fields", "configure_logging", "logger"]

logger = logging.getLogger("dbos")

CONSOLE_HANDLER_NAME = "__dbos_console_log_handler__"
CONSOLE_FORMAT = "%(asctime)s [%(levelname)8s] (%(name)s:%(filename)s:%(lineno)s) %(message)s"
CONSOLE_TIME_FORMAT = "%H:%M:%S"

ALERTS: Mapping[str, int] = {
    "database_lost": logging.CRITICAL,
    "database_unreachable": logging.ERROR,
    "executor_declared_dead": logging.WARNING,
    "queue_stranded": logging.WARNING,
    "schedule_broken": logging.ERROR,
    "schedule_paused": logging.WARNING,
    "schedule_ticks_missed": logging.WARNING,
    "version_stranded": logging.WARNING,
    "workflow_given_up": logging.ERROR,
    "workflow_not_registered": logging.ERROR,
    "workflow_refused": logging.ERROR,
}
"""What the alert handler is told of, and at which level it is logged; docs/howto/alerts.md says what each means."""

RecordFields = Callable[[], Mapping[str, object]]
"""Returns the fields of a record at the moment it is made: ``applicationID``, ``applicationVersion``, ``executorID``,
the configured OTLP attributes, ``operationUUID`` inside a workflow and ``traceId`` inside a span."""


class _ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever ``sys.stderr`` is at the time; a replaced one may be closed while threads still log."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override] # a plain attribute there, and never set here
        return sys.stderr


class _FieldsFilter(logging.Filter):
    """Adds the current fields to every record that a handler takes; lets all records pass."""

    def __init__(self, fields: RecordFields) -> None:
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            for name, value in self._fields().items():
                # What the caller said about this record is more precise than what is true of the process.
                record.__dict__.setdefault(name, value)
        except Exception:  # a workflow must not fail because a log line could not be decorated
            return True
        return True


class _SafeLogger(logging.Logger):
    """A logger whose handlers and filters may raise without harm to whoever logs."""

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        except Exception:  # whatever the application has added to the log
            if logging.raiseExceptions:
                traceback.print_exc(limit=-1, file=sys.stderr)


def _make_safe() -> None:
    """Make all our loggers safe; modules have made them before anybody could say of which class they are to be."""
    for name, known in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] == logger.name and type(known) is logging.Logger:
            known.__class__ = _SafeLogger


def configure_logging(
    level: str = "INFO", console_level: str | None = None, *, fields: RecordFields | None = None
) -> None:
    """Set the levels of the logger ``dbos``, give it a console handler if it has none, and fields to its records.

    Args:
        level: The level of the logger.
        console_level: The level of the console handler; ``level`` unless given.
        fields: Called for each record; see :data:`RecordFields`. Without it earlier fields stay.
    """
    _make_safe()
    logger.setLevel(level)
    logger.propagate = False
    if not logger.handlers:
        console = _ConsoleHandler()
        console.set_name(CONSOLE_HANDLER_NAME)
        console.setFormatter(logging.Formatter(CONSOLE_FORMAT, CONSOLE_TIME_FORMAT))
        logger.addHandler(console)
    for handler in logger.handlers:
        if handler.get_name() == CONSOLE_HANDLER_NAME:
            handler.setLevel(console_level or level)
    if fields is not None:
        for target in (logger, *logger.handlers):
            add_record_fields(target, fields)


def add_record_fields(target: logging.Filterer, fields: RecordFields) -> None:
    """Let ``target`` (a handler or a logger) add these fields to its records, in place of earlier ones."""
    for earlier in [known for known in target.filters if isinstance(known, _FieldsFilter)]:
        target.removeFilter(earlier)
    target.addFilter(_FieldsFilter(fields))
