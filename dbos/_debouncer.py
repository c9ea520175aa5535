"""Debouncers as users hold them: in an application, and with a client.

What they do is in :mod:`dbos._operations.debouncing`, once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from dbos._engine.flow import drive, drive_async
from dbos._error import DBOSWorkflowFunctionNotFoundError
from dbos._handles import WorkflowHandle, WorkflowHandleAsync
from dbos._operations.debouncing import Debouncing, debounce, debounce_from_outside, debouncing_of, refuse_method
from dbos._operations.handles import EngineHandle, EngineHandleAsync
from dbos._operations.queues import EnqueueOptions
from dbos._process import find_engine
from dbos._registrations import get_dbos_func_name, get_func_info, needs_receiver

if TYPE_CHECKING:
    from dbos._client import DBOSClient
    from dbos._queue import Queue

__all__ = ["Debouncer", "DebouncerClient"]

P = ParamSpec("P")
R = TypeVar("R")
Q = ParamSpec("Q")
T = TypeVar("T")


class Debouncer(Generic[P, R]):
    """Calls a workflow once for calls in quick succession: when none has come for a while, with the last arguments.

    Calls with the same key are a group, and get the same workflow, which waits in its queue and can be awaited,
    cancelled, or resumed, which starts it at once. When its wait is over, the next call begins another group. Groups
    are kept in the database: whichever processes call, and whether they stay, the workflow runs once.

    What is set around the first call of a group counts for its workflow: :class:`SetWorkflowID`,
    :class:`SetWorkflowTimeout`, the user, the ``app_version`` of :class:`SetEnqueueOptions`. It is nobody's child: it
    inherits no deadline of a workflow that calls.

    Args:
        workflow_name: The registered name of a workflow, of a function or a static method; better is :meth:`create`,
            which knows its types.
        debounce_timeout_sec: How long a group may be put off in all, in seconds from its first call; None or 0 for
            any time.
        queue: The queue that the workflow runs in, or its name; by default one of the library that runs it at once.
        application_name: The application whose workflow it is, by default this one; it is not looked for here then.

    Raises:
        DBOSException: an argument is not what it can be.

    Example:
        ```python
        debouncer = Debouncer.create(index_document, debounce_timeout_sec=60)

        # Indexed once the user has not typed for five seconds, and at least once a minute.
        debouncer.debounce(document_id, 5.0, document_id, text)
        ```
    """

    def __init__(
        self: Debouncer[..., Any],
        workflow_name: str,
        *,
        debounce_timeout_sec: float | None = None,
        queue: Queue | str | None = None,
        application_name: str | None = None,
    ) -> None:
        self._debouncing = Debouncing(
            workflow_name=workflow_name,
            queue_name=_name_of(queue),
            timeout_s=debounce_timeout_sec,
            application_name=application_name,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._debouncing.workflow_name}>"

    @overload
    @staticmethod
    def create(
        workflow: Callable[Q, Coroutine[Any, Any, T]],
        *,
        debounce_timeout_sec: float | None = None,
        queue: Queue | str | None = None,
        application_name: str | None = None,
    ) -> Debouncer[Q, T]: ...

    @overload
    @staticmethod
    def create(
        workflow: Callable[Q, T],
        *,
        debounce_timeout_sec: float | None = None,
        queue: Queue | str | None = None,
        application_name: str | None = None,
    ) -> Debouncer[Q, T]: ...

    @staticmethod
    def create(
        workflow: Callable[Q, Any],
        *,
        debounce_timeout_sec: float | None = None,
        queue: Queue | str | None = None,
        application_name: str | None = None,
    ) -> Debouncer[Q, Any]:
        """A debouncer of a workflow, whose calls are checked against its parameters; see :class:`Debouncer`.

        Args:
            workflow: A workflow: a function or a static method.
            debounce_timeout_sec: How long a group may be put off in all, in seconds from its first call.
            queue: The queue that the workflow runs in, or its name.
            application_name: The application whose workflow it is, by default this one.

        Raises:
            TypeError: ``workflow`` is a method of a class or an instance.
            DBOSWorkflowFunctionNotFoundError: ``workflow`` is no decorated workflow.
            DBOSException: another argument is not what it can be.
        """
        name = get_dbos_func_name(workflow)
        if getattr(workflow, "dbos_function_kind", "workflow") != "workflow":
            raise DBOSWorkflowFunctionNotFoundError("<NONE>", f"{name} is not a registered workflow function")
        info = get_func_info(workflow)
        if getattr(workflow, "__self__", None) is not None or (info is not None and needs_receiver(info)):
            raise refuse_method(name)
        debouncer = Debouncer(
            name, debounce_timeout_sec=debounce_timeout_sec, queue=queue, application_name=application_name
        )
        return cast(Debouncer[Q, Any], debouncer)

    @staticmethod
    def create_async(
        workflow: Callable[Q, Coroutine[Any, Any, T]],
        *,
        debounce_timeout_sec: float | None = None,
        queue: Queue | str | None = None,
        application_name: str | None = None,
    ) -> Debouncer[Q, T]:
        """A debouncer of a coroutine workflow; the same as :meth:`create`."""
        return Debouncer.create(
            workflow, debounce_timeout_sec=debounce_timeout_sec, queue=queue, application_name=application_name
        )

    def debounce(
        self, debounce_key: str, debounce_period_sec: float, *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandle[R]:
        """Call the workflow when no more calls with this key have come for a while. It is durable when this returns.

        In a workflow it is one operation, which happens exactly once.

        Args:
            debounce_key: The group of calls.
            debounce_period_sec: How long to wait for further calls from now on, in seconds, whatever earlier calls of
                the group have asked for.
            args: The workflow's arguments, unless another call comes.
            kwargs: Its keyword arguments, likewise.

        Returns:
            A handle of the workflow, the same for all calls of a group.

        Raises:
            DBOSException: key or period are not what they can be, or one of the options ``deduplication_id``,
                ``priority``, ``queue_partition_key``, ``delay_seconds`` or ``"return-existing"`` is set.
            TypeError: the workflow is a method of a class or an instance.
            DBOSWorkflowFunctionNotFoundError: there is no such workflow in this process.
            DBOSQueueDeduplicatedError: something else holds the deduplication id ``<workflow name>-<key>`` in the
                queue.
            DBOSConflictingWorkflowError: the workflow id that is set belongs to another function, class or instance.
        """
        engine = find_engine()
        flow = debounce(engine, self._debouncing, debounce_key, debounce_period_sec, args, kwargs)
        return EngineHandle(engine, drive(engine, flow))

    async def debounce_async(
        self, debounce_key: str, debounce_period_sec: float, *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandleAsync[R]:
        """Call the workflow when no more calls with this key have come for a while; see :meth:`debounce`."""
        engine = find_engine()
        flow = debounce(engine, self._debouncing, debounce_key, debounce_period_sec, args, kwargs)
        return EngineHandleAsync(engine, await drive_async(engine, flow))


class DebouncerClient:
    """A :class:`Debouncer` for a program that has no code of the application: a client and a workflow's name.

    Its calls and those of the application with the same workflow, key and queue are of the same groups.

    Args:
        client: The client.
        workflow_options: The workflow and what is to be set for it, as for :meth:`DBOSClient.enqueue`; without
            ``deduplication_id``, ``priority``, ``queue_partition_key``, ``delay_seconds`` and ``"return-existing"``. A
            ``workflow_id`` in it is that of the first group: once this has begun, further calls return it, and begin
            no other.
        debounce_timeout_sec: How long a group may be put off in all, in seconds from its first call; None or 0 for
            any time.
        queue: The queue that the workflow runs in, or its name; by default the one of ``workflow_options``.

    Raises:
        DBOSException: an argument is not what it can be.
        KeyError: ``workflow_options`` has no ``workflow_name`` or ``queue_name``.

    Example:
        ```python
        debouncer = DebouncerClient(client, {"workflow_name": "index_document", "queue_name": "indexing"})
        debouncer.debounce(document_id, 5.0, document_id, text)
        ```
    """

    def __init__(
        self,
        client: DBOSClient,
        workflow_options: EnqueueOptions,
        *,
        debounce_timeout_sec: float | None = None,
        queue: Queue | str | None = None,
    ) -> None:
        self._options = workflow_options.copy()
        self._debouncing = debouncing_of(workflow_options, _name_of(queue), debounce_timeout_sec)
        self._blocking = client._bridge.blocking_handle(debounce_from_outside, guarded=False)
        self._awaiting = client._bridge.awaiting_handle(debounce_from_outside)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._options['workflow_name']}>"

    def debounce(self, debounce_key: str, debounce_period_sec: float, *args: Any, **kwargs: Any) -> WorkflowHandle[Any]:
        """Call the workflow when no more calls with this key have come for a while. It is durable when this returns.

        It is never a step of a workflow, wherever it is called.

        Args:
            debounce_key: The group of calls.
            debounce_period_sec: How long to wait for further calls from now on, in seconds.
            args: The workflow's arguments, unless another call comes.
            kwargs: Its keyword arguments, likewise.

        Returns:
            A handle of the workflow, the same for all calls of a group.

        Raises:
            DBOSException: key or period are not what they can be.
            DBOSQueueDeduplicatedError: something else holds the deduplication id ``<workflow name>-<key>`` in the
                queue.
            DBOSConflictingWorkflowError: the workflow id belongs to another function, class or instance.
        """
        return self._blocking(self._debouncing, self._options, debounce_key, debounce_period_sec, args, kwargs)

    async def debounce_async(
        self, debounce_key: str, debounce_period_sec: float, *args: Any, **kwargs: Any
    ) -> WorkflowHandleAsync[Any]:
        """Call the workflow when no more calls with this key have come for a while; see :meth:`debounce`."""
        return await self._awaiting(self._debouncing, self._options, debounce_key, debounce_period_sec, args, kwargs)


def _name_of(queue: Queue | str | None) -> str | None:
    return queue if queue is None or isinstance(queue, str) else queue.name
