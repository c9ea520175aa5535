"""A process that works on the workload with many threads: ``python -m tests.chaos.worker SETTINGS``.

It says ``ready``, waits for a line, then says the number of the thread at each workflow that came out right. Its last
line is a JSON list of what went wrong.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

from dbos import DBOS
from tests.chaos.workload import Workload, expected

settings: dict[str, Any] = json.loads(sys.argv[1])
errors: list[str] = []
speaking = threading.Lock()


def say(text: object) -> None:
    with speaking:
        print(text, flush=True)


def work(workload: Workload, thread: int, give_up_at: float) -> None:
    """Do this thread's share: so many workflows, or as many as it can in the time."""
    limit = settings.get("per_thread")
    for number in count() if limit is None else range(limit):
        if time.monotonic() > give_up_at:
            return
        workflow_id = f"{settings['config']['executor_id']}-{thread}-{number}"
        try:
            result = workload.perform(workflow_id, number)
            if result != expected(number):
                errors.append(f"{workflow_id} returned {result}")
        except BaseException as error:
            errors.append(f"{workflow_id}: {type(error).__name__}: {error}")
        say(thread)


def look_around(has_ended: threading.Event) -> None:
    """Read what is there, again and again, as a screen would."""
    while not has_ended.wait(0.05):
        try:
            DBOS.list_workflows(limit=10, sort_desc=True)
        except BaseException as error:
            errors.append(f"list_workflows: {type(error).__name__}: {error}")
            return


def main() -> None:
    DBOS(config=settings["config"])
    workload = Workload(Path(settings["effects"]), settings.get("pause_s", 0.0))
    DBOS.launch()
    say("ready")
    sys.stdin.readline()
    give_up_at = time.monotonic() + settings.get("seconds", 3600.0)
    has_ended = threading.Event()
    reader = threading.Thread(target=look_around, args=(has_ended,))
    reader.start()
    threads = [
        threading.Thread(target=work, args=(workload, thread, give_up_at)) for thread in range(settings["threads"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    has_ended.set()
    reader.join()
    DBOS.destroy()
    say(json.dumps(errors))


if __name__ == "__main__":
    main()
