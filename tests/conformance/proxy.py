"""A proxy before PostgreSQL that loses the answer to a COMMIT: it is durable, and the client cannot know.

Or it freezes connections: they stay open, and nothing comes through any more.
"""

from __future__ import annotations

import selectors
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

__all__ = ["Proxy"]

PORT = 5432


class Proxy:
    """Forwards connections; after :meth:`cut_answer_to` it drops the next connection that asks for that."""

    def __init__(self, directory: Path, url: str) -> None:
        parts = urlsplit(url)
        self._target = parse_qs(parts.query)["host"][0]
        self.url = urlunsplit(parts._replace(query=f"host={directory}"))
        self.cuts = 0
        self._needle: bytes | None = None
        self._after = b""
        self._freezing: bytes | None = None
        self._is_frozen = False
        self._is_closed = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / f".s.PGSQL.{PORT}"))
        self._listener.listen()
        self._open: set[socket.socket] = {self._listener}
        threading.Thread(target=self._accept, daemon=True).start()

    @classmethod
    @contextmanager
    def before(cls, url: str) -> Iterator[Proxy]:
        directory = Path(tempfile.mkdtemp(prefix="dbos-", dir="/tmp"))  # short: a socket's path is limited
        proxy = cls(directory, url)
        try:
            yield proxy
        finally:
            proxy.close()
            shutil.rmtree(directory)

    def cut_answer_to(self, needle: bytes, after: bytes = b"") -> None:
        """Drop the next connection that sends ``needle``, once the server has answered and the client has not.

        With ``after``, only one that has sent that before, from now on.
        """
        self._after, self._needle = after, needle

    def freezes_what_sends(self, needle: bytes) -> None:
        """Have :meth:`freeze` concern only connections that send ``needle`` from now on; empty for all of them."""
        self._freezing = needle

    def freeze(self) -> None:
        """Forward nothing more, until the proxy is closed."""
        self._is_frozen = True

    def close(self) -> None:
        self._is_closed.set()
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(f"{self._target}/.s.PGSQL.{PORT}")
                self._open |= {client, server}
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        is_cut = has_come_after = may_freeze = False
        with suppress(OSError), selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    source: socket.socket = key.data
                    data = (client if source is server else server).recv(1 << 16)
                    if not data or (is_cut and source is client):
                        raise OSError
                    may_freeze |= source is server and self._freezing is not None and self._freezing in data
                    if may_freeze and self._is_frozen:
                        self._is_closed.wait()
                    if source is server and self._needle is not None:
                        has_come_after |= self._after in data
                        if has_come_after and self._needle in data:
                            self._needle = None
                            self.cuts += 1
                            is_cut = True
                    source.sendall(data)
        for each in (client, server):
            self._open.discard(each)
            each.close()
