"""Several processes on one database, that come and go, hang and wake: who runs what, and who must not."""

from __future__ import annotations

import signal

import pytest

from tests.acceptance.harness import Application, Stage, until

RESULT = ["first 1", "second 1"]


def test_two_live_processes_of_one_executor_id_leave_each_others_work_alone(stage: Stage) -> None:
    running = stage.launch(hold=["first:begin"])
    running.start("plain", "w", 1)
    running.reached("first:begin")

    other = stage.launch()
    other.start("plain", "v", 1)
    assert other.result("v") == RESULT
    restarted = stage.launch()
    restarted.start("plain", "u", 1)
    assert restarted.result("u") == RESULT

    assert stage.status("w") == "PENDING"
    assert stage.column("owner_instance", "w") == running.ask("instance")
    assert stage.count("first:begin", "w") == 1


def test_a_live_process_takes_over_from_one_that_was_killed(stage: Stage) -> None:
    live = stage.launch()
    killed = stage.launch(hold=["second:begin"])
    killed.start("plain", "w", 1)
    killed.reached("second:begin")

    killed.kill()

    assert live.result("w") == RESULT
    assert stage.begun() == {("w", 1): 1, ("w", 2): 2}


@pytest.mark.parametrize("end", ["destroy", "exit", "SIGTERM"])
def test_an_orderly_end_hands_over_at_once(stage: Stage, end: str) -> None:
    live = stage.launch()
    leaving = stage.launch()
    leaving.start("patient", "w", 2.0)

    if end == "destroy":
        leaving.ask("destroy")
    elif end == "exit":
        assert leaving.close() == 0
    else:
        leaving.send_signal(signal.SIGTERM)
        assert leaving.ended() == 0

    assert live.result("w") == "first 1"
    assert stage.column("recovery_attempts", "w") == 2
    rows = stage.rows("SELECT instance_id FROM dbos.executor_instances")
    assert rows == [(live.ask("instance"),)]


def test_a_paused_process_is_fenced_and_goes_on_working_as_a_new_one(stage: Stage) -> None:
    live = stage.launch(lease_s=1)
    zombie = stage.launch(lease_s=1)
    before = zombie.ask("instance")
    zombie.start("gated", "w", str(stage.gate))
    until(lambda: stage.count("gated:begin", "w") == 1, "the step to begin")
    zombie.send_signal(signal.SIGSTOP)
    # The gate stays closed: whoever takes over stays in the step as well, until both are let go.
    until(lambda: stage.count("gated:begin", "w") == 2, "the take-over")

    zombie.send_signal(signal.SIGCONT)
    until(lambda: zombie.ask("instance") != before, "the registration as a new instance")
    stage.gate.touch()

    winner = live.ask("instance")
    assert live.result("w").startswith("passed in ")
    assert zombie.result("w") == live.result("w") == f"passed in {live.pid}"
    zombie.start("plain", "v", 1)
    assert zombie.result("v") == RESULT
    assert "declared dead" in zombie.messages
    assert stage.count("gated:begin", "w") == 2
    assert live.ask("instance") == winner


def test_an_interrupt_in_the_main_thread_leaves_the_workflow_for_the_next_launch(stage: Stage) -> None:
    interrupted = stage.launch()
    interrupted.tell("call", function="gated", id="w", args=[str(stage.gate)])
    until(lambda: stage.count("gated:begin", "w") == 1, "the step to begin")

    interrupted.send_signal(signal.SIGINT)

    assert interrupted.ended() != 0
    assert "KeyboardInterrupt" in interrupted.messages
    assert stage.status("w") == "PENDING"
    stage.gate.touch()
    following = stage.launch()
    assert following.result("w") == f"passed in {following.pid}"


