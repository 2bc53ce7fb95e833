"""A mailbox holds the newest item, or loses none; several senders are served in turn."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import Input
from aeseg_edge.support.threads import Lane, Mailbox, Worker
from tests.doubles.loop import END, Camera, Collecting, Engine, wait_for

QUEUE = Lane(room=2, newest=False)


def drain(box: Mailbox[int]) -> list[tuple[int, int]]:
    return list(iter(lambda: box.take(0.0), None))  # type: ignore[arg-type]


def test_the_newest_item_replaces_the_one_that_waits_and_that_is_counted() -> None:
    box: Mailbox[int] = Mailbox([Lane()])
    assert all(box.put(item) for item in (1, 2, 3))
    assert box.take(0.0) == (0, 3)
    assert box.take(0.0) is None
    assert box.dropped == (2,)


def test_a_backlog_drops_the_oldest_first() -> None:
    box: Mailbox[int] = Mailbox([Lane(room=3)])
    for item in range(5):
        box.put(item)
    assert [item for _, item in drain(box)] == [2, 3, 4]
    assert box.dropped == (2,)


def test_a_queue_lets_the_sender_wait_and_loses_nothing() -> None:
    box: Mailbox[int] = Mailbox([QUEUE])
    sender = threading.Thread(target=lambda: [box.put(item) for item in range(50)])
    sender.start()
    got = []
    while len(got) < 50:
        taken = box.take(20.0)
        assert taken is not None
        got.append(taken[1])
    sender.join()
    assert got == list(range(50))
    assert box.dropped == (0,)


def test_a_full_queue_is_left_by_a_sender_that_is_cancelled_or_when_it_is_closed() -> None:
    box: Mailbox[int] = Mailbox([QUEUE, QUEUE])
    for lane in (0, 0, 1, 1):
        box.put(lane, lane)
    assert not box.put(7, 0, cancelled=lambda: True)
    results: list[bool] = []
    sender = threading.Thread(target=lambda: results.append(box.put(8, 1)))
    sender.start()
    box.close()
    sender.join(20)
    assert results == [False]
    assert box.dropped == (1, 1)
    assert drain(box) == [(0, 0), (1, 1), (0, 0), (1, 1)]


def test_a_fast_sender_does_not_starve_the_others() -> None:
    box: Mailbox[int] = Mailbox([Lane(), Lane(), Lane()])
    served = []
    for lane in (1, 2):
        box.put(0, lane)
    for _ in range(7):
        box.put(0, 0)
        taken = box.take(0.0)
        assert taken is not None
        served.append(taken[0])
        box.put(0, taken[0])
    assert served == [0, 1, 2, 0, 1, 2, 0]


def test_a_taker_sleeps_until_an_item_comes() -> None:
    box: Mailbox[int] = Mailbox([Lane()])
    got: list[object] = []
    taker = threading.Thread(target=lambda: got.append(box.take(20.0)))
    taker.start()
    box.put(5)
    taker.join(20)
    assert got == [(0, 5)]
    assert box.lost_wakeups == 0


def test_closing_wakes_the_taker() -> None:
    box: Mailbox[int] = Mailbox([Lane()])
    got: list[object] = []
    taker = threading.Thread(target=lambda: got.append(box.take(20.0)))
    taker.start()
    box.close()
    taker.join(20)
    assert got == [None]


@pytest.mark.parametrize("discard", [False, True])
def test_what_is_inside_a_closed_mailbox_is_kept_or_counted(discard: bool) -> None:
    box: Mailbox[int] = Mailbox([Lane(room=4)])
    box.put(1)
    box.put(2)
    box.close(discard=discard)
    assert not box.put(3)
    assert [item for _, item in drain(box)] == ([] if discard else [1, 2])
    assert box.dropped == (3 if discard else 1,)


def test_a_wake_up_that_got_lost_is_counted() -> None:
    box: Mailbox[int] = Mailbox([Lane()])

    class Deaf(threading.Condition):
        def notify_all(self) -> None:
            pass

    box._changed = Deaf()
    got: list[object] = []
    taker = threading.Thread(target=lambda: got.append(box.take(0.2)))
    taker.start()
    wait_for(lambda: box._changed._waiters)  # type: ignore[attr-defined]
    box.put(1)
    taker.join(20)
    assert box.lost_wakeups == 1
    assert got == [(0, 1)]


# Ctrl-C while somebody waits for a thread does not make that thread seem to have ended ----------

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals are a POSIX thing")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt on the main thread, whatever runs these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Blocked:
    """Work that is under way when Ctrl-C is pressed and is done a moment later."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.done = False
        self.main = threading.main_thread().ident
        self.presser = threading.Thread(target=self.press)

    def __call__(self, *_: object) -> None:
        self.presser.start()
        assert self.released.wait(20)
        self.done = True

    def press(self) -> None:
        # The main thread waits by now, and waits again when the work gets done.
        time.sleep(0.1)
        assert self.main is not None
        signal.pthread_kill(self.main, signal.SIGINT)
        time.sleep(0.1)
        self.released.set()


@POSIX
@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_wait_can_be_repeated() -> None:
    blocked = Blocked()
    worker = Worker(blocked, "work")
    assert worker.wait(0)
    worker.start()
    with pytest.raises(KeyboardInterrupt):
        worker.wait(20)
    assert not worker.ended
    assert not worker.wait(0)
    assert worker.wait(20)
    assert blocked.done
    blocked.presser.join()


@POSIX
@pytest.mark.usefixtures("ctrl_c")
def test_after_ctrl_c_the_frame_under_way_is_done_before_the_loop_is_left() -> None:
    blocked = Blocked()
    sink = Collecting()
    with pytest.raises(KeyboardInterrupt):
        CameraLoop(Engine(blocked), [Input(Camera([1, END]))], [sink]).run()
    # The owner closes the engine next.
    assert blocked.done
    assert sink.ended == ["aborted"]
    blocked.presser.join()


@POSIX
@pytest.mark.usefixtures("ctrl_c")
def test_after_ctrl_c_a_sink_is_not_aborted_while_it_writes() -> None:
    blocked = Blocked()

    class Sink(Collecting):
        def abort(self) -> None:
            assert blocked.done
            super().abort()

    sink = Sink(blocked)
    with pytest.raises(KeyboardInterrupt):
        CameraLoop(Engine(), [Input(Camera([1, END]))], [sink], drop="none").run()
    assert sink.ended == ["aborted"]
    wait_for(lambda: not blocked.presser.is_alive())
