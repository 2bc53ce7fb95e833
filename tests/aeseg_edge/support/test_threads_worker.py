"""Ctrl-C while somebody waits for a thread does not make that thread seem to have ended."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import Input
from aeseg_edge.support.threads import Worker
from tests.doubles.loop import END, Camera, Collecting, Engine, wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are a POSIX thing")


@pytest.fixture(autouse=True)
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


def test_after_ctrl_c_the_frame_under_way_is_done_before_the_loop_is_left() -> None:
    blocked = Blocked()
    sink = Collecting()
    with pytest.raises(KeyboardInterrupt):
        CameraLoop(Engine(blocked), [Input(Camera([1, END]))], [sink]).run()
    # The owner closes the engine next.
    assert blocked.done
    assert sink.ended == ["aborted"]
    blocked.presser.join()


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
