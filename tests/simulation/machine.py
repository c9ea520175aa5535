"""The state machine: executors on one database, and what users, operators and fate do to them.

Each rule is a move: something happens, everything comes to rest, and the judge compares what is with what may be.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.simulation.executors import LEASE_S
from tests.simulation.operators import Operators
from tests.simulation.play import CONFIG, NUMBERS, PIECE_S, pick, tell
from tests.simulation.users import Users

__all__ = ["CONFIG", "Simulation"]


class Simulation(Users, Operators):
    """What users and operators do, and what fate does to them."""

    @rule(which=NUMBERS)
    def let_go(self, which: int) -> None:
        place = pick(self.places(), which)
        if place is not None:
            self.go_on(place)

    @rule(seconds=st.sampled_from([2, 6, 35, 65]), is_jump=st.booleans())
    def advance(self, seconds: float, is_jump: bool) -> None:
        """Time goes by, and leases are renewed; or all stood still meanwhile: the host slept, the database was away."""
        while seconds > 0 and self.unfinished():
            piece_s = seconds if is_jump else min(seconds, PIECE_S)
            self.pass_time(piece_s)
            seconds -= piece_s

    @rule()
    def launch(self) -> None:
        self.launch_another()

    @rule(which=NUMBERS)
    def pause(self, which: int) -> None:
        """An executor is paused for longer than its lease; it goes on, and has not noticed yet."""
        executor = pick(self.busy(), which)
        if executor is None:
            return
        tell(f"{executor} is paused")
        with self.move():
            executor.freeze()
        self.advance(LEASE_S + PIECE_S, is_jump=False)
        with self.move():
            executor.thaw()

    @rule(which=NUMBERS)
    def kill(self, which: int) -> None:
        """An executor is killed, which others on its host see at once."""
        executor = pick(self.busy(), which)
        if executor is not None:
            self.crash(executor, is_seen=True)

    @rule(which=NUMBERS, fate=st.sampled_from(["freezes", "freezes", "freezes", "is cut off", "leaves"]))
    def befall(self, which: int, fate: str) -> None:
        """An executor freezes, thaws if it is frozen, or notices that it was; or it ends, unseen or in order."""
        executor = pick(self.there("live", "stale", "frozen"), which)
        if executor is None or not self.unfinished():
            return
        # Shutting down would wait for what is held.
        may_leave = executor.state == "live" and all(place.executor is not executor for place in self.stage.places())
        tell(f"{executor}, which is {executor.state}, {fate}")
        if fate == "is cut off" or (fate == "leaves" and not may_leave):
            self.crash(executor, is_seen=False)
            return
        with self.move():
            if fate == "leaves":
                executor.leave()
            elif executor.state == "live":
                executor.freeze()
            elif executor.state == "frozen":
                executor.thaw()
            else:
                self.catch_up_with(executor)
