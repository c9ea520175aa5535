"""How large what is stored may be.

A value that is too large for a row hurts everybody: whoever lists workflows reads it, and so does every recovery. So it
is refused where it is made, before anything is written, with an error that says which value and which limit.
"""

from __future__ import annotations

import logging

from dbos._error import DBOSPayloadTooLargeError

__all__ = ["MAX_PAYLOAD_BYTES", "WARN_PAYLOAD_BYTES", "SizeLimits"]

logger = logging.getLogger("dbos.serialization")

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
WARN_PAYLOAD_BYTES = 1024 * 1024  # a row of this size is noticed by whoever lists or recovers

MAX_BYTES_PER_CHARACTER = 4  # of UTF-8
MAX_WARNED_NAMES = 1000  # names may be made of data; what comes after so many is not warned of


class SizeLimits:
    """The size that is refused, and the size that is warned of, in bytes of UTF-8.

    Texts of at most ``free_characters`` are below both, whatever they contain: callers look at that first.
    """

    __slots__ = ("_warned", "free_characters", "max_bytes", "warn_bytes")

    def __init__(self, max_bytes: int = MAX_PAYLOAD_BYTES, warn_bytes: int = WARN_PAYLOAD_BYTES) -> None:
        self.max_bytes = max_bytes
        self.warn_bytes = warn_bytes
        self.free_characters = min(max_bytes, warn_bytes) // MAX_BYTES_PER_CHARACTER
        self._warned: set[tuple[str, str | None]] = set()

    def check(self, text: str, what: str, name: str | None) -> None:
        """Refuse a text that is too large, and warn of a large one, once for each name.

        Raises:
            DBOSPayloadTooLargeError: It is larger than ``max_bytes``.
        """
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        subject = what if name is None else f"{what} {name!r}"
        if size > self.max_bytes:
            raise DBOSPayloadTooLargeError(subject, size, self.max_bytes)
        if size > self.warn_bytes and (what, name) not in self._warned and len(self._warned) < MAX_WARNED_NAMES:
            self._warned.add((what, name))
            logger.warning(
                "The %s takes %s bytes in the database. Whoever lists or recovers workflows reads that: keep large "
                "data elsewhere and pass a reference, or raise 'warn_payload_bytes' in the configuration.",
                subject,
                f"{size:,}",
            )
