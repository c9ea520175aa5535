"""A network between a client and PostgreSQL, as slow as wanted: a relay of Unix sockets that delivers later.

Run as a process of its own (``python -m bench.network <server's directory> <own directory> <milliseconds one way>``),
until its input ends. It delivers by threads that sleep: an event loop rounds its waits to milliseconds.
"""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bench.workloads import wait_to_be_killed

SOCKET = ".s.PGSQL.5432"
PIECE = 1 << 16


@contextmanager
def delayed(url: str, one_way_ms: float) -> Iterator[str]:
    """The URL by which the server of ``url`` is reached over a network, for the time of a block."""
    host = parse_qs(urlsplit(url).query)["host"][0]
    with tempfile.TemporaryDirectory(prefix="net-") as directory:
        arguments = [sys.executable, "-m", "bench.network", host, directory, str(one_way_ms)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                if process.stdout is None or not process.stdout.readline():
                    raise RuntimeError("the relay ended early")
                yield url.replace(f"host={host}", f"host={directory}")
            finally:
                process.kill()


def serve(server: Path, own: Path, one_way_s: float) -> None:
    """Relay every connection to the server, from now on."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(own / SOCKET))
    listener.listen()

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(str(server / SOCKET))
            for source, target in ((client, upstream), (upstream, client)):
                under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                threading.Thread(target=_receive, args=(source, under_way), daemon=True).start()
                threading.Thread(target=_deliver, args=(target, under_way, one_way_s), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _receive(source: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    piece = b"-"
    while piece:
        try:
            piece = source.recv(PIECE)
        except OSError:
            piece = b""
        under_way.put((time.monotonic(), piece))


def _deliver(target: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]], one_way_s: float) -> None:
    try:
        while True:
            sent_at, piece = under_way.get()
            rest_s = sent_at + one_way_s - time.monotonic()
            if rest_s > 0:
                time.sleep(rest_s)
            if not piece:
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(piece)
    except OSError:
        return  # the other end has gone


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) / 1000)
    wait_to_be_killed()
