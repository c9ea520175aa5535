"""Applications that share a system database: giving one of them another name."""

from __future__ import annotations

from functools import partial

from dbos._dbos_config import is_application_name
from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Read
from dbos._error import DBOSException
from dbos._sysdb.operations import Call
from dbos._sysdb.stores.applications import ApplicationsStore
from dbos._sysdb.wakeups import QUEUE

__all__ = ["rename_application"]

MAX_BATCH_ROWS = 10_000  # whose locks are held at once


def rename_application(
    engine: Engine,
    old_name: str,
    new_name: str,
    *,
    batch_size: int = 1000,
    adopt_unclaimed_rows: bool = False,
) -> Flow[dict[str, int]]:
    """Give everything that an application has in this database to another name.

    Its workflows, queues, schedules and versions belong to the application of the new name then, which may exist. Stop
    the application first, and launch it with the new ``name`` in its configuration afterwards. Workflows are renamed in
    batches: if this is interrupted, call it again.

    Args:
        old_name: The name as it was.
        new_name: The name from now on, such as the configuration takes.
        batch_size: How many workflows are renamed in one transaction.
        adopt_unclaimed_rows: Also give it what is no application's in particular, such as rows from before there were
            applications here, or what clients without an application's name have enqueued.

    Returns:
        How many rows were renamed, by table.

    Raises:
        DBOSException: a name cannot be one of an application, both are the same, or the application is running.
        ValueError: ``batch_size`` is not between 1 and 10000.

    Example:
        ```python
        client.rename_application("shop", "webshop")
        ```
    """
    if not isinstance(old_name, str) or not old_name or "\0" in old_name or not is_application_name(new_name):
        raise DBOSException(
            f"{old_name!r} cannot be renamed to {new_name!r}: the name of an application is 3 to 30 characters long "
            "and contains only lower-case letters, digits, dashes and underscores."
        )
    if old_name == new_name:
        raise DBOSException(f"Application {old_name!r} has that name already.")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= MAX_BATCH_ROWS:
        raise ValueError(f"batch_size is a whole number from 1 to {MAX_BATCH_ROWS}, not {batch_size!r}.")
    running = yield Read(ApplicationsStore.running, (old_name, engine.db.now_ms()))
    if running:
        raise DBOSException(
            f"Application {old_name!r} is running in {running} processes, which would go on under that name. Stop them "
            "first; one that has died counts until its lease has run out."
        )
    has_nobodys = adopt_unclaimed_rows
    counts: dict[str, int] = yield Read(partial(ApplicationsStore.counts, has_nobodys=has_nobodys), (old_name,))
    rename_rest = partial(ApplicationsStore.rename_rest, has_nobodys=has_nobodys)
    yield Commit((Call(rename_rest, (old_name, new_name)),))
    counts = {"workflow_status": 0, **counts}
    page, rename = (
        partial(verb, has_nobodys=has_nobodys) for verb in (ApplicationsStore.page, ApplicationsStore.rename_workflows)
    )
    after = ""
    while True:
        ids: list[str] = yield Read(page, (old_name, after, batch_size))
        if ids:
            yield Commit((Call(rename, (ids, old_name, new_name), is_apart=True),))
            counts["workflow_status"] += len(ids)
        if len(ids) < batch_size:
            break
        after = ids[-1]
    engine.db.publish(QUEUE)
    engine.schedules_changed()
    return counts
