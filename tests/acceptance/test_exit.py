"""How a process ends that still has workflows running: promptly, and with nothing failed or lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig

APPLICATION = """
import json, sys
from dbos import DBOS, SetWorkflowID

config, ending = json.loads(sys.argv[1]), sys.argv[2]
DBOS(config=config)

@DBOS.step()
def step(number):
    return number

@DBOS.workflow()
def child(number):
    return step(number)

@DBOS.workflow()
def parent(count):
    results = []
    for number in range(count):
        results.append(DBOS.start_workflow(child, number).get_result())
        if number == 0:
            print("begun", flush=True)
            DBOS.sleep(3600)
    return results

DBOS.launch()
with SetWorkflowID("parent"):
    handle = DBOS.start_workflow(parent, 3)
if ending == "wait":
    handle.get_result()
sys.stdin.readline()
if ending == "raise":
    raise ValueError("main ends with an error")
"""


def run(config: DBOSConfig, ending: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPLICATION, json.dumps(config), ending]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("ending", ["return", "raise", "interrupt"])
def test_a_process_that_ends_leaves_its_workflows_pending(config: DBOSConfig, ending: str) -> None:
    with run(config, "wait" if ending == "interrupt" else ending) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        if ending == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            process.stdin.write("\n")
            process.stdin.flush()
        process.wait(60)

    DBOS.destroy(destroy_registry=True)
    DBOS(config={**config, "application_version": "another, so that it recovers nothing"})
    DBOS.launch()
    status: Any = DBOS.get_workflow_status("parent")
    children = DBOS.list_workflows(parent_workflow_id="parent")
    DBOS.destroy(destroy_registry=True)

    assert status.status == "PENDING"
    assert [each.status for each in children] == ["SUCCESS"]
