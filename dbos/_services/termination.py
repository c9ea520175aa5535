"""SIGTERM: what an orchestrator sends to a process that it wants to end, and waits a while for.

Where nobody else handles it, we do: DBOS is shut down, so that others take over at once what is unfinished, and then
the process ends by the signal, as it would have without us. A second SIGTERM does not cut that short.

The handler runs in the main thread between any two steps of whatever that thread does: it may hold the mutex of a
committer, or a lock of :mod:`threading`. So it takes no lock and waits for nothing, it only starts a thread; and that
by the lowest means there are, because ``Thread.start`` takes such locks.

A child that is forked has no part in this, and ends by SIGTERM at once. The signal is blocked from before the fork
until the handler is gone from the child: Python forgets in a new child what has arrived until then.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from dbos._sysdb.wakeups import Signal

__all__ = ["Termination"]

logger = logging.getLogger("dbos")


class Termination:
    """The handler of SIGTERM of a process; there is one."""

    def __init__(self) -> None:
        self._forget()
        self._forking = threading.local()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._leave_to_parent
            )

    def _forget(self) -> None:
        self._shut_down: Callable[[], None] | None = None
        self._is_shutting_down = False
        self._is_over = Signal()

    def install(self, shut_down: Callable[[], None]) -> None:
        """Have ``shut_down`` called in a thread of its own upon SIGTERM, unless the application handles the signal."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set a handler
        if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, self._handle):
            return
        try:
            signal.signal(signal.SIGTERM, self._handle)
        except ValueError:
            return  # the main thread of a sub-interpreter may not either
        self._shut_down = shut_down

    def uninstall(self) -> None:
        """Do as if there had been no handler; one that cannot be removed now ends the process by the signal."""
        if self._is_shutting_down:
            return  # it ends with the process
        self._shut_down = None
        self._remove()

    def wait_if_under_way(self) -> None:
        """Do not return if the process is being ended by SIGTERM: it ends when it is shut down, and by the signal."""
        if self._is_shutting_down:
            self._is_over.wait(None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_shutting_down:
            return
        if self._shut_down is not None:
            self._is_shutting_down = True
            try:
                _thread.start_new_thread(self._run, (self._shut_down,))
                return
            except RuntimeError:
                self._is_shutting_down = False  # no thread can be started any more: so little is left to end
        self._shut_down = None
        self._remove()
        os.kill(os.getpid(), number)

    def _run(self, shut_down: Callable[[], None]) -> None:
        logger.info("SIGTERM: shutting down")
        try:
            shut_down()
        except BaseException:  # the process ends whatever happens
            logger.exception("DBOS was not shut down in an orderly way")
        self._shut_down = None
        self._is_shutting_down = False
        # To ourselves again: only the main thread can remove the handler, and the handler does, now.
        os.kill(os.getpid(), signal.SIGTERM)
        self._is_over.set()  # if the application has put a handler of its own in our place meanwhile

    def _is_installed(self) -> bool:
        return signal.getsignal(signal.SIGTERM) == self._handle

    def _remove(self) -> None:
        if not self._is_installed():
            return
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        except ValueError:
            return  # not the main thread

    # -- forks --------------------------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        is_installed = self._is_installed()
        self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) if is_installed else None

    def _after_fork(self) -> None:
        if self._forking.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._forking.mask)

    def _leave_to_parent(self) -> None:
        self._forget()
        self._remove()
        self._after_fork()
