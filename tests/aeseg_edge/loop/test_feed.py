"""A source that stalls, dies, changes size and comes back gives new frames only, in order."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.loop.feed import Captured, Feed, Input
from aeseg_edge.loop.watchdog import Patience
from tests.doubles.loop import END, HANG, LOST, Camera, Clock, wait_for

PATIENCE = Patience(stall=5, opening=15, backoff=1, most=8, jitter=0, settled=10)


class Harness:
    """A feed, its clock, and what it gave."""

    def __init__(
        self, *cameras: Camera | SourceError, patience: Patience = PATIENCE, **more: object
    ) -> None:
        self.clock = Clock()
        self.got: list[Captured] = []
        self.cameras = list(cameras)
        first = self.cameras.pop(0)
        self.blocks = bool(more.pop("blocks", False))
        assert isinstance(first, Camera)
        given = Input(first, "front", self.reopen)
        if more.pop("recorded", False):
            first.live = False
            given = replace(given, reopen=None)
        self.feed = Feed(
            given,
            self.put,
            patience=patience,
            clock=self.clock,
            chance=random.Random(0),
            **more,  # type: ignore[arg-type]
        )
        self.feed.start()

    def reopen(self) -> Camera:
        camera = self.cameras.pop(0)
        if isinstance(camera, SourceError):
            raise camera
        return camera

    def put(self, captured: Captured, cancelled: Callable[[], bool]) -> bool:
        self.got.append(captured)
        if self.blocks:
            wait_for(cancelled)
        return not cancelled()

    @property
    def values(self) -> list[int]:
        return [int(each.frame.image[0, 0, 0]) for each in self.got]

    def state(self, state: str) -> None:
        wait_for(lambda: self.feed.figures[0] == state)

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.feed.check()


@pytest.fixture
def harness() -> Iterator[Callable[..., Harness]]:
    made: list[tuple[Harness, list[Camera]]] = []

    def make(*cameras: Camera | SourceError, **more: object) -> Harness:
        made.append(
            (Harness(*cameras, **more), [c for c in cameras if isinstance(c, Camera)])  # type: ignore[arg-type]
        )
        return made[-1][0]

    yield make
    for each, cameras in made:
        for camera in cameras:
            camera.wake.set()
        each.feed.stop()
        each.feed.join(20)


Make = Callable[..., Harness]


def test_a_camera_that_dies_comes_back_after_its_wait_and_counts_on(harness: Make) -> None:
    old, new = Camera([1, 2, LOST]), Camera([3, 4], size=(8, 10))
    run = harness(old, new)
    run.state("waiting")
    assert old.closed == 1
    run.later(0.9)
    assert run.feed.figures[0] == "waiting"
    run.later(0.2)
    wait_for(lambda: len(run.got) == 4)
    assert run.values == [1, 2, 3, 4]
    assert [each.frame.index for each in run.got] == [0, 1, 2, 3]
    assert {each.frame.source for each in run.got} == {"front"}
    assert [each.session for each in run.got] == [0, 0, 1, 1]
    assert run.feed.figures == ("running", 4, 1, 0, (10, 8), "the cable is out")


def test_a_camera_that_hangs_is_left_and_what_it_gives_later_is_thrown_away(
    harness: Make,
) -> None:
    old, new = Camera([1, HANG, 99, 98]), Camera([2])
    run = harness(old, new)
    wait_for(lambda: run.values == [1])
    run.later(5.1)
    assert old.interrupted
    assert run.feed.figures[:4] == ("waiting", 1, 0, 1)
    run.later(1.1)
    wait_for(lambda: run.values == [1, 2])
    old.wake.set()
    wait_for(lambda: old.closed)
    assert run.values == [1, 2]
    assert run.feed.figures[:4] == ("running", 2, 1, 1)


def test_a_camera_that_cannot_be_opened_is_tried_again_with_longer_waits(harness: Make) -> None:
    gone = SourceError("nobody answers", fix="Wait.")
    run = harness(Camera([LOST]), gone, gone, Camera([7]))
    for wait, left in ((1, 2), (2, 1), (4, 0)):
        run.state("waiting")
        run.later(wait - 0.1)
        assert len(run.cameras) == left + 1
        run.later(0.2)
        wait_for(lambda left=left: len(run.cameras) == left)
    wait_for(lambda: run.values == [7])
    assert run.feed.figures[2] == 3


def test_no_more_than_two_threads_hang_in_a_driver(harness: Make) -> None:
    stuck = [Camera([HANG]), Camera([HANG])]
    run = harness(*stuck, Camera([1]))
    for camera in stuck:
        wait_for(lambda camera=camera: camera.hangs)
        run.later(15.1)
        assert run.feed.figures[0] == "waiting"
        run.later(8.1)
    assert run.feed.figures[0] == "waiting"
    assert len(run.cameras) == 1
    stuck[0].wake.set()
    wait_for(lambda: stuck[0].closed)
    wait_for(lambda: run.later(0) or run.values == [1])


def test_a_camera_that_is_lost_too_often_is_given_up(harness: Make) -> None:
    patience = replace(PATIENCE, restarts=1)
    run = harness(Camera([1, LOST]), Camera([2, LOST]), patience=patience)
    run.state("waiting")
    run.later(1.1)
    wait_for(lambda: run.feed.done)
    assert run.values == [1, 2]
    assert isinstance(run.feed.error, SourceError)
    assert "again and again: the cable is out" in str(run.feed.error)


def test_a_camera_that_ends_by_itself_is_at_its_end(harness: Make) -> None:
    run = harness(Camera([1, END]))
    wait_for(lambda: run.feed.done)
    assert (run.feed.error, run.feed.figures[0]) == (None, "ended")


def test_a_recording_that_fails_is_not_opened_again(harness: Make) -> None:
    run = harness(Camera([1, LOST]), recorded=True)
    wait_for(lambda: run.feed.done)
    run.later(100)
    assert run.feed.figures[0] == "failed"
    assert str(run.feed.error) == "the cable is out. Put it back."


def test_a_sender_that_waits_for_room_is_not_called_stalled(harness: Make) -> None:
    run = harness(Camera([1, 2]), blocks=True)
    wait_for(lambda: run.got)
    run.later(60)
    assert run.feed.figures[:4] == ("running", 1, 0, 0)


def test_a_fault_in_a_source_reaches_the_owner(harness: Make) -> None:
    def fault(index: int) -> None:
        raise ZeroDivisionError

    run = harness(Camera([1], before=fault), recorded=True)
    wait_for(lambda: run.feed._crash)
    with pytest.raises(ZeroDivisionError):
        run.feed.check()


def test_a_fault_in_a_camera_is_a_loss_like_any_other(
    harness: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(index: int) -> None:
        raise ZeroDivisionError("by nought")

    with caplog.at_level(logging.DEBUG):
        run = harness(Camera([1], before=fault), Camera([2]))
        run.state("waiting")
    run.later(1.1)
    wait_for(lambda: run.values == [2])
    assert run.feed.figures[5] == "ZeroDivisionError: by nought"
    # Whoever wrote the source finds the line.
    assert any(record.exc_info for record in caplog.records)


def test_a_feed_that_never_ran_closes_its_source() -> None:
    camera = Camera([1])
    feed = Feed(Input(camera), lambda *_: True, patience=PATIENCE)
    feed.stop()
    assert camera.closed == 1
