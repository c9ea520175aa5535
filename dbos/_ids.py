"""Where randomness comes from: the only module that draws it.

Workflow ids are public and look like UUIDs; tokens never leave the database and are drawn once per start or take-over.
Both are bytes of the kernel's, fetched for a few dozen of them at a time: asking it gives up Python's interpreter lock,
and a thread that has to win that back among others waits longer than everything else about a start takes. Jitter need
not be unpredictable; it has a generator of its own, so that it neither follows nor disturbs a seed set by the
application.
"""

from __future__ import annotations

import os
import random
import uuid

from dbos._types import WorkflowId

__all__ = ["derived_id", "jitter", "new_instance_id", "new_token", "new_workflow_id"]

TOKEN_BYTES = 16  # a few more random bits than a UUID has

PIECES = 64  # fetched at a time; few, because the copy of a machine that was suspended draws them once more

_jitter = random.Random()
_pieces: list[bytes] = []  # random, of TOKEN_BYTES each; taken and added to by any thread, in single operations
if hasattr(os, "register_at_fork"):
    # Forked siblings must not draw the same delays, or they would retry in step; nor the same ids.
    os.register_at_fork(after_in_child=_jitter.seed)
    os.register_at_fork(after_in_child=_pieces.clear)


def _random_piece() -> bytes:
    try:
        return _pieces.pop()
    except IndexError:
        fetched = os.urandom(PIECES * TOKEN_BYTES)
    _pieces.extend([fetched[begin : begin + TOKEN_BYTES] for begin in range(TOKEN_BYTES, len(fetched), TOKEN_BYTES)])
    return fetched[:TOKEN_BYTES]


def new_workflow_id(now_ms: int) -> WorkflowId:
    """Return a new UUID (version 7) as text, for a workflow whose caller did not choose an id.

    It begins with the time, so what runs at the same time lies side by side in the tables: a batch that records steps
    of ten workflows changes a page or two and not ten. Its other 74 bits are random.
    """
    time = f"{now_ms:012x}"
    digits = _random_piece().hex()
    return WorkflowId(
        f"{time[:8]}-{time[8:]}-7{digits[:3]}-{'89ab'[int(digits[3], 16) % 4]}{digits[4:7]}-{digits[7:19]}"
    )


def new_token() -> str:
    """Return random hexadecimal digits that tell one attempt to write from every other."""
    return _random_piece().hex()


def new_instance_id() -> str:
    """Return a random UUID (version 4) as text, for one launch of an executor."""
    return str(uuid.uuid4())


def derived_id(origin: str) -> str:
    """Return a UUID (version 5) as text, the same again for the same origin: for what a replay must find again."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, origin))


def jitter() -> float:
    """Return a random factor between 0.5 and 1.5 for a delay, to keep processes from acting in step."""
    return 0.5 + _jitter.random()
