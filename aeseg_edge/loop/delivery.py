"""Delivery: one sink and the thread that feeds it, so that it can only slow itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.counters import SinkCounters
from aeseg_edge.sources.base import Frame
from aeseg_edge.support.stats import LatencySketch
from aeseg_edge.support.threads import Lane, Mailbox, Worker

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation
    from aeseg_edge.sinks.base import Sink

_NAP = 1.0
_LOSSLESS_ROOM = 4


class Delivery:
    """Hands results to one open sink, those of one source only where it is named.

    ``lossless`` lets the sender wait where the sink is behind; else the oldest waiting result is
    dropped and counted. A sink's ``backlog`` says how many may wait: one for what is watched, more
    for what is kept.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        lossless: bool,
        source: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sink = sink
        self.error: BaseException | None = None
        self.closed = False
        self.source = source
        self._clock = clock
        room = max(_LOSSLESS_ROOM if lossless else 1, sink.backlog)
        self._box: Mailbox[tuple[Frame, Segmentation]] = Mailbox(
            [Lane(room, newest=not lossless)], clock=clock
        )
        self._ages = LatencySketch()
        self._delivered = 0
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._given_up = False

    def start(self) -> None:
        """Begin to deliver."""
        if self.sink.on_main_thread:
            return
        self._worker = Worker(self._run, f"deliver {self.sink.name}")
        self._worker.start()

    def put(self, frame: Frame, result: Segmentation) -> None:
        """Pass one result on; waits only in a lossless run."""
        if self.source is None or frame.source == self.source:
            self._box.put((frame, result), cancelled=lambda: self._given_up)

    def step(self, timeout: float) -> bool:
        """Deliver one result, on the caller's thread; False if there was none in time."""
        taken = self._box.take(timeout)
        if taken is None or self._given_up:
            return False
        frame, result = taken[1]
        try:
            self.sink.write(frame, result)
        except BaseException as error:
            self.error = error
            self.give_up()
            return False
        with self._lock:
            self._delivered += 1
            self._ages.add(max(0.0, self._clock() - frame.captured) * 1e3)
        return True

    def finish(self) -> None:
        """Take no more results; those that wait are still delivered."""
        self._box.close()

    def close_early(self) -> None:
        """Close the sink once it has all results, where no more will come."""
        self.finish()
        if not self.closed and self._worker is not None and self._worker.wait(0):
            self.closed = True
            if self.error is None:
                try:
                    self.sink.close()
                except SinkError as problem:
                    self.error = problem

    def give_up(self) -> None:
        """Take no more results, and drop those that wait."""
        self._given_up = True
        self._box.close(discard=True)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until everything is delivered; False if the sink still has the thread by then."""
        if self._worker is None:
            while self.step(0.0):
                pass
            return True
        return self._worker.wait(timeout)

    @property
    def delivered(self) -> int:
        """Results that the sink took."""
        with self._lock:
            return self._delivered

    @property
    def lost_wakeups(self) -> int:
        """See ``Mailbox.lost_wakeups``."""
        return self._box.lost_wakeups

    def counters(self) -> SinkCounters:
        """Give the figures of this moment."""
        with self._lock:
            return SinkCounters(
                name=self.sink.name,
                delivered=self._delivered,
                dropped=self._box.dropped[0],
                age=self._ages.summary(),
            )

    def _run(self) -> None:
        while True:
            # Closed is looked at before the last look inside: nothing comes in between.
            closed = self._box.closed
            if not self.step(0.0 if closed else _NAP) and closed:
                return
