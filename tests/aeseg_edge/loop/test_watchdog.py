"""A live source is called stalled, waited for, and given up, by rules and not by luck."""

from __future__ import annotations

import random

import pytest

from aeseg_edge.errors import UsageError
from aeseg_edge.loop.watchdog import Patience, Watchdog

STEADY = Patience(stall=5, opening=15, backoff=0.5, most=30, jitter=0, settled=10)


def make(patience: Patience = STEADY) -> Watchdog:
    return Watchdog(patience, 0.0, random.Random(0))


def wait_of(dog: Watchdog, now: float) -> float:
    """Lose the source and give the wait before it is due, to a tenth of a second."""
    assert dog.lost(now)
    for tenths in range(1000):
        if dog.is_due(now + tenths / 10 + 1e-6):
            return tenths / 10
    raise AssertionError("never due")


def test_a_running_source_stalls_after_the_time_out_and_once() -> None:
    dog = make()
    dog.frame(1.0)
    assert not dog.is_stalled(6.0)
    assert dog.is_stalled(6.1)
    assert (dog.state, dog.stalls) == ("stalled", 1)
    assert not dog.is_stalled(60.0)


def test_the_first_frame_may_take_longer() -> None:
    dog = make()
    assert not dog.is_stalled(14.9)
    assert dog.is_stalled(15.1)


def test_waits_double_up_to_the_longest() -> None:
    dog = make()
    waits = []
    for _ in range(8):
        waits.append(wait_of(dog, 0.0))
        dog.opening(0.0)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert dog.reconnects == 8


def test_only_a_source_that_settled_starts_again_with_the_first_wait() -> None:
    dog = make()
    assert wait_of(dog, 0.0) == 0.5
    dog.opening(1.0)
    dog.frame(2.0)
    dog.frame(10.9)
    assert wait_of(dog, 11.0) == 1.0
    dog.opening(20.0)
    dog.frame(30.0)
    assert wait_of(dog, 31.0) == 0.5


def test_jitter_shortens_a_wait_by_up_to_its_share() -> None:
    dog = Watchdog(Patience(backoff=8, most=8, jitter=0.5), 0.0, random.Random(1))
    waits = [wait_of(dog, 0.0) for _ in range(200)]
    assert min(waits) >= 4.0
    assert max(waits) <= 8.1
    assert max(waits) - min(waits) > 3


def test_too_many_reconnects_within_the_window_give_a_source_up() -> None:
    dog = make(Patience(jitter=0, restarts=3, window=100))
    for now in (0.0, 10.0, 20.0):
        assert dog.lost(now)
        dog.opening(now)
    # The first has left the window.
    assert dog.lost(101.0)
    dog.opening(101.0)
    assert not dog.lost(105.0)
    assert dog.state == "failed"


def test_a_source_is_never_given_up_without_a_limit_and_nothing_grows() -> None:
    dog = make()
    for now in range(1000):
        assert dog.lost(float(now))
        dog.opening(float(now))
    assert not dog._restarts


@pytest.mark.parametrize("wrong", [{"stall": 0}, {"backoff": -1}, {"jitter": 2}])
def test_times_that_would_spin_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="not above 0"):
        Patience(**wrong)
