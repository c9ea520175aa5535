"""The table of operations.

They are declared, not written out: each is a flow of :mod:`dbos._operations`, in a blocking and in a coroutine form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, cast

from dbos import _queue
from dbos._engine import patching, timing
from dbos._operations import (
    archives,
    attributes,
    auditing,
    deletion,
    events,
    executors,
    forking,
    in_transactions,
    interventions,
    listing,
    messages,
    queues,
    retention,
    retrying,
    schedule_runs,
    schedule_views,
    schedules,
    statistics,
    streams,
    versions,
    workflows,
)
from dbos._process import (
    awaiting,
    awaiting_handle,
    awaiting_handles,
    awaiting_iterator,
    blocking,
    blocking_handle,
    blocking_handles,
    blocking_iterator,
    process,
)

__all__ = ["Operations"]


class Operations:
    """Each operation, as a function and as a coroutine function."""

    enqueue_in_transaction = staticmethod(blocking_handle(in_transactions.enqueue_in_transaction, guarded=False))
    send_in_transaction = staticmethod(blocking(in_transactions.send_in_transaction, guarded=False))
    send_bulk_in_transaction = staticmethod(blocking(in_transactions.send_bulk_in_transaction, guarded=False))
    retrieve_workflow = staticmethod(blocking_handle(workflows.retrieve_workflow))
    retrieve_workflow_async = staticmethod(awaiting_handle(workflows.retrieve_workflow))
    resume_workflow = staticmethod(blocking_handle(interventions.resume_workflow))
    resume_workflow_async = staticmethod(awaiting_handle(interventions.resume_workflow))
    resume_workflows = staticmethod(blocking_handles(interventions.resume_workflows))
    resume_workflows_async = staticmethod(awaiting_handles(interventions.resume_workflows))
    fork_workflow = staticmethod(blocking_handle(forking.fork_workflow))
    fork_workflow_async = staticmethod(awaiting_handle(forking.fork_workflow))
    retry_workflow = staticmethod(blocking_handle(retrying.retry_workflow))
    retry_workflow_async = staticmethod(awaiting_handle(retrying.retry_workflow))
    retry_workflows = staticmethod(blocking_handles(retrying.retry_workflows))
    retry_workflows_async = staticmethod(awaiting_handles(retrying.retry_workflows))
    get_workflow_status = staticmethod(blocking(workflows.get_workflow_status))
    get_workflow_status_async = staticmethod(awaiting(workflows.get_workflow_status))
    get_result = staticmethod(blocking(workflows.get_result))
    get_result_async = staticmethod(awaiting(workflows.get_result))
    list_workflows = staticmethod(blocking(listing.list_workflows))
    list_workflows_async = staticmethod(awaiting(listing.list_workflows))
    list_queued_workflows = staticmethod(blocking(listing.list_queued_workflows))
    list_queued_workflows_async = staticmethod(awaiting(listing.list_queued_workflows))
    list_workflow_steps = staticmethod(blocking(listing.list_workflow_steps))
    list_workflow_steps_async = staticmethod(awaiting(listing.list_workflow_steps))
    cancel_workflow = staticmethod(blocking(interventions.cancel_workflow))
    cancel_workflow_async = staticmethod(awaiting(interventions.cancel_workflow))
    cancel_workflows = staticmethod(blocking(interventions.cancel_workflows))
    cancel_workflows_async = staticmethod(awaiting(interventions.cancel_workflows))
    delete_workflow = staticmethod(blocking(deletion.delete_workflow))
    delete_workflow_async = staticmethod(awaiting(deletion.delete_workflow))
    delete_workflows = staticmethod(blocking(deletion.delete_workflows))
    delete_workflows_async = staticmethod(awaiting(deletion.delete_workflows))
    wait_first = staticmethod(blocking(workflows.wait_first))
    wait_first_async = staticmethod(awaiting(workflows.wait_first))
    update_workflow_attributes = staticmethod(blocking(attributes.update_workflow_attributes))
    update_workflow_attributes_async = staticmethod(awaiting(attributes.update_workflow_attributes))
    list_management_actions = staticmethod(blocking(auditing.list_management_actions))
    list_management_actions_async = staticmethod(awaiting(auditing.list_management_actions))
    set_workflow_delay = staticmethod(blocking(queues.set_workflow_delay))
    set_workflow_delay_async = staticmethod(awaiting(queues.set_workflow_delay))
    register_queue = staticmethod(blocking(_queue.register_queue))
    register_queue_async = staticmethod(awaiting(_queue.register_queue))
    retrieve_queue = staticmethod(blocking(_queue.retrieve_queue))
    retrieve_queue_async = staticmethod(awaiting(_queue.retrieve_queue))
    list_queues = staticmethod(blocking(_queue.list_queues))
    list_queues_async = staticmethod(awaiting(_queue.list_queues))
    delete_queue = staticmethod(blocking(_queue.delete_queue))
    delete_queue_async = staticmethod(awaiting(_queue.delete_queue))
    create_schedule = staticmethod(blocking(schedules.create_schedule))
    create_schedule_async = staticmethod(awaiting(schedules.create_schedule))
    update_schedule = staticmethod(blocking(schedules.update_schedule))
    update_schedule_async = staticmethod(awaiting(schedules.update_schedule))
    apply_schedules = staticmethod(blocking(schedules.apply_schedules))
    apply_schedules_async = staticmethod(awaiting(schedules.apply_schedules))
    get_schedule = staticmethod(blocking(schedule_views.get_schedule))
    get_schedule_async = staticmethod(awaiting(schedule_views.get_schedule))
    list_schedules = staticmethod(blocking(schedule_views.list_schedules))
    list_schedules_async = staticmethod(awaiting(schedule_views.list_schedules))
    pause_schedule = staticmethod(blocking(schedules.pause_schedule))
    pause_schedule_async = staticmethod(awaiting(schedules.pause_schedule))
    resume_schedule = staticmethod(blocking(schedules.resume_schedule))
    resume_schedule_async = staticmethod(awaiting(schedules.resume_schedule))
    delete_schedule = staticmethod(blocking(schedules.delete_schedule))
    delete_schedule_async = staticmethod(awaiting(schedules.delete_schedule))
    trigger_schedule = staticmethod(blocking_handle(schedule_runs.trigger_schedule))
    trigger_schedule_async = staticmethod(awaiting_handle(schedule_runs.trigger_schedule))
    backfill_schedule = cast(schedule_runs.Backfill, staticmethod(blocking_handles(schedule_runs.backfill_schedule)))
    backfill_schedule_async = cast(
        schedule_runs.BackfillAsync, staticmethod(awaiting_handles(schedule_runs.backfill_schedule))
    )
    preview_schedule = staticmethod(blocking(schedule_views.preview_schedule))
    preview_schedule_async = staticmethod(awaiting(schedule_views.preview_schedule))
    schedule_history = staticmethod(blocking(schedule_views.schedule_history))
    schedule_history_async = staticmethod(awaiting(schedule_views.schedule_history))
    count_workflows = staticmethod(blocking(statistics.count_workflows))
    count_workflows_async = staticmethod(awaiting(statistics.count_workflows))
    get_workflow_aggregates = staticmethod(blocking(statistics.get_workflow_aggregates))
    get_workflow_aggregates_async = staticmethod(awaiting(statistics.get_workflow_aggregates))
    get_metrics = staticmethod(blocking(statistics.get_metrics))
    get_metrics_async = staticmethod(awaiting(statistics.get_metrics))
    list_application_versions = staticmethod(blocking(versions.list_application_versions, guarded=False))
    list_application_versions_async = staticmethod(awaiting(versions.list_application_versions))
    get_latest_application_version = staticmethod(blocking(versions.get_latest_application_version, guarded=False))
    get_latest_application_version_async = staticmethod(awaiting(versions.get_latest_application_version))
    set_latest_application_version = staticmethod(blocking(versions.set_latest_application_version, guarded=False))
    set_latest_application_version_async = staticmethod(awaiting(versions.set_latest_application_version))
    list_executors = staticmethod(blocking(executors.list_executors))
    list_executors_async = staticmethod(awaiting(executors.list_executors))
    drain_executor = staticmethod(blocking(executors.drain_executor))
    drain_executor_async = staticmethod(awaiting(executors.drain_executor))
    undrain_executor = staticmethod(blocking(executors.undrain_executor))
    undrain_executor_async = staticmethod(awaiting(executors.undrain_executor))
    list_stranded_versions = staticmethod(blocking(executors.list_stranded_versions))
    list_stranded_versions_async = staticmethod(awaiting(executors.list_stranded_versions))
    list_stranded_queues = staticmethod(blocking(executors.list_stranded_queues))
    list_stranded_queues_async = staticmethod(awaiting(executors.list_stranded_queues))
    adopt_application_version = staticmethod(blocking(executors.adopt_application_version))
    adopt_application_version_async = staticmethod(awaiting(executors.adopt_application_version))
    export_workflow = staticmethod(blocking(archives.export_workflow))
    export_workflow_async = staticmethod(awaiting(archives.export_workflow))
    import_workflow = staticmethod(blocking(archives.import_workflow))
    import_workflow_async = staticmethod(awaiting(archives.import_workflow))
    run_retention = staticmethod(blocking(retention.run_retention))
    run_retention_async = staticmethod(awaiting(retention.run_retention))
    send = staticmethod(blocking(messages.send))
    send_async = staticmethod(awaiting(messages.send))
    send_bulk = staticmethod(blocking(messages.send_bulk))
    send_bulk_async = staticmethod(awaiting(messages.send_bulk))
    recv = staticmethod(blocking(messages.recv))
    recv_async = staticmethod(awaiting(messages.recv))
    set_event = staticmethod(blocking(events.set_event))
    set_event_async = staticmethod(awaiting(events.set_event))
    get_event = staticmethod(blocking(events.get_event))
    get_event_async = staticmethod(awaiting(events.get_event))
    get_all_events = staticmethod(blocking(events.get_all_events))
    get_all_events_async = staticmethod(awaiting(events.get_all_events))
    write_stream = staticmethod(blocking(streams.write_stream))
    write_stream_async = staticmethod(awaiting(streams.write_stream))
    close_stream = staticmethod(blocking(streams.close_stream))
    close_stream_async = staticmethod(awaiting(streams.close_stream))
    read_stream = staticmethod(blocking_iterator(streams.read_stream))
    read_stream_async = staticmethod(awaiting_iterator(streams.read_stream))
    read_stream_offset = staticmethod(blocking(streams.read_stream_offset))
    read_stream_offset_async = staticmethod(awaiting(streams.read_stream_offset))
    sleep = staticmethod(blocking(timing.sleep))
    sleep_async = staticmethod(awaiting(timing.sleep))
    patch = staticmethod(blocking(patching.patch))
    patch_async = staticmethod(awaiting(patching.patch))
    deprecate_patch = staticmethod(blocking(patching.deprecate_patch))
    deprecate_patch_async = staticmethod(awaiting(patching.deprecate_patch))

    @classmethod
    async def asyncio_wait(
        cls,
        fs: Iterable[Awaitable[Any]],
        *,
        timeout: float | None = None,
        return_when: str = asyncio.ALL_COMPLETED,
    ) -> tuple[set[asyncio.Future[Any]], set[asyncio.Future[Any]]]:
        """``asyncio.wait`` for workflows: which awaitables were done is recorded, so that replay takes the same way.

        Args:
            fs: Awaitables; coroutines become tasks. Of the sets, only those that an earlier wait returned.
            timeout: How long to wait, in seconds; None for as long as it takes.
            return_when: ``asyncio.FIRST_COMPLETED``, ``FIRST_EXCEPTION`` or ``ALL_COMPLETED``.

        Returns:
            The sets of awaitables that are done and that are pending.
        """
        engine = process.registry.engine
        return await timing.asyncio_wait(engine, fs, timeout=timeout, return_when=return_when)