@pytest.mark.parametrize("other", ["gated", "gated_async"])
def test_an_interrupt_in_the_thread_that_leads_a_commit_leaves_nobody_waiting(stage: Stage, other: str) -> None:
    """Ctrl-C in the middle of a commit: it is settled, and others get their answers, before anybody learns of it."""
    application = stage.launch(hold=["main/first:committing"], lease_s=1)
    for number in range(3):
        application.start(other, f"other-{number}", str(stage.gate))
    until(lambda: stage.count("gated:begin") == 3, "the steps to begin")
    application.tell("call_until_interrupted", function="plain", id="main", args=[1])
    application.reached("first:committing")
    stage.gate.touch()
    until(lambda: stage.count("gated:end") == 3, "the steps to end")

    application.send_signal(signal.SIGINT)
    # The writer thread leads in its place, with the same unit.
    until(lambda: stage.count("holding:first:committing", "main") == 2, "another thread to lead")
    stage.release.touch()

    assert application.answer() == "interrupted"
    passed = f"passed in {application.pid}"
    assert [application.result(f"other-{number}") for number in range(3)] == [passed] * 3
    assert application.result("main") == RESULT  # by recovery, in the same process
    assert stage.begun()["main", 1] == 1
    assert application.close() == 0


def test_an_interrupt_in_a_thread_that_waits_for_a_commit_disturbs_nobody(stage: Stage) -> None:
    application = stage.launch(hold=["leader/pass_gate:committing"], lease_s=1)
    application.start("gated", "leader", str(stage.gate))
    stage.gate.touch()
    application.reached("pass_gate:committing")
    application.tell("call_until_interrupted", function="plain", id="main", args=[1])
    until(lambda: stage.count("call:begin", "main") == 1, "the call")

    application.send_signal(signal.SIGINT)

    assert application.answer() == "interrupted"
    assert stage.status("leader") == "PENDING"  # it still holds the commit that was waited for
    stage.release.touch()
    assert application.result("leader") == f"passed in {application.pid}"
    application.start("plain", "after", 1)
    assert application.result("after") == RESULT
    application.start("plain", "main", 1)  # if its start was not committed, this is the first
    assert application.result("main") == RESULT
    # On PostgreSQL starts do not wait for the held commit: then the first step waited for its record.
    assert stage.begun()["main", 1] in (1, 2)
    assert stage.begun()["main", 2] == 1
    assert application.close() == 0


def test_a_fork_of_a_launched_process_does_not_act_for_it(stage: Stage) -> None:
    parent = stage.launch()

    answer = parent.ask("fork")

    assert answer.startswith("DBOSException")
    assert "forked" in answer
    assert "/ destroy" not in answer
    parent.start("plain", "w", 1)
    assert parent.result("w") == RESULT
    assert parent.close() == 0


@pytest.mark.slow
def test_twenty_processes_launch_at_once_on_an_empty_database(stage: Stage) -> None:
    applications = [stage.launch(wait=False) for _ in range(20)]

    for number, application in enumerate(applications):
        application.launched().start("plain", f"w-{number}", 1)

    assert [application.result(f"w-{number}") for number, application in enumerate(applications)] == [RESULT] * 20
    assert stage.rows("SELECT version_name FROM dbos.application_versions") == [("one",)]
    assert stage.rows("SELECT count(*) FROM dbos.executor_instances") == [(20,)]


def test_work_of_another_version_is_left_alone_until_it_is_adopted(stage: Stage) -> None:
    old = stage.launch(hold=["second:begin"])
    old.start("plain", "w", 1)
    old.reached("second:begin")
    old.kill()

    new = stage.launch(application_version="two")
    new.start("plain", "v", 1)
    assert new.result("v") == RESULT
    assert stage.status("w") == "PENDING"
    assert "1 unfinished workflows belong to application version one" in new.messages
    adopting = stage.launch(application_version="one")

    assert adopting.result("w") == RESULT
    assert stage.begun()["w", 1] == 1
    assert stage.column("recovery_attempts", "w") == 2


def waiting(application: Application, stage: Stage, workflow_id: str) -> None:
    """Wait until a workflow is back in its queue because the process does not know it."""
    until(lambda: f"Could not execute workflow {workflow_id}" in application.messages, "the log to name it")
    until(lambda: stage.status(workflow_id) == "ENQUEUED", "the workflow to wait in its queue")


