"""Where randomness comes from: the only module that draws it.

Workflow ids are public and look like UUIDs; tokens never leave the database and are drawn once per start or take-over,
so they come straight from the kernel, which also makes them safe after ``fork``. Jitter need not be unpredictable; it
has a generator of its own, so that it neither follows nor disturbs a seed set by the application.
"""

from __future__ import annotations

import os
import random
import uuid

from dbos._types import WorkflowId

__all__ = ["jitter", "new_instance_id", "new_token", "new_workflow_id"]

TOKEN_BYTES = 16  # a few more random bits than a UUID has

_jitter = random.Random()
if hasattr(os, "register_at_fork"):
    # Forked siblings must not draw the same delays: they would retry in step.
    os.register_at_fork(after_in_child=_jitter.seed)


def new_workflow_id(now_ms: int) -> WorkflowId:
    """Return a new UUID (version 7) as text, for a workflow whose caller did not choose an id.

    It begins with the time, so what runs at the same time lies side by side in the tables: a batch that records steps
    of ten workflows changes a page or two and not ten. Its other 74 bits are random.
    """
    time = f"{now_ms:012x}"
    digits = os.urandom(10).hex()
    return WorkflowId(
        f"{time[:8]}-{time[8:]}-7{digits[:3]}-{'89ab'[int(digits[3], 16) % 4]}{digits[4:7]}-{digits[7:19]}"
    )


def new_token() -> str:
    """Return random hexadecimal digits that tell one attempt to write from every other."""
    return os.urandom(TOKEN_BYTES).hex()


def new_instance_id() -> str:
    """Return a random UUID (version 4) as text, for one launch of an executor."""
    return str(uuid.uuid4())


def jitter() -> float:
    """Return a random factor between 0.5 and 1.5 for a delay, to keep processes from acting in step."""
    return 0.5 + _jitter.random()
