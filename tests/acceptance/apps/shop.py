"""An application of every kind of workflow there is, told over its standard input what to do.

Run as ``python -m tests.acceptance.apps.shop SETTINGS``; a command is a line of JSON, and so is its answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from dbos import DBOS, DBOSConfiguredInstance, DBOSContextSetAuth, SetWorkflowID, SetWorkflowTimeout
from dbos import WorkflowSerializationFormat as Format
from tests.acceptance.apps import failing_disk, queued, scheduled
from tests.acceptance.apps.instants import SETTINGS, body, instant, watch_checkpoints, watch_commits

WITHOUT = set(SETTINGS["without"])  # what a new release of the application has not (yet)

DBOS(config=SETTINGS["config"])


# -- steps -------------------------------------------------------------------------------------------------------------


@DBOS.step()
def first(n: int) -> str:
    with body("first"):
        return f"first {n}"


@DBOS.step()
def second(n: int) -> str:
    with body("second"):
        return f"second {n}"


@DBOS.step()
async def first_async(n: int) -> str:
    with body("first_async"):
        await asyncio.sleep(0)
        return f"first {n}"


@DBOS.step()
async def second_async(n: int) -> str:
    with body("second_async"):
        await asyncio.sleep(0)
        return f"second {n}"


@DBOS.transaction()
def enter(n: int) -> str:
    with body("enter"):
        DBOS.sql_session.execute(
            sa.text("INSERT INTO ledger (workflow_id, n) VALUES (:id, :n)"), {"id": DBOS.workflow_id, "n": n}
        )
        return f"entered {n}"


# -- workflows ---------------------------------------------------------------------------------------------------------


@DBOS.workflow()
def plain(n: int) -> list[str]:
    instant("workflow:begin")
    results = [first(n)]
    instant("workflow:between")
    results.append(second(n))
    instant("workflow:end")
    return results


@DBOS.workflow()
async def coroutine(n: int) -> list[str]:
    instant("workflow:begin")
    results = [await first_async(n)]
    instant("workflow:between")
    results += await asyncio.gather(second_async(n), first_async(n + 1))
    instant("workflow:end")
    return results


@DBOS.workflow()
def ledger(n: int) -> list[str]:
    return [first(n), enter(n), second(n)]


@DBOS.workflow()
def entry(n: int) -> str:
    instant("entry:begin")
    return enter(n)


@DBOS.workflow()
def parent(n: int) -> list[Any]:
    handles = [DBOS.start_workflow(plain, n + each) for each in range(3)]
    instant("workflow:started-children")
    results: list[Any] = [handle.get_result() for handle in handles]
    return [*results, plain(n + 3)]


@DBOS.workflow()
async def coroutine_parent(n: int) -> list[Any]:
    handles = [await DBOS.start_workflow_async(coroutine, n + each) for each in range(3)]
    results = [await handle.get_result() for handle in handles]
    return [*results, await coroutine(n + 3)]


@DBOS.workflow()
def patient(seconds: float) -> str:
    DBOS.sleep(seconds)
    return first(1)


@DBOS.workflow(max_recovery_attempts=2)
def poison() -> None:
    instant("poison:begin")
    os._exit(7)


@DBOS.required_roles(["manager", "admin"])
@DBOS.workflow(serialization_type=Format.PORTABLE)
def context(**extra: int) -> dict[str, Any]:
    first(0)
    return {
        "user": DBOS.authenticated_user,
        "roles": DBOS.authenticated_roles,
        "role": DBOS.assumed_role,
        "extra": extra,
    }


@DBOS.step()
def count_up(n: int) -> int:
    instant("count_up:begin")
    return n + 1


@DBOS.workflow()
def busy(steps: int) -> int:
    n = 0
    for number in range(1, steps + 1):
        n = count_up(n)
        instant(f"acked:{number}")
    return n


@DBOS.step()
def pass_gate(gate: str) -> str:
    instant("gated:begin")
    while not os.path.exists(gate):
        time.sleep(0.005)
    instant("gated:end")
    return f"passed in {os.getpid()}"


@DBOS.workflow()
def gated(gate: str) -> str:
    return pass_gate(gate)


@DBOS.step()
async def pass_gate_async(gate: str) -> str:
    instant("gated:begin")
    while not os.path.exists(gate):
        await asyncio.sleep(0.005)
    instant("gated:end")
    return f"passed in {os.getpid()}"


@DBOS.workflow()
async def gated_async(gate: str) -> str:
    return await pass_gate_async(gate)


@DBOS.workflow()
def waits_for(workflow_id: str) -> Any:
    instant("waits_for:begin")
    return DBOS.get_result(workflow_id)


def define_tally() -> Callable[..., Any]:
    @DBOS.workflow(name="tally")
    def tally(n: int) -> str:
        return first(n)

    return tally


def define_archive() -> type:
    @DBOS.dbos_class(class_name="Archive")
    class Archive:
        @staticmethod
        @DBOS.workflow(name="Archive.static")
        def static(n: int) -> str:
            return first(n)

        @classmethod
        @DBOS.workflow(name="Archive.of_class")
        def of_class(cls, n: int) -> list[str]:
            return [cls.__name__, first(n), second(n)]

    return Archive


@DBOS.dbos_class()
class Warehouse(DBOSConfiguredInstance):
    def __init__(self, place: str) -> None:
        super().__init__(config_name=place)
        self.place = place

    @DBOS.workflow()
    def ship(self, n: int) -> list[str]:
        return [self.place, self.pack(n), second(n)]

    @DBOS.step()
    def pack(self, n: int) -> str:
        with body("pack"):
            return f"packed {n} in the {self.place}"

    @DBOS.workflow()
    async def ship_async(self, n: int) -> list[str]:
        return [self.place, await first_async(n), await second_async(n)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "plain": plain,
    "coroutine": coroutine,
    "ledger": ledger,
    "entry": entry,
    "parent": parent,
    "coroutine_parent": coroutine_parent,
    "patient": patient,
    "poison": poison,
    "context": context,
    "waits_for": waits_for,
    "busy": busy,
    "gated": gated,
    "gated_async": gated_async,
    "first": first,
    "enter": enter,
    **queued.FUNCTIONS,
}


def register(what: str) -> None:
    """Define a part of the application that comes and goes."""
    if what == "tally":
        FUNCTIONS["tally"] = define_tally()
    elif what == "archive":
        archive: Any = define_archive()
        FUNCTIONS["static"] = archive.static
        FUNCTIONS["of_class"] = archive.of_class
    else:
        warehouse = Warehouse(what)
        FUNCTIONS[f"{what}.ship"] = warehouse.ship
        FUNCTIONS[f"{what}.ship_async"] = warehouse.ship_async


# -- commands ----------------------------------------------------------------------------------------------------------


def start(function: str, id: str, args: list[Any], kwargs: dict[str, Any], options: dict[str, Any]) -> None:
    with DBOSContextSetAuth(options.get("user"), options.get("roles")), SetWorkflowID(id):
        if "timeout_s" in options:
            with SetWorkflowTimeout(options["timeout_s"]):
                DBOS.start_workflow(FUNCTIONS[function], *args, **kwargs)
        else:
            DBOS.start_workflow(FUNCTIONS[function], *args, **kwargs)


def result(id: str) -> Any:
    try:
        return {"value": DBOS.retrieve_workflow(id).get_result()}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


def call(function: str, id: str, args: list[Any]) -> Any:
    """Run a workflow right here, in the main thread."""
    instant("call:begin", id)
    with SetWorkflowID(id):
        return FUNCTIONS[function](*args)


def call_until_interrupted(function: str, id: str, args: list[Any]) -> Any:
    """Run a workflow in the main thread of a process that survives Ctrl-C."""
    try:
        return call(function, id, args)
    except KeyboardInterrupt:
        return "interrupted"


def status(id: str) -> str:
    return DBOS.retrieve_workflow(id).get_status().status


def instance() -> str:
    """The id of this executor instance."""
    from dbos._process import find_engine

    return find_engine().instance_id


def fork() -> str:
    """What a child of this process meets when it calls a workflow."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(plain(1))
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        try:
            DBOS.destroy()
        except BaseException as error:
            answer += f" / destroy: {type(error).__name__}: {error}"
        os.write(writable, answer.encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


def fork_workflow(id: str) -> str:
    return DBOS.fork_workflow(id, 1).workflow_id


def is_draining() -> bool:
    from dbos._process import find_engine

    return find_engine().is_draining


def destroy() -> None:
    DBOS.destroy()


COMMANDS: dict[str, Callable[..., Any]] = {
    "start": start,
    "result": result,
    "call": call,
    "call_until_interrupted": call_until_interrupted,
    "status": status,
    "instance": instance,
    "register": register,
    "fork": fork,
    "fork_workflow": fork_workflow,
    "drain": lambda instance: DBOS.drain_executor(instance),
    "undrain": lambda instance: DBOS.undrain_executor(instance),
    "is_draining": is_draining,
    "destroy": destroy,
    **queued.commands(FUNCTIONS),
    **scheduled.COMMANDS,
}


def answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    for what in ("tally", "archive", "north", "south"):
        if what not in WITHOUT:
            register(what)
    if SETTINGS["watches_commits"]:
        watch_commits()
    if SETTINGS["failing_disk"] is not None:
        failing_disk.install(SETTINGS["failing_disk"])
    if SETTINGS["checkpoint_bytes"] is not None:
        watch_checkpoints(SETTINGS["checkpoint_bytes"])
    if SETTINGS["handles_sigterm"]:  # an application that ends in an orderly way when it is told to
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if SETTINGS["listens_to"] is not None:
        DBOS.listen_queues(SETTINGS["listens_to"])
    DBOS.launch()
    answer("launched")
    try:
        for line in sys.stdin:
            name, arguments = json.loads(line)
            command = COMMANDS[name]
            if name == "result":  # may take long; commands go on meanwhile
                threading.Thread(target=lambda id: answer(result(id)), kwargs=arguments, daemon=True).start()
            else:
                answer(command(**arguments))
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main()