@pytest.mark.parametrize(
    ("missing", "function", "complaint", "expected"),
    [
        ("tally", "tally", "tally is not a registered workflow function", "first 1"),
        (
            "archive",
            "of_class",
            "Archive.of_class is not a registered workflow function",
            ["Archive", "first 1", "second 1"],
        ),
        (
            "north",
            "north.ship",
            "instance 'Warehouse/north' is not registered",
            ["north", "packed 1 in the north", "second 1"],
        ),
    ],
)
def test_a_workflow_whose_target_is_missing_waits_and_others_do_not(
    stage: Stage, missing: str, function: str, complaint: str, expected: object
) -> None:
    complete = stage.launch(hold=["w/first:begin", "w/pack:begin", "other/first:begin"])
    complete.start(function, "w", 1)
    complete.start("plain", "other", 1)
    until(lambda: sum(each.instant.startswith("holding:") for each in stage.effects()) == 2, "both to hold")
    complete.kill()

    partial = stage.launch(without=[missing])
    waiting(partial, stage, "w")
    assert complaint in partial.messages
    assert partial.result("other") == RESULT
    assert partial.close() == 0
    assert stage.column("recovery_attempts", "w") == 1
    later = stage.launch(without=[missing])
    waiting(later, stage, "w")
    later.ask("register", what=missing)

    assert later.result("w") == expected


def test_a_workflow_whose_target_was_missing_runs_in_a_later_process(stage: Stage) -> None:
    complete = stage.launch(hold=["pack:begin"])
    complete.start("south.ship", "w", 1)
    complete.reached("pack:begin")
    complete.kill()
    partial = stage.launch(without=["south"])
    waiting(partial, stage, "w")

    following = stage.launch()

    assert following.result("w") == ["south", "packed 1 in the south", "second 1"]


def test_a_workflow_that_ends_every_process_is_given_up_and_others_recover(stage: Stage) -> None:
    application = stage.launch(hold=["other/first:begin"])
    application.start("plain", "other", 1)
    application.reached("first:begin")
    application.tell("start", function="poison", id="poison", args=[], kwargs={}, options={})
    assert application.ended() == 7

    for _ in range(2):  # max_recovery_attempts
        assert stage.launch(wait=False, hold=["other/first:begin"]).ended() == 7
    survivor = stage.launch()

    assert survivor.result("other") == RESULT
    assert survivor.failure("poison")[0] == "DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded"
    assert stage.status("poison") == "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
    assert stage.count("poison:begin") == 3


def test_user_roles_format_and_deadline_are_restored(stage: Stage) -> None:
    crashing = stage.launch(hold=["first:begin"])
    options = {"user": "ada", "roles": ["clerk", "admin"], "timeout_s": 600}
    crashing.start("context", "w", options=options, n=1)
    crashing.reached("first:begin")
    deadline = stage.column("workflow_deadline_epoch_ms", "w")
    crashing.kill()

    survivor = stage.launch()

    expected = {"user": "ada", "roles": ["clerk", "admin"], "role": "admin", "extra": {"n": 1}}
    assert survivor.result("w") == expected
    assert stage.column("workflow_deadline_epoch_ms", "w") == deadline
    assert stage.column("serialization", "w") == "portable_json"
    assert '"user":"ada"' in stage.column("output", "w")


def test_a_deadline_that_passed_while_nobody_ran_cancels_at_recovery(stage: Stage) -> None:
    crashing = stage.launch(hold=["first:begin"])
    crashing.start("plain", "w", 1, options={"timeout_s": 600})
    crashing.reached("first:begin")
    crashing.kill()
    stage.execute("UPDATE dbos.workflow_status SET workflow_deadline_epoch_ms = 1 WHERE workflow_uuid = 'w'")

    survivor = stage.launch()

    assert survivor.failure("w")[0] == "DBOSAwaitedWorkflowCancelledError"
    assert stage.count("workflow:begin", "w") == 1
