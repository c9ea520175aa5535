"""Signals, and who is waiting for what."""

from __future__ import annotations

import threading

import pytest

from dbos._sysdb.wakeups import Signal, Wakeups


def test_a_signal_is_set_once_and_for_all_who_wait() -> None:
    signal = Signal()
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(signal.wait(None))) for _ in range(5)]
    for thread in threads:
        thread.start()

    signal.set()
    signal.set()
    for thread in threads:
        thread.join()

    assert woken == [True] * 5
    assert signal.is_set
    assert signal.wait(0)


@pytest.mark.parametrize("timeout_s", [0, -1, 0.001])
def test_a_wait_ends_at_its_timeout(timeout_s: float) -> None:
    assert not Signal().wait(timeout_s)


def test_a_wait_may_be_longer_than_the_system_can_count() -> None:
    signal = Signal()
    threading.Timer(0.01, signal.set).start()

    assert signal.wait(1e12)


def test_callbacks_are_called_once_when_set_or_at_once_if_it_is() -> None:
    signal = Signal()
    called: list[str] = []
    signal.call(lambda: called.append("before"))

    assert called == []
    signal.set()
    signal.set()
    signal.call(lambda: called.append("after"))

    assert called == ["before", "after"]


def test_a_callback_that_was_withdrawn_is_not_called() -> None:
    signal = Signal()
    called: list[str] = []

    def callback() -> None:
        called.append("called")

    signal.call(callback)
    signal.forget(callback)
    signal.forget(callback)
    signal.set()

    assert called == []


def test_a_callback_may_look_at_the_signal_and_add_another() -> None:
    signal = Signal()
    called: list[bool] = []
    signal.call(lambda: signal.call(lambda: called.append(signal.is_set)))

    signal.set()

    assert called == [True]


def test_firing_a_key_sets_the_signals_that_wait_under_it() -> None:
    wakeups = Wakeups()
    one, two, other = Signal(), Signal(), Signal()

    with wakeups.waiting(("a",), one), wakeups.waiting(("a",), two), wakeups.waiting(("b",), other):
        assert sorted(wakeups.keys()) == [("a",), ("b",)]
        wakeups.fire([("a",), ("nobody",)])

        assert one.is_set
        assert two.is_set
        assert not other.is_set
        assert sorted(wakeups.keys()) == [("a",), ("b",)]


def test_nothing_is_left_of_waits_that_ended_in_whatever_order() -> None:
    wakeups = Wakeups()
    first, second = wakeups.waiting(("a",), Signal()), wakeups.waiting(("a",), Signal())
    first.__enter__()
    second.__enter__()

    first.__exit__(None, None, None)
    assert wakeups.keys() == [("a",)]
    second.__exit__(None, None, None)

    assert wakeups.keys() == []
    assert wakeups._waiting == {}


def test_nothing_is_left_of_a_wait_that_raised() -> None:
    wakeups = Wakeups()

    with pytest.raises(KeyboardInterrupt), wakeups.waiting(("a",), Signal()):
        raise KeyboardInterrupt

    assert wakeups._waiting == {}
