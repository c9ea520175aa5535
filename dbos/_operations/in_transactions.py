"""Enqueueing and sending in the caller's own transaction: durable exactly if the caller commits it.

The transaction is one of SQLAlchemy on the system database. It is the caller's from beginning to end, so this commits
nothing, records no step, and cannot try again what the database refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dbos._context import Context, current_context
from dbos._engine.engine import Engine, queue_topic
from dbos._engine.enqueue import settle
from dbos._engine.flow import Flow, Read
from dbos._engine.start import describe
from dbos._error import DBOSException, DBOSNonExistentWorkflowError
from dbos._operations.messages import make_messages
from dbos._operations.queues import EnqueueOptions, named_request
from dbos._serialization import WorkflowSerializationFormat
from dbos._sysdb.stores.messages import Mailing
from dbos._sysdb.user_connection import UserConnection
from dbos._sysdb.wakeups import DATA
from dbos._types import SendMessage

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.orm import Session

__all__ = ["enqueue_in_transaction", "send_bulk_in_transaction", "send_in_transaction"]


def enqueue_in_transaction(
    engine: Engine, /, conn_or_session: sa.Connection | Session, options: EnqueueOptions, *args: Any, **kwargs: Any
) -> Flow[str]:
    """Enqueue a workflow by its name in a transaction of yours: it is durable, and can begin, once you commit that.

    Args:
        conn_or_session: A connection or session of SQLAlchemy on the system database; of its asynchronous kinds, what
            their ``run_sync`` passes on.
        options: What to enqueue, and how. An ID that is taken is refused where ``duplication_policy`` would return the
            existing one.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        A handle to await it with, after the commit.

    Raises:
        KeyError: ``workflow_name`` or ``queue_name`` is missing.
        TypeError: ``conn_or_session`` is neither.
        DBOSException: it is on another database; or an option is unknown, or not what it can be.
        DBOSQueueDeduplicatedError: another workflow holds the deduplication ID.
        DBOSConflictingWorkflowError: the workflow ID belongs to another function, class or instance.

    Example:
        ```python
        with Session(engine) as session, session.begin():
            session.add(order)
            DBOS.enqueue_in_transaction(session, {"workflow_name": "ship", "queue_name": "orders"}, order.id)
        ```
    """
    request = named_request(options, args, kwargs, _context(engine, "enqueue_in_transaction"))
    if request.choices.duplication_policy == "return-existing":
        raise DBOSException(
            "duplication_policy 'return-existing' cannot be used in a transaction: the existing workflow may end, and "
            "its deduplication ID be free, before that commits. Catch DBOSQueueDeduplicatedError instead."
        )
    connection = yield from _adopted(engine, conn_or_session)
    queue = request.placed(engine)
    start = describe(engine, request.target, request.context, None, queue)
    started = engine.db.workflows.start(connection, start)
    workflow_id = yield from settle(engine, None, start, started, request.target, "reject")
    if workflow_id is None:
        raise DBOSException(
            f"Workflow {start.workflow_uuid} was not enqueued: its ID or deduplication ID is held by a workflow that "
            "your transaction cannot see. Roll it back and begin anew."
        )
    if started.created:
        topic = queue_topic(queue.queue_name, is_delayed=queue.delay_until_ms is not None)
        engine.db.dialect.announce(connection, topic)
    return workflow_id


def send_in_transaction(
    engine: Engine,
    /,
    conn_or_session: sa.Connection | Session,
    destination_id: str,
    message: Any,
    topic: str | None = None,
    idempotency_key: str | None = None,
    *,
    serialization_type: WorkflowSerializationFormat | None = WorkflowSerializationFormat.DEFAULT,
    send_to_forks: bool = False,
) -> Flow[None]:
    """Send a message to a workflow in a transaction of yours: it is received once you commit that.

    Args:
        conn_or_session: A connection or session of SQLAlchemy on the system database; of its asynchronous kinds, what
            their ``run_sync`` passes on.
        destination_id: The id of the workflow.
        message: The message.
        topic: The topic it is received by; None is one of its own.
        idempotency_key: Of messages to one workflow with the same key only the first is sent, whatever their topics.
        serialization_type: The format; by default that of the workflow that sends it.
        send_to_forks: Send it to all workflows that were forked from this one as well, and to their forks.

    Raises:
        DBOSNonExistentWorkflowError: there is no such workflow.
        TypeError: ``conn_or_session`` is neither, or the message cannot be serialized.
        DBOSException: it is on another database, no workflow can have this id, or the topic or key cannot be stored.
    """
    single = SendMessage(destination_id, message, topic, idempotency_key)
    yield from send_bulk_in_transaction(
        engine, conn_or_session, [single], serialization_type=serialization_type, send_to_forks=send_to_forks
    )


def send_bulk_in_transaction(
    engine: Engine,
    /,
    conn_or_session: sa.Connection | Session,
    messages: Sequence[SendMessage],
    *,
    serialization_type: WorkflowSerializationFormat | None = WorkflowSerializationFormat.DEFAULT,
    send_to_forks: bool = False,
) -> Flow[None]:
    """Send messages in a transaction of yours, in this order, all or none; see :meth:`send_in_transaction`.

    Args:
        conn_or_session: A connection or session of SQLAlchemy on the system database.
        messages: The messages, each a :class:`SendMessage`.
        serialization_type: Their format; by default that of the workflow that sends them.
        send_to_forks: Send each to all workflows that were forked from its destination as well.

    Raises:
        DBOSNonExistentWorkflowError: one of the workflows does not exist.
        TypeError: ``conn_or_session`` is neither, or a message cannot be serialized.
        DBOSException: it is on another database, or a message is not what it can be.
    """
    _context(engine, "send_in_transaction")
    context = current_context()
    if serialization_type in (None, WorkflowSerializationFormat.DEFAULT) and context is not None and context.run:
        serialization_type = context.run.format
    made = make_messages(engine, messages, serialization_type, to_forks=send_to_forks)
    connection = yield from _adopted(engine, conn_or_session)
    sent = engine.db.messages.send(connection, Mailing(made))
    for destination in sent.missing:
        raise DBOSNonExistentWorkflowError("`send` destination", destination)
    engine.db.dialect.announce(connection, DATA)


def _context(engine: Engine, name: str) -> Context:
    """On whose behalf something is written, without the workflow that it is written in.

    Raises:
        DBOSException: the caller is the body of a workflow, whose replay would write it again.
    """
    context = current_context()
    if engine.is_client or context is None:
        return Context()
    if context.is_in_workflow_body:
        raise DBOSException(
            f"{name} cannot be called from within a workflow, whose replay would repeat it: call it in a step or a "
            "transaction."
        )
    return replace(context, run=None, step_id=None, session=None, is_in_transaction=False)


def _adopted(engine: Engine, given: sa.Connection | Session) -> Flow[UserConnection]:
    """The caller's connection, which leads to the system database.

    Raises:
        TypeError: it is no connection or session.
        DBOSException: it leads elsewhere.
    """
    connection = _connection_of(given)
    db = engine.db
    if connection.dialect.name != db.dialect.name:
        raise _elsewhere(engine)
    if connection.engine not in db.known_engines:
        identity = yield Read(db.dialect.identity, ())
        if db.dialect.identity(UserConnection(connection, "")) != identity:
            raise _elsewhere(engine)
        db.known_engines.add(connection.engine)
    return db.dialect.adopt(connection)


def _connection_of(given: object) -> sa.Connection:
    from sqlalchemy import Connection  # slow to import, and loaded by whoever has one
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(given, Connection):
        return given
    if isinstance(given, Session | scoped_session):
        return given.connection()
    advice = ""
    if hasattr(given, "run_sync"):
        advice = " Of an asynchronous one: await session.run_sync(lambda session: …enqueue_in_transaction(session, …))."
    raise TypeError(f"A Connection or Session of SQLAlchemy is needed, not {type(given).__name__}.{advice}")


def _elsewhere(engine: Engine) -> DBOSException:
    return DBOSException(
        "The transaction is on another database: what is to commit with it must be written to the system database "
        f"({engine.db.name}). Keep your tables there, or enqueue after your commit."
    )
