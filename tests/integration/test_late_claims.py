"""A claim that has to wait, for the lock of a file or for a server to come back, begins when it is made.

A long run found it: on a busy SQLite file, twice as many workflows began within a period as its rate limit allows,
because their claims were counted from when they had been asked for.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from dbos import DBOS, Queue, SetWorkflowTimeout
from dbos._engine.claims import claim_from_queue
from dbos._engine.flow import Commit
from dbos._process import find_engine
from dbos._queue import QueueRateLimit
from dbos._sysdb.operations import Call

WAIT_S = 0.05
TIMEOUT_S = 60.0


@pytest.mark.parametrize("limiter", [None, {"limit": 5, "period": 60.0}])
def test_a_claim_counts_from_when_it_is_made(dbos: type[DBOS], limiter: QueueRateLimit | None) -> None:
    queue = Queue("late", limiter=limiter)

    @DBOS.workflow()
    def work() -> None:
        """Does nothing."""

    DBOS.listen_queues([])
    DBOS.launch()
    with SetWorkflowTimeout(TIMEOUT_S):
        queue.enqueue(work)
    engine = find_engine()
    flow = claim_from_queue(engine, engine.registry.queues["late"], 1)
    effect: Any = next(flow)
    assert isinstance(effect, Commit)
    [claim] = effect.operations
    assert isinstance(claim, Call)

    time.sleep(WAIT_S)
    made_ms = engine.db.now_ms()
    [row] = engine.db.change(claim.verb, *claim.arguments).rows
    flow.close()

    slack_ms = WAIT_S * 1000 / 2  # what a process knows of a server's time is not exact
    assert row.started_at_epoch_ms >= made_ms - slack_ms
    assert row.workflow_deadline_epoch_ms >= made_ms - slack_ms + TIMEOUT_S * 1000
