"""When to copy the write-ahead log into the database."""

from __future__ import annotations

__all__ = ["CHECKPOINT_BYTES", "PAGE_BYTES", "CheckpointPlan"]

CHECKPOINT_BYTES = 4 * 1024 * 1024  # the size of the write-ahead log from which it is copied into the database
CHECKPOINT_LOOK_BATCHES = 64  # how often its size is looked at
MAX_CHECKPOINT_BATCHES = 4096  # between checkpoints of a log that hardly fills
PAGE_BYTES = 4096 + 24  # a page in the log, and its header


class CheckpointPlan:
    """When to copy the write-ahead log into the database: about every ``CHECKPOINT_BYTES`` of it.

    The file's size tells only until the first checkpoint: from then on SQLite overwrites it from its beginning, which
    is twice as fast as letting it grow, so it is never cut. How much of it is in use is known after a checkpoint only,
    and how many batches it took to fill it; from that the next one is planned. A file that grows all the same means
    that batches have become larger.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.look_at = CHECKPOINT_LOOK_BATCHES
        self._due_at = float("inf")
        self._last = 0
        self._log_bytes = 0

    def is_due(self, log_bytes: int) -> bool:
        """Whether to checkpoint now, given the size of the file; plans the next look at it."""
        self.look_at = self.batches + CHECKPOINT_LOOK_BATCHES
        return self.batches >= self._due_at or log_bytes >= self._log_bytes + CHECKPOINT_BYTES

    def done(self, log_bytes: int, frames: int) -> None:
        """A checkpoint was made, when ``frames`` pages of the log were in use."""
        filled = max(frames, 1) * PAGE_BYTES / CHECKPOINT_BYTES
        batches = (self.batches - self._last) / filled
        self._due_at = self.batches + min(max(batches, CHECKPOINT_LOOK_BATCHES), MAX_CHECKPOINT_BATCHES)
        self._last, self._log_bytes = self.batches, log_bytes
