"""Schedules that several real processes fire together, while some are killed and others paused."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from tests.acceptance.harness import Application, Stage, until

SECONDLY = "* * * * * *"
YEARLY = "0 0 1 1 *"
SEED = 20_260_105
CAMPAIGN_S = 8
PROMPTLY_S = 15  # a tick comes every second, and the machine may be busy


def ticks(stage: Stage, name: str) -> list[datetime]:
    """The ticks for which there is a workflow, in their order."""
    prefix = f"sched-{name}-"
    rows = stage.rows(f"SELECT workflow_uuid FROM dbos.workflow_status WHERE workflow_uuid LIKE '{prefix}%'")
    return sorted(datetime.fromisoformat(str(row[0]).removeprefix(prefix)) for row in rows)


def gaps(times: list[datetime]) -> list[datetime]:
    """The seconds in between that are not there."""
    seconds = {times[0] + timedelta(seconds=number) for number in range(len(times))}
    return sorted(seconds.symmetric_difference(times))


def told(stage: Stage, name: str) -> Counter[str]:
    sql = f"SELECT decision, count(*) FROM dbos.schedule_history WHERE schedule_name = '{name}' GROUP BY decision"
    return Counter({str(decision): int(number) for decision, number in stage.rows(sql)})


def fired(stage: Stage, application: Application) -> int:
    """How many ticks a process has decided."""
    return sum(each.process == application.pid and each.instant == "tick:committed" for each in stage.effects())


def test_no_tick_is_lost_and_none_runs_twice_while_processes_are_killed_and_paused(stage: Stage) -> None:
    chance = random.Random(SEED)  # a campaign that can be repeated
    crew = [stage.launch(cuckoo=SECONDLY, watches_commits=False, wait=False) for _ in range(3)]
    for application in crew:
        application.launched()
    crew[0].ask("create_schedule", name="s", schedule=SECONDLY, options={})
    until(lambda: len(ticks(stage, "s")) > 0 and len(ticks(stage, "cuckoo")) > 0, "the first ticks")

    end = time.monotonic() + CAMPAIGN_S
    while time.monotonic() < end:
        victim, paused, _ = chance.sample(crew, 3)
        paused.send_signal(signal.SIGSTOP)
        time.sleep(chance.uniform(0.1, 1.2))
        paused.send_signal(signal.SIGCONT)
        time.sleep(chance.uniform(0, 0.6))
        victim.kill()
        crew[crew.index(victim)] = stage.launch(cuckoo=SECONDLY, watches_commits=False)
    last = max(ticks(stage, "s")) + timedelta(seconds=2)
    for name in ("s", "cuckoo"):
        until(lambda: max(ticks(stage, name)) >= last, "the ticks to go on", PROMPTLY_S)  # noqa: B023  # called at once
    crew[0].ask("pause_schedule", name="s")
    ids = {f"sched-s-{tick.isoformat()}" for tick in ticks(stage, "s")}
    listed = ", ".join(f"'{each}'" for each in sorted(ids))
    unfinished = f"SELECT 1 FROM dbos.workflow_status WHERE workflow_uuid IN ({listed}) AND status <> 'SUCCESS'"
    until(lambda: not stage.rows(unfinished), "all to be done")

    assert gaps(ticks(stage, "s")) == []
    assert gaps(ticks(stage, "cuckoo")) == []
    assert told(stage, "s") == {"fired": len(ids)}
    begun = Counter(each.workflow_id for each in stage.effects() if each.instant in ("chime:begin", "cuckoo:begin"))
    attempts = dict(stage.rows("SELECT workflow_uuid, recovery_attempts FROM dbos.workflow_status"))
    assert ids <= begun.keys()
    # What runs a second time is what died with its process.
    assert {each: number for each, number in begun.items() if number > attempts[each]} == {}


def test_a_process_that_dies_when_it_has_committed_a_tick_has_started_it_once(stage: Stage) -> None:
    dying = stage.launch(hold=["tick:committed"])
    dying.ask("create_schedule", name="s", schedule=SECONDLY, options={"max_runs": 1})
    held = dying.reached("tick:committed")

    dying.kill()
    before = stage.count("chime:begin")
    following = stage.launch()
    following.result(held.workflow_id)

    assert before == 0
    assert [each.workflow_id for each in stage.effects() if each.instant == "chime:begin"] == [held.workflow_id]
    assert told(stage, "s") == {"fired": 1}
    assert stage.rows("SELECT runs, next_fire_ms FROM dbos.workflow_schedules") == [(1, None)]


def test_changes_and_ends_of_runs_in_one_process_reach_another_at_once(stage: Stage) -> None:
    """One decides and runs nothing, the other runs; each asks the database by itself once in an hour only."""
    settings: dict[str, Any] = {"queues": [{"name": "line"}], "scheduler_polling_interval_sec": 3600}
    changing = stage.launch(listens_to=[], **settings)
    running = stage.launch(hold=["chime:begin"], **settings)
    options = {"overlap": "buffer_all", "max_runs": 3, "queue_name": "line"}

    changing.ask("create_schedule", name="s", schedule=YEARLY, options=options)
    changing.ask("update_schedule", name="s", changes={"schedule": SECONDLY})
    running.reached("chime:begin")
    until(lambda: told(stage, "s") == {"fired": 1, "buffered": 2}, "ticks that wait", PROMPTLY_S)
    while_held = stage.count("chime:begin")
    stage.release.touch()
    until(lambda: stage.count("chime:begin") == 3, "what has waited", PROMPTLY_S)
    changing.ask("update_schedule", name="s", changes={"max_runs": None})
    until(lambda: stage.count("chime:begin") > 3, "the schedule to go on", PROMPTLY_S)
    changing.kill()
    so_far = fired(stage, running)
    until(lambda: fired(stage, running) > so_far + 1, "the ticks that are left to the other", PROMPTLY_S)

    assert while_held == 1
    begun = [each for each in stage.effects() if each.instant == "chime:begin"]
    assert {each.process for each in begun} == {running.pid}
    assert [each.workflow_id for each in begun] == sorted({each.workflow_id for each in begun})
