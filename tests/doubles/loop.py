"""Cameras, an engine and sinks for the loop: scripted, and without pictures worth seeing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from aeseg_edge.bundle.codebook import default_classes, palette
from aeseg_edge.errors import SinkError, SourceError
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.sinks.base import Sink
from aeseg_edge.sources.base import Frame, Source

LOST, HANG, END = "lost", "hang", "end"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Camera(Source):
    """A live source that follows a script: brightness of a frame, or what goes wrong.

    A string ends it: `lost` raises, `hang` blocks until `wake`, `end` ends well. After the
    last entry it hangs.
    """

    live, fps = True, 30.0

    def __init__(
        self,
        script: Sequence[int | str],
        *,
        size: tuple[int, int] = (4, 6),
        name: str = "cam",
        before: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.name, self.script, self.size, self.before = name, script, size, before
        self.wake = threading.Event()
        self.closed = 0
        self.interrupted = self.hangs = False

    def __iter__(self) -> Iterator[Frame]:
        for index, entry in enumerate([*self.script, HANG]):
            if entry == HANG:
                self.hangs = True
                self.wake.wait(20)
                continue
            if entry == LOST:
                raise SourceError("the cable is out", fix="Put it back.")
            if entry == END:
                return
            self.before(index)
            image = np.full((*self.size, 3), entry, np.uint8)
            yield Frame(image, index, time.monotonic(), self.name)

    def interrupt(self) -> None:
        self.interrupted = True

    def close(self) -> None:
        self.closed += 1


class Engine:
    """Everything is class 0; `before` is called for each frame that is collected."""

    def __init__(
        self, before: Callable[[np.ndarray], None] = lambda _: None, smooth: float = 0.0
    ) -> None:
        self.before, self.smooth = before, smooth
        self.calls: list[str] = []
        self.wants: list[frozenset[str]] = []

    def submit(
        self, image: np.ndarray, *, captured: float | None = None, stream: int = 0
    ) -> tuple[np.ndarray, float | None]:
        self.calls.append(f"submit {image[0, 0, 0]}")
        return image, captured

    def collect(
        self, submitted: tuple[np.ndarray, float | None], want: frozenset[str] = frozenset()
    ) -> Segmentation:
        image, captured = submitted
        self.wants.append(want)
        self.before(image)
        self.calls.append(f"collect {image[0, 0, 0]}")
        classes = default_classes(1)
        labels = np.zeros(image.shape[:2], np.uint8)
        age = None if captured is None else time.monotonic() - captured
        return Segmentation(labels, classes, palette(classes), frame_age=age)

    def reset(self, stream: int | None = None) -> None:
        self.calls.append(f"reset {stream}")


class Collecting(Sink):
    """A sink that remembers what it got; `before` is called for each."""

    name, backlog = "collecting", 1000

    def __init__(self, before: Callable[[Frame], None] = lambda _: None) -> None:
        self.before = before
        self.frames: list[Frame] = []
        self.ended: list[str] = []

    def write(self, frame: Frame, result: Segmentation) -> None:
        self.before(frame)
        self.frames.append(frame)

    @property
    def values(self) -> list[int]:
        return [int(frame.image[0, 0, 0]) for frame in self.frames]

    def close(self) -> None:
        self.ended.append("closed")

    def abort(self) -> None:
        self.ended.append("aborted")


class Failing(Collecting):
    """A sink whose disk is full from the first frame on."""

    def write(self, frame: Frame, result: Segmentation) -> None:
        raise SinkError("the disk is full", fix="Free some space.")


def wait_for(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Fail, rather than hang, where something never happens."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)
