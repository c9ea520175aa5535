"""Being told by the kernel that a file was written to, where it can tell: on Linux.

Bound by hand, because the package for this looks for the C library with a child process, which is not ours to start in
somebody's application.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import sys

__all__ = ["FileWatch"]

_MODIFY = 0x0002
_IGNORED = 0x8000  # the last event of a watch: it was ended, or nobody has the deleted file open any more
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows: none, for a watched file
_READ_BYTES = 256 * _EVENT.size


class FileWatch:
    """Waits until a file is written to; any thread may end that.

    ``is_ended`` tells that the watch was ended, or that the file is gone: deleted, and closed by everybody.
    """

    def __init__(self, path: str) -> None:
        """Begin to watch.

        Raises:
            OSError: the file is not there, or the system cannot watch it, or not as many as that.
        """
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, "this system has no inotify")
        self.is_ended = False
        try:
            import ctypes  # some Pythons are built without it

            self._libc = ctypes.CDLL(None, use_errno=True)
            self._errno = ctypes.get_errno
            init, add_watch = self._libc.inotify_init1, self._libc.inotify_add_watch
        except (ImportError, AttributeError) as error:
            raise OSError(errno.ENOSYS, f"inotify cannot be reached: {error}") from error
        self._fd = self._checked(init(os.O_CLOEXEC | os.O_NONBLOCK))
        try:
            self._watch = self._checked(add_watch(self._fd, os.fsencode(path), _MODIFY))
        except OSError:
            self.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def wait(self) -> None:
        """Block until the file has been written to since the last :meth:`is_written`, or the watch has ended."""
        self._poll.poll()

    def is_written(self) -> bool:
        """Whether the file has been written to since the last call; does not block."""
        try:
            events = os.read(self._fd, _READ_BYTES)  # what does not fit is there for the next call
        except BlockingIOError:
            return False
        self.is_ended = any(mask & _IGNORED for _, mask, _, _ in _EVENT.iter_unpack(events))
        return True

    def end(self) -> None:
        """End the watch, which lets the waiting thread go on."""
        self._libc.inotify_rm_watch(self._fd, self._watch)

    def close(self) -> None:
        """Give back what the watch takes."""
        os.close(self._fd)

    def _checked(self, result: int) -> int:
        if result < 0:
            number = self._errno()
            raise OSError(number, os.strerror(number))
        return result
