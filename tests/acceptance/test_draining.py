"""Processes that are told to end, replaced one by one, cut off from their database, or forked: real ones, each time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbos import DBOSConfig
from dbos.testing._postgres_server import Cluster
from tests.acceptance.harness import ROOT, Application, Stage, stages, until

LEASE_S = 1


def is_draining(application: Application) -> bool:
    return "SIGTERM: shutting down" in application.messages


def test_sigterm_hands_over_at_once_and_ends_the_process_by_the_signal(stage: Stage) -> None:
    """Under names of their own, as pods have, and a lease that nobody would wait for."""
    leaving = stage.launch(handles_sigterm=False, executor_id="pod-1", lease_s=600, hold=["first:begin"])
    leaving.start("patient", "waiting", 2.0)
    leaving.start("plain", "stepping", 1)
    leaving.reached("first:begin")
    staying = stage.launch(executor_id="pod-2", lease_s=600)

    leaving.send_signal(signal.SIGTERM)
    until(lambda: is_draining(leaving), "the shutdown to begin")
    stage.release.touch()  # the step ends within the grace, and is recorded

    assert leaving.ended() == -signal.SIGTERM
    assert staying.result("waiting") == "first 1"
    assert staying.result("stepping") == ["first 1", "second 1"]
    assert stage.begun() == {("waiting", 2): 1, ("stepping", 1): 1, ("stepping", 2): 1}
    assert stage.column("executor_id", "stepping") == "pod-2"
    assert stage.rows("SELECT executor_id FROM dbos.executor_instances") == [("pod-2",)]


def test_a_step_that_is_recorded_during_the_shutdown_leaves_its_workflow_with_its_executor(stage: Stage) -> None:
    """Alone, so that nobody takes over: the next launch under that name finds it."""
    leaving = stage.launch(handles_sigterm=False, executor_id="pod-1", hold=["first:begin"])
    leaving.start("plain", "w", 1)
    leaving.reached("first:begin")

    leaving.send_signal(signal.SIGTERM)
    until(lambda: is_draining(leaving), "the shutdown to begin")
    stage.release.touch()

    assert leaving.ended() == -signal.SIGTERM
    assert (stage.status("w"), stage.column("executor_id", "w")) == ("PENDING", "pod-1")
    assert stage.rows("SELECT function_id FROM dbos.operation_outputs") == [(1,)]
    following = stage.launch(executor_id="pod-1")
    assert following.result("w") == ["first 1", "second 1"]
    assert stage.begun() == {("w", 1): 1, ("w", 2): 1}


def test_a_graceful_shutdown_lets_workflows_end_keeps_its_lease_and_takes_nothing_new(stage: Stage) -> None:
    leaving = stage.launch(handles_sigterm=False, lease_s=LEASE_S, graceful_shutdown_timeout_sec=60)
    staying = stage.launch(lease_s=LEASE_S)
    leaving.start("gated", "w", str(stage.gate))
    until(lambda: stage.count("gated:begin") == 1, "the step to begin")
    instance = stage.column("owner_instance", "w")

    def heartbeat() -> int:
        rows = stage.rows(f"SELECT heartbeat FROM dbos.executor_instances WHERE instance_id = '{instance}'")
        return int(rows[0][0])

    leaving.send_signal(signal.SIGTERM)
    until(lambda: is_draining(leaving), "the shutdown to begin")
    before = heartbeat()
    leaving.send_signal(signal.SIGTERM)  # is not fatal to it
    staying.start("plain", "done", 1)
    staying.result("done")
    forks = [staying.ask("fork_workflow", id="done") for _ in range(10)]
    results = [staying.result(fork) for fork in forks]
    until(lambda: heartbeat() >= before + 5, "more than a lease to pass")
    owner = stage.column("owner_instance", "w")
    stage.gate.touch()

    assert leaving.ended() == -signal.SIGTERM
    assert results == [["first 1", "second 1"]] * 10
    assert {effect.process for effect in stage.effects() if effect.workflow_id in forks} == {staying.pid}
    assert owner == instance
    assert stage.status("w") == "SUCCESS"
    assert stage.count("gated:begin") == 1


def test_a_rolling_restart_under_one_executor_id_strands_nothing(stage: Stage) -> None:
    """The new process comes while the old one drains, and the old one does not finish in time."""
    old = stage.launch(handles_sigterm=False, lease_s=600, graceful_shutdown_timeout_sec=1)
    old.start("gated", "w", str(stage.gate))
    until(lambda: stage.count("gated:begin") == 1, "the step to begin")
    old.send_signal(signal.SIGTERM)
    until(lambda: is_draining(old), "the shutdown to begin")

    new = stage.launch(lease_s=600)

    assert old.ended() == -signal.SIGTERM
    until(lambda: stage.count("gated:begin") == 2, "the new process to go on")
    stage.gate.touch()
    assert new.result("w") == f"passed in {new.pid}"
    assert stage.column("recovery_attempts", "w") == 2


def test_a_process_whose_main_thread_ends_meanwhile_is_shut_down_all_the_same(stage: Stage) -> None:
    leaving = stage.launch(handles_sigterm=False, graceful_shutdown_timeout_sec=60)
    leaving.start("gated", "w", str(stage.gate))
    until(lambda: stage.count("gated:begin") == 1, "the step to begin")

    leaving.send_signal(signal.SIGTERM)
    until(lambda: is_draining(leaving), "the shutdown to begin")
    leaving.end_input()
    stage.gate.touch()

    assert leaving.ended() == -signal.SIGTERM
    assert stage.status("w") == "SUCCESS"
    assert stage.rows("SELECT * FROM dbos.executor_instances") == []


def test_an_executor_is_drained_from_another_process(stage: Stage) -> None:
    drained, other = stage.launch(), stage.launch()
    drained.start("gated", "w", str(stage.gate))
    other.start("plain", "done", 1)
    other.result("done")
    instance = drained.ask("instance")

    other.ask("drain", instance=instance)
    forks = [other.ask("fork_workflow", id="done") for _ in range(10)]
    results = [other.result(fork) for fork in forks]

    assert results == [["first 1", "second 1"]] * 10
    assert {effect.process for effect in stage.effects() if effect.workflow_id in forks} == {other.pid}
    until(lambda: drained.ask("is_draining"), "the executor to know")
    assert stage.status("w") == "PENDING"
    stage.gate.touch()
    assert drained.result("w") == f"passed in {drained.pid}"
    assert other.close() == 0
    assert drained.ask("undrain", instance=instance) is None
    assert drained.result(drained.ask("fork_workflow", id="done")) == ["first 1", "second 1"]


@pytest.mark.postgres
def test_an_outage_of_the_database_that_is_longer_than_the_lease_kills_nobody(
    tmp_path: Path, private_postgres: Cluster
) -> None:
    stage = next(stages(tmp_path, private_postgres.url("postgres")))
    try:
        crew = [stage.launch(lease_s=LEASE_S, log_level="ERROR") for _ in range(3)]
        for number, each in enumerate(crew):
            each.start("gated", f"w-{number}", str(stage.gate))
        until(lambda: stage.count("gated:begin") == 3, "the steps to begin")
        before = beats(stage)

        private_postgres.stop("fast")
        time.sleep(3 * LEASE_S)  # an outage is time that passes
        private_postgres.start()
        # Renewals come three times in a lease: this is two leases in which everybody could have judged everybody.
        until(lambda: min(beats(stage).values()) >= max(before.values()) + 6, "everybody to be heard of again")
        after = beats(stage)
        stage.gate.touch()

        assert after.keys() == before.keys()
        assert [each.result(f"w-{number}") for number, each in enumerate(crew)] == [
            f"passed in {each.pid}" for each in crew
        ]
        assert stage.count("gated:begin") == 3
    finally:
        stage.close()


def beats(stage: Stage) -> dict[str, int]:
    """How often each executor was heard of; one that is gone, or came anew, makes another set of keys."""
    try:
        return dict(stage.rows("SELECT instance_id, heartbeat FROM dbos.executor_instances"))
    except psycopg.OperationalError:
        return {"nobody can be asked": 0}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize(
    ("how", "child"),
    [
        ("by_multiprocessing", [[True, 2], 0]),
        ("by_terminating", -signal.SIGTERM),
        ("by_os_fork", 3),
        ("by_signal_to_itself", -signal.SIGTERM),
    ],
)
def test_a_child_that_is_forked_shares_nothing_with_its_parent(config: DBOSConfig, how: str, child: Any) -> None:
    command = [sys.executable, "-m", "tests.acceptance.apps.preloader", json.dumps(config), how]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)

    assert ended.stdout, ended.stderr
    assert json.loads(ended.stdout) == {"child": child, "works": True, "alive": True}
    assert ended.returncode == -signal.SIGTERM
    assert "Traceback" not in ended.stderr
