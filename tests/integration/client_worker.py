"""A process that runs an application for clients in others, and looks for work only when it is told of some."""

from __future__ import annotations

import sys
from typing import Any

from dbos import DBOS, Queue
from dbos._services import dispatcher, notifier

NEVER_S = 3600.0

if __name__ == "__main__":
    dispatcher.SAFETY_NET_S = notifier.INTERVAL_S = NEVER_S  # so what is found was told
    DBOS(
        config={
            "name": "worker-app",
            "system_database_url": sys.argv[1],
            "application_version": "test",
            "log_level": "ERROR",
        }
    )
    Queue("work", polling_interval_sec=NEVER_S)

    @DBOS.workflow(name="add")
    def add(a: int, b: int = 1) -> int:
        return a + b

    @DBOS.workflow(name="receive")
    def receive(topic: str | None = None) -> Any:
        return DBOS.recv(topic, timeout_seconds=NEVER_S)

    DBOS.launch()
    print("ready", flush=True)
    sys.stdin.read()  # until whoever started this has ended
    DBOS.destroy()
