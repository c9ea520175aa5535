"""A process that launches DBOS and forks then, as servers do that load an application first, and multiprocessing.

Run as ``python -m tests.acceptance.apps.preloader CONFIG HOW``: prints what became of the child, and what the parent
can do after that, as a line of JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from typing import Any

from dbos import DBOS

CONFIG, HOW = json.loads(sys.argv[1]), sys.argv[2]

DBOS(config=CONFIG)


@DBOS.step()
def step() -> int:
    return os.getpid()


@DBOS.workflow()
def workflow() -> int:
    return step()


def relaunch(answers: Any) -> None:
    DBOS.destroy()
    DBOS(config=CONFIG)
    DBOS.launch()
    answers.send([workflow() == os.getpid(), len(DBOS.list_executors())])
    DBOS.destroy()


def by_multiprocessing() -> Any:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=relaunch, args=(sender,))
    child.start()
    answer = receiver.recv()
    child.join()
    return [answer, child.exitcode]


def by_terminating() -> Any:
    """A child that uses nothing, and is told to end."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
    child.start()
    child.terminate()
    child.join()
    return child.exitcode


def by_os_fork() -> Any:
    """A child that ends as a script does: its exit handlers run, and its objects are finalized."""
    pid = os.fork()
    if pid == 0:
        sys.exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def by_signal_to_itself() -> Any:
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3600)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    DBOS.launch()
    before = workflow()
    answer = globals()[HOW]()
    after = [workflow() for _ in range(20)]
    alive = [each["pid"] for each in DBOS.list_executors()]
    print(json.dumps({"child": answer, "works": {before, *after} == {os.getpid()}, "alive": alive == [os.getpid()]}))
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGTERM)  # the handler is still the parent's
    time.sleep(60)


if __name__ == "__main__":
    main()
