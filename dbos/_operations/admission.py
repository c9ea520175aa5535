"""What is checked before a workflow enters a queue, be it enqueued, forked or resumed.

What has no partition key in a partitioned queue is most likely a mistake, and is refused where the queue is known. What
gets there all the same, because the queue was partitioned later or was not known, is served as one more partition.
"""

from __future__ import annotations

from collections.abc import Mapping

from dbos._engine.engine import Engine
from dbos._engine.flow import Flow
from dbos._operations import registered_queues
from dbos._queue_config import QueueConfig, checked_key, checked_queue_name
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE

__all__ = ["check_partition", "checked_place", "known_config"]


def checked_place(queue_name: str | None, partition_key: str | None) -> tuple[str, str | None]:
    """A queue, by default the library's own, and a partition key in it, as they are stored.

    Raises:
        DBOSException: one of them cannot be stored, or the queue's name is blank.
    """
    name = INTERNAL_QUEUE if queue_name is None else checked_queue_name(queue_name)
    return name, None if partition_key is None else checked_key("queue_partition_key", partition_key)


def known_config(engine: Engine, queue_name: str) -> Flow[QueueConfig | None]:
    """What a queue allows, be it declared in this process or registered in the database; None for an unknown one."""
    if queue_name == INTERNAL_QUEUE:
        return QueueConfig(name=INTERNAL_QUEUE, has_priorities=True)
    declared: Mapping[str, QueueConfig] = engine.registry.queues
    if queue_name in declared:
        return declared[queue_name]
    return (yield from registered_queues.find_config(engine, queue_name))


def check_partition(config: QueueConfig, key: str | None) -> None:
    """Refuse a workflow without a partition key in a partitioned queue, and one with a key in any other.

    Raises:
        Exception: the queue does not allow it.
    """
    if config.is_partitioned and key is None:
        raise Exception(f"A workflow cannot be enqueued on partitioned queue {config.name} without a partition key")
    if key is not None and not config.is_partitioned:
        raise Exception(
            f"You can only use a partition key on a partition-enabled queue. Key {key} was used with non-partitioned "
            f"queue {config.name}"
        )
