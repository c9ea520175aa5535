"""The faults that happen to a campaign. Which come, when, and to whom, follows from its seed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import psycopg

from tests.chaos.fleet import SETTLING_S, Member

if TYPE_CHECKING:
    from tests.chaos.campaign import Campaign

__all__ = ["Nemesis"]


class Nemesis:
    """What happens to a campaign."""

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign
        self._chance = campaign.chance
        self._pauses: list[threading.Timer] = []
        self._began = time.monotonic()
        self._actions: dict[str, tuple[int, Callable[[], str]]] = {
            "kill": (4, self.kill),
            "pause": (4, self.pause),
            "terminate": (2, self.terminate),
            "kill_driver": (1, self.kill_driver),
            "cancel": (3, self.cancel),
        }
        if campaign.cluster is not None:
            self._actions["crash"] = (2, self.crash)
            self._actions["disconnect"] = (3, self.disconnect)

    def work(self) -> None:
        """Let faults happen until they are used up, or until everything is submitted; everybody is well afterwards."""
        settings = self._campaign.settings
        if settings.faults:
            for name in settings.faults:
                time.sleep(self._chance.uniform(*settings.between_faults_s))
                self._happen(name)
        else:
            names, weights = list(self._actions), [weight for weight, _ in self._actions.values()]
            while not self._is_submitted() and time.monotonic() < self._campaign.give_up_at:
                time.sleep(self._chance.uniform(*settings.between_faults_s))
                self._happen(self._chance.choices(names, weights)[0])
        for pause in self._pauses:
            pause.join()
        for member in self._campaign.leaving:
            member.ended()

    def _is_submitted(self) -> bool:
        assert self._campaign.driver is not None
        return bool(self._campaign.driver.ask("is_done"))

    def _happen(self, name: str) -> None:
        began_s = time.monotonic() - self._began
        what = self._actions[name][1]()
        self._campaign.faults.append(f"{began_s:7.2f} s {time.time_ns() // 1000} {name} {what}")

    def _take(self) -> Member:
        """A worker to be replaced; its successor is launched."""
        workers = self._campaign.workers
        worker = self._chance.choice(workers)
        workers[workers.index(worker)] = self._campaign.launch("worker")
        return worker

    def _ready(self) -> None:
        for worker in self._campaign.workers:
            if not worker.base:
                worker.ready()

    def kill(self) -> str:
        worker = self._take()
        worker.kill()
        self._ready()
        return worker.name

    def kill_driver(self) -> str:
        campaign = self._campaign
        assert campaign.driver is not None
        name = campaign.driver.name
        campaign.driver.kill()
        campaign.driver = campaign.launch("driver").ready()
        return name

    def pause(self) -> str:
        awake = [worker for worker in self._campaign.workers if not worker.is_paused]
        if len(awake) < 2:
            return "nobody"
        worker, pause_s = self._chance.choice(awake), self._campaign.settings.lease_s * self._chance.uniform(1.3, 3)
        worker.pause()
        # By a thread of its own: who is paused may hold the lock of a file, and then everybody waits, we too.
        self._pauses.append(threading.Timer(pause_s, worker.go_on))
        self._pauses[-1].start()
        return f"{worker.name} ({worker.process.pid}) for {pause_s:.2f} s"

    def terminate(self) -> str:
        worker = self._take()
        if worker.is_paused:
            worker.go_on()
            time.sleep(SETTLING_S)
        worker.process.send_signal(signal.SIGTERM)
        self._campaign.leaving.append(worker)
        self._ready()
        return worker.name

    def cancel(self) -> str:
        """Cancel some, and resume most of them."""
        driver, chosen = self._campaign.driver, self._campaign.cancellable()
        assert driver is not None
        driver.ask("cancel", chosen)
        time.sleep(self._chance.choice([0.0, 0.1]))
        resumed = [each for each in chosen if self._chance.random() < 0.7]
        driver.ask("resume", resumed)
        return f"{chosen} and resume {resumed}"

    def crash(self) -> str:
        cluster = self._campaign.cluster
        assert cluster is not None
        cluster.stop("immediate")
        away_s = self._chance.choice([0.0, 0.5, 1.5])
        time.sleep(away_s)
        cluster.start()
        return f"for {away_s} s"

    def disconnect(self) -> str:
        with psycopg.connect(self._campaign.url, autocommit=True) as connection:
            pids = [
                row[0]
                for row in connection.execute(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            ]
            chosen = self._chance.sample(pids, len(pids) // 3)
            connection.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", [chosen])
        return f"{len(chosen)} of {len(pids)}"
