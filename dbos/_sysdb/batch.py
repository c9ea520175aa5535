"""A batch taken apart by kind, so that what is alike travels in one statement, and its results put back in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dbos._sysdb.operations import Call, Operation, RecordOutcome, RecordStep, StartWorkflow

__all__ = ["Groups", "in_groups"]

Groups = list[tuple[type, Sequence[Any]]]


def in_groups(operations: Sequence[Operation], execute: Callable[[Groups], list[list[Any]]]) -> list[Any]:
    """Have ``execute`` carry out the operations group by group; returns their results in the operations' order.

    The groups come in the order starts, steps, outcomes, calls: what a run records is written after its start, and a
    call sees all of it.
    """
    kind = type(operations[0])
    for operation in operations:
        if type(operation) is not kind:
            break
    else:
        return execute([(kind, operations)])[0]
    positions: dict[type, list[int]] = {StartWorkflow: [], RecordStep: [], RecordOutcome: [], Call: []}
    for position, operation in enumerate(operations):
        positions[type(operation)].append(position)
    groups: Groups = [
        (kind, [operations[position] for position in found]) for kind, found in positions.items() if found
    ]
    results: list[Any] = [None] * len(operations)
    for (kind, _), answers in zip(groups, execute(groups), strict=True):
        for position, answer in zip(positions[kind], answers, strict=True):
            results[position] = answer
    return results
