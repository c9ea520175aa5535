"""Ids and tokens: unlike each other, in order of time, and never the same in a fork."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import pytest

from dbos._ids import PIECES, new_token, new_workflow_id

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def test_workflow_ids_are_uuids_in_the_order_of_their_milliseconds() -> None:
    ids = [new_workflow_id(1_700_000_000_000 + number) for number in range(1000)]

    assert all(UUID7.fullmatch(each) for each in ids)
    assert sorted(ids) == ids


def test_threads_draw_no_token_twice() -> None:
    drawn: list[str] = []

    def draw() -> None:
        drawn.extend(new_token() for _ in range(50 * PIECES))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(drawn)) == len(drawn) == 4 * 50 * PIECES
    assert {len(token) for token in drawn} == {32}


FORK = """
import os
from dbos._ids import PIECES, new_token

new_token()  # now some are in store
child = os.fork()
if child:
    os.waitpid(child, 0)  # what both write at once may be mixed up
print(*(new_token() for _ in range(PIECES)), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_draws_other_tokens_than_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], stdout=subprocess.PIPE, text=True, check=True)

    tokens = done.stdout.split()

    assert len(tokens) == len(set(tokens)) == 2 * PIECES
