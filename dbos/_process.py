"""What this process has: its one DBOS object, found here and nowhere else.

The facade and the queues share it; everything below is told what to work with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbos._bridge import Bridge
from dbos._context import current_context
from dbos._engine.engine import Engine
from dbos._error import DBOSException
from dbos._registry import Registry

if TYPE_CHECKING:
    from dbos._dbos import DBOS
    from dbos._operations.lifecycle import Runtime

__all__ = [
    "awaiting",
    "awaiting_handle",
    "awaiting_handles",
    "awaiting_iterator",
    "blocking",
    "blocking_handle",
    "blocking_handles",
    "blocking_iterator",
    "find_engine",
    "process",
]


class _Process:
    """A registry that outlives launches, the settings of a DBOS object, a running engine."""

    def __init__(self) -> None:
        self.registry: Registry[Engine] = Registry()
        self.instance: DBOS | None = None
        self.runtime: Runtime | None = None


process = _Process()


def find_engine() -> Engine:
    """The engine of the DBOS object.

    Raises:
        DBOSException: there is none.
    """
    # The registry's, which stays until destroy() has ended: workflows that run meanwhile go on, or are interrupted.
    engine = process.registry.engine
    if engine is None:
        context = current_context()
        if context is not None and context.run is not None:
            context.run.check_interrupted()
        raise DBOSException("No DBOS was created yet: make one with DBOS(config=...), then call DBOS.launch()")
    return engine


_bridge = Bridge(find_engine)
blocking, awaiting = _bridge.blocking, _bridge.awaiting
blocking_handle, awaiting_handle = _bridge.blocking_handle, _bridge.awaiting_handle
blocking_handles, awaiting_handles = _bridge.blocking_handles, _bridge.awaiting_handles
blocking_iterator, awaiting_iterator = _bridge.blocking_iterator, _bridge.awaiting_iterator
