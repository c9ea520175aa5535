"""Export and import: workflows as values, to be kept, or put into another database.

A value is what the tables hold, in the formats in which it is stored; nothing of it is decoded on either way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dbos._context import checked_workflow_id, current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Read
from dbos._error import DBOSException, DBOSNonExistentWorkflowError
from dbos._ids import derived_id, new_token
from dbos._operations.archive_format import FORMAT, VERSION, checked_archive
from dbos._operations.auditing import action_of, audited
from dbos._operations.recording import recorded, recorded_by_id
from dbos._sysdb.committer import MAX_UNIT_CHARACTERS
from dbos._sysdb.operations import Call
from dbos._sysdb.stores.archives import TABLES, Archive
from dbos._sysdb.stores.retention import FINISHED

__all__ = ["export_workflow", "import_workflow"]

Row = dict[str, Any]


def export_workflow(engine: Engine, workflow_id: str, *, export_children: bool = False) -> Flow[dict[str, Any]]:
    """Everything that is recorded of a workflow, as a value that can be written as JSON.

    It is what the database held at one moment, also if the workflow runs. Values are in the formats in which they are
    stored, and are not decoded.

    Args:
        workflow_id: The workflow's id.
        export_children: Whether the workflows are included that it has started or awaited, and those that these have.

    Returns:
        A dictionary with the keys ``format``, ``version`` and ``workflows``; each of these has a list of rows for each
        table. :meth:`import_workflow` takes it.

    Raises:
        DBOSNonExistentWorkflowError: there is no such workflow.

    Example:
        ```python
        exported = DBOS.export_workflow("order-17", export_children=True)
        Path("order-17.json").write_text(json.dumps(exported))
        ```
    """
    workflow_id = checked_workflow_id(workflow_id)

    def export() -> Flow[dict[str, Any]]:
        found = yield Read(_read, (engine, workflow_id, export_children))
        if not found:
            raise DBOSNonExistentWorkflowError("target", workflow_id)
        workflows = [{**each, "workflow_status": each["workflow_status"][0]} for each in found]
        return {"format": FORMAT, "version": VERSION, "workflows": workflows}

    return (yield from recorded(engine, "DBOS.exportWorkflow", export()))


def _read(reader: Any, engine: Engine, workflow_id: str, with_children: bool) -> list[dict[str, list[Row]]]:
    return engine.db.archives.read(reader, workflow_id, with_children=with_children)


def import_workflow(engine: Engine, exported: Mapping[str, Any]) -> Flow[list[str]]:
    """Put exported workflows into this database, all of them or none.

    What was finished stays as it was. What was not is CANCELLED here, because it may still be running where it was
    exported: :meth:`resume_workflows` with the ids that are returned has it go on from its last step.

    Nothing is decoded now, but it will be when somebody asks for it: import only what comes from where you trust, or
    have ``allowed_serializers`` in the configuration exclude what is pickled.

    Args:
        exported: What :meth:`export_workflow` returned, also after it was written as JSON and read again.

    Returns:
        The ids of the workflows.

    Raises:
        DBOSException: one of the workflows is here already, or it is no such value, or too large for one transaction.
        DBOSPayloadTooLargeError: a value in it is larger than ``max_payload_bytes``.
        DBOSSerializationNotAllowedError: it is in a format that is not in ``allowed_serializers``.

    Example:
        ```python
        ids = DBOS.import_workflow(json.loads(Path("order-17.json").read_text()))
        DBOS.resume_workflows(ids)
        ```
    """
    workflows = checked_archive(engine, exported)
    tables = _tables(workflows, engine.db.now_ms())
    ids = [row["workflow_uuid"] for row in tables["workflow_status"]]
    rows = {name: (_as_json(name, rows), len(rows)) for name, rows in tables.items()}
    _check_size(rows)

    def write(function_id: int | None) -> Flow[list[str]]:
        # In a workflow the same at each attempt: one that was not recorded may have been committed.
        context = current_context()
        run = None if context is None or function_id is None else context.run
        token = new_token() if run is None else derived_id(f"{run.workflow_id}/{function_id}")
        put_in = audited(engine, action_of(engine, "import"), engine.db.archives.write)
        try:
            yield Commit((Call(put_in, (Archive(token, ids, rows),), is_apart=True),))
        except DBOSException:
            raise
        except Exception as error:
            if engine.db.dialect.refuses_value(error):
                raise DBOSException(f"Nothing was imported, because the database refuses it: {error}") from error
            raise
        for row in tables["workflow_status"]:
            engine.finished(row["workflow_uuid"])
        return ids

    return (yield from recorded_by_id(engine, "DBOS.importWorkflow", write))


def _tables(workflows: Sequence[dict[str, list[Row]]], now_ms: int) -> dict[str, list[Row]]:
    tables: dict[str, list[Row]] = {name: [row for each in workflows for row in each[name]] for name in TABLES}
    for row in tables["workflow_status"]:
        if row["status"] not in FINISHED:
            row.update(status="CANCELLED", completed_at=now_ms, updated_at=now_ms)
            row.update(dict.fromkeys(("queue_name", "deduplication_id", "started_at_epoch_ms")))
    return tables


def _as_json(name: str, rows: Sequence[Row]) -> str:
    columns = {column: f"c{position}" for position, column in enumerate(TABLES[name].columns)}
    return json.dumps([{place: row[column] for column, place in columns.items()} for row in rows])


def _check_size(tables: Mapping[str, tuple[str, int]]) -> None:
    size = sum(len(rows) for rows, _ in tables.values())
    if size > MAX_UNIT_CHARACTERS:
        raise DBOSException(
            f"Nothing was imported: it takes {size:,} characters, and one transaction takes {MAX_UNIT_CHARACTERS:,} at "
            "most. Import it in parts, each with some of its 'workflows'."
        )
