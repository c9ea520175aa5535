"""What happens at a call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from dbos import DBOS, SetWorkflowID
from dbos._ids import new_token
from dbos._operations.lifecycle import Runtime
from dbos._process import process as _process
from dbos._sysdb.operations import RecordStep, StartWorkflow
from tests.failpoints.failpoints import Call, Failpoints, Fault
from tests.failpoints.stage import Rival, engine

__all__ = ["FAULTS", "RIVALS", "Scene", "pass_time", "runtime"]

REFUSED_CONNECTIONS = 2  # so often a lost connection cannot be made anew
HOLD_S = 0.01  # how long a call is held up for others, who may have to wait for it
RIVAL_S = 20.0  # how long a rival may take to be first
LOCKED_RIVAL_S = 0.05  # the same within a transaction, whose locks a rival may have to wait for


def runtime() -> Runtime:
    assert _process.runtime is not None
    return _process.runtime


def pass_time() -> None:
    """Have every service do its next round now."""
    up = _process.runtime
    if up is not None:
        for service in up._services():
            service.wake()


def recover_others() -> None:
    """Take over what the dead have left."""
    DBOS._recover_pending_workflows([])


class Scene:
    """One run with one fault: what else goes on in its process, and what another process does."""

    def __init__(
        self, failpoints: Failpoints, rival: Rival | None, subject: str, neighbour: Callable[[], Any] | None
    ) -> None:
        self.failpoints = failpoints
        self.subject = subject
        self.neighbour_id = f"neighbour.of.{subject}"
        self._rival = rival
        self._neighbour = neighbour
        self._threads: list[threading.Thread] = []
        self.on_fault: Callable[[], None] = lambda: None

    @property
    def rival(self) -> Rival:
        assert self._rival is not None
        return self._rival

    @property
    def has_neighbour(self) -> bool:
        return self._neighbour is not None

    def meanwhile(self, func: Callable[[], object], patience_s: float) -> None:
        """Do something in another thread; wait a moment for it to be done, which it may be only later."""
        thread = threading.Thread(target=func, name="meanwhile")
        thread.start()
        self._threads.append(thread)
        thread.join(patience_s)

    def start_neighbour(self) -> None:
        """Start a workflow that has nothing to do with the run, and must not be hurt by what happens to it."""
        assert self._neighbour is not None
        with SetWorkflowID(self.neighbour_id):
            DBOS.start_workflow(self._neighbour)

    def end(self, patience_s: float) -> None:
        """Wait until everything has been done."""
        for thread in self._threads:
            thread.join(patience_s)
            assert not thread.is_alive(), "somebody else still waits for the database"


class _SceneFault(Fault):
    patience_s = 0.0  # how long the neighbour is waited for

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def before(self, call: Call) -> None:
        self.scene.on_fault()
        if self.scene.has_neighbour:
            self.scene.meanwhile(self.scene.start_neighbour, self.patience_s)
        self.happen(call)

    def happen(self, call: Call) -> None:
        """What happens before the call."""


class LostBefore(_SceneFault):
    """The connection is lost, and cannot be made anew at once; nothing has been done."""

    def happen(self, call: Call) -> None:
        self.scene.failpoints.refuse(REFUSED_CONNECTIONS)
        call.link.cut()


class LostAfter(_SceneFault):
    """It is done, and the connection is lost before the answer comes."""

    def after(self, call: Call) -> None:
        self.scene.failpoints.refuse(REFUSED_CONNECTIONS)
        call.link.lose()


class Contended(_SceneFault):
    """Somebody else was first, says the database: a deadlock, a busy file."""

    def happen(self, call: Call) -> None:
        call.link.contend()


class Delayed(_SceneFault):
    """Others go on, or queue up, while the call is held up."""

    patience_s = HOLD_S

    def before(self, call: Call) -> None:
        pass_time()
        super().before(call)


class _RivalFault(_SceneFault):
    def happen(self, call: Call) -> None:
        def act() -> None:
            self.act(call)
            runtime()._on_wakeup(None)  # as if another process had told

        self.scene.meanwhile(act, LOCKED_RIVAL_S if call.label.startswith("transaction") else RIVAL_S)

    def act(self, call: Call) -> None:
        raise NotImplementedError


class Cancelled(_RivalFault):
    """Another process cancels the workflow."""

    def act(self, call: Call) -> None:
        self.scene.rival.cancel(self.scene.subject, engine().db.now_ms())


class _Superseding(_RivalFault):
    """What the run does from here on must be refused."""


class Resumed(_Superseding):
    """Another process cancels the workflow and resumes it, so that a second run of it begins here."""

    def act(self, call: Call) -> None:
        self.scene.rival.resume(self.scene.subject, engine().db.now_ms())


class Claimed(_Superseding):
    """Another process resumes the workflow, begins a run of it, and dies."""

    def act(self, call: Call) -> None:
        self.scene.rival.claim(self.scene.subject, new_token(), engine().db.now_ms())
        self.scene.meanwhile(recover_others, 0)


class TakenOver(_Superseding):
    """Another process declares this one dead and enqueues what it was running."""

    def act(self, call: Call) -> None:
        self.scene.rival.take_over(engine().instance_id, engine().db.now_ms())


class RecordedFirst(_RivalFault):
    """The step is recorded before, with another result."""

    def act(self, call: Call) -> None:
        for operation in call.operations:
            if isinstance(operation, RecordStep) and operation.workflow_uuid.startswith(self.scene.subject):
                is_sleep = operation.function_name == "DBOS.sleep"
                self.scene.rival.record(operation, operation.output if is_sleep else '"rival"')


class StartedFirst(_RivalFault):
    """Another process starts the workflow under the same id, and dies."""

    def act(self, call: Call) -> None:
        for operation in call.operations:
            if isinstance(operation, StartWorkflow) and operation.workflow_uuid.startswith(self.scene.subject):
                self.scene.rival.start(operation, new_token())
        self.scene.meanwhile(recover_others, 0)


FAULTS: dict[str, type[_SceneFault]] = {
    "lost before": LostBefore,
    "lost after": LostAfter,
    "contended": Contended,
    "delayed": Delayed,
}

RIVALS: dict[str, type[_SceneFault]] = {
    "cancelled": Cancelled,
    "resumed": Resumed,
    "claimed": Claimed,
    "taken over": TakenOver,
    "recorded first": RecordedFirst,
    "started first": StartedFirst,
}
