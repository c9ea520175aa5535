"""SQLite on a disk that fails when a test wants it to: its own way of reaching files, with two calls replaced.

While a file named ``full`` exists, there is no space to write to. When one named ``unsynced`` exists, the next flush of
what it names (``log`` or ``database``) fails, and the one after it pretends that all is well, as operating systems do
once they have told somebody (https://wiki.postgresql.org/wiki/Fsync_Errors).
"""

from __future__ import annotations

import _sqlite3
import ctypes
from pathlib import Path
from typing import Any

__all__ = ["install"]

FULL = 13  # SQLITE_FULL
IOERR_FSYNC = 10 | 4 << 8  # SQLITE_IOERR_FSYNC

Write = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
# The name stays a pointer: SQLite keeps it, and finds more behind the name's end.
Open = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Methods(ctypes.Structure):
    """sqlite3_io_methods: what can be done with an open file."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("close", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("write", Write),
        ("truncate", ctypes.c_void_p),
        ("sync", Sync),
        ("others", ctypes.c_void_p * 13),
    )


class System(ctypes.Structure):
    """sqlite3_vfs: how files are opened."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("file_bytes", ctypes.c_int),
        ("path_bytes", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", Open),
    )


_kept: list[Any] = []  # whatever SQLite points to, for as long as the process lives


def install(directory: str) -> None:
    """Have the files ``full`` and ``unsynced`` in a directory decide over all SQLite files, from now on."""
    full, unsynced = Path(directory, "full"), Path(directory, "unsynced")
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = ctypes.POINTER(System)
    system = library.sqlite3_vfs_find(None).contents
    really_open = Open(ctypes.cast(system.open, ctypes.c_void_p).value or 0)
    replaced: dict[tuple[int, bool], Methods] = {}

    def replacement(original: int, *, is_log: bool) -> Methods:
        methods = Methods.from_buffer_copy(ctypes.string_at(original, ctypes.sizeof(Methods)))
        really_write = Write(ctypes.cast(methods.write, ctypes.c_void_p).value or 0)
        really_sync = Sync(ctypes.cast(methods.sync, ctypes.c_void_p).value or 0)

        def write(file: int, data: int, count: int, offset: int) -> int:
            return FULL if full.exists() else int(really_write(file, data, count, offset))

        def sync(file: int, flags: int) -> int:
            if unsynced.exists() and unsynced.read_text() == ("log" if is_log else "database"):
                unsynced.unlink()
                return IOERR_FSYNC
            return int(really_sync(file, flags))

        methods.write, methods.sync = Write(write), Sync(sync)
        return methods

    def open_file(vfs: int, name: int | None, file: int, flags: int, out_flags: int) -> int:
        code = int(really_open(vfs, name, file, flags, out_flags))
        pointer = ctypes.c_void_p.from_address(file)
        if code == 0 and name is not None and pointer.value:
            key = pointer.value, ctypes.string_at(name).endswith(b"-wal")
            if key not in replaced:
                replaced[key] = replacement(key[0], is_log=key[1])
            pointer.value = ctypes.addressof(replaced[key])
        return code

    system.open = Open(open_file)
    _kept.extend((system, really_open, replaced))
