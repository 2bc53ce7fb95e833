"""The camera loop: sources through one segmenter into every sink, each on its own thread."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from aeseg_edge.bundle.drift import RunningDrift
from aeseg_edge.errors import SinkError, UsageError
from aeseg_edge.loop.delivery import Delivery
from aeseg_edge.loop.feed import OPEN_AT_ONCE, Captured, Feed, Input
from aeseg_edge.loop.rate import RateLine, RateReporter, RunTotals
from aeseg_edge.loop.settings import DROPS
from aeseg_edge.loop.watchdog import Patience
from aeseg_edge.sinks.base import Routed, Sink, as_sinks
from aeseg_edge.sinks.counters import LoopCounters, SourceCounters
from aeseg_edge.support.stats import LatencySketch
from aeseg_edge.support.threads import Lane, Mailbox, Worker

if TYPE_CHECKING:
    from aeseg_edge.segment.segmenter import Segmenter, SubmittedFrame

_log = logging.getLogger(__name__)


_LOSSLESS_ROOM = 2
_TICK = 0.02
_NAP = 1.0
_PATIENCE_AT_END = 2.0
_STUCK = 10.0
"""Seconds in which a sink takes no result, at the end of a run, and is left."""
_DISTANCE = frozenset({"distance"})


class CameraLoop:
    """Sources on threads of their own, one engine that serves them in turn, sinks on theirs.

    Capture leaves frames in a mailbox; one thread segments; every sink has a mailbox and a
    thread. Nothing that comes later slows what comes earlier, unless frames may not be lost.

    Args:
        segmenter: Open; used by one thread of the loop.
        inputs: Open sources; closed by the loop.
        sinks: Open; closed by the loop. A ``Routed`` sink takes one source only. A function of
            frame and result, or an object with ``write(frame, result)``, does too.
        drop: ``latest``: a frame that waits is replaced by a newer one, results that a sink
            is too slow for are dropped; age stays bounded. ``none``: everything waits for the
            slowest part. ``auto``: latest for live sources, none where all are recorded.
        frames: Most frames to segment, of all sources together; no limit when None.
        duration: Seconds after which the run ends; no limit when None.
        patience: With live sources.
        drift_every: Measure how unlike the footage every so many frames of each source are,
            where the bundle can; 0 never does.
        line_every: Seconds from one line to the next; the first comes after one at most.
        clock: Monotonic seconds; what ``Frame.captured`` is measured with.
        chance: For the jitter of reconnects.

    Raises:
        UsageError: If two sources have one name, or ``drop`` is unknown.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        inputs: Sequence[Input],
        sinks: Sequence[Sink | Routed],
        *,
        drop: str = "auto",
        frames: int | None = None,
        duration: float | None = None,
        patience: Patience | None = None,
        drift_every: int = 10,
        line_every: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        if drop not in DROPS:
            raise UsageError(f"drop {drop!r} is unknown", fix=f"Use one of {', '.join(DROPS)}.")
        live = any(each.source.live for each in inputs)
        self._lossless = drop == "none" or (drop == "auto" and not live)
        self._segmenter = segmenter
        self._clock = clock
        self._frames = frames
        self._duration = duration
        lane = Lane(_LOSSLESS_ROOM, newest=False) if self._lossless else Lane()
        self._box: Mailbox[Captured] = Mailbox([lane] * len(inputs), clock=clock)
        self._feeds = [
            Feed(
                each,
                partial(self._take_in, lane),
                patience=patience or Patience(),
                # A recording is read no further than needed.
                most=frames if self._lossless else None,
                clock=clock,
                chance=chance,
            )
            for lane, each in enumerate(inputs)
        ]
        names = [feed.name for feed in self._feeds]
        if len(set(names)) < len(names):
            raise UsageError(f"sources share a name: {names}", fix="Name each one differently.")
        self._deliveries = [
            Delivery(
                sink.sink if isinstance(sink, Routed) else sink,
                lossless=self._lossless,
                source=sink.source if isinstance(sink, Routed) else None,
                clock=clock,
            )
            for sink in as_sinks(sinks)
        ]
        self._reporter = RateReporter(period=line_every, clock=clock)
        self._lock = threading.Lock()
        self._segmented = [0] * len(inputs)
        self._handed = [0] * len(inputs)
        self._ages = [LatencySketch() for _ in inputs]
        self._drift_every = drift_every
        self._drifts = [RunningDrift() for _ in inputs]
        self._reported_drops = 0
        self._stopping = False
        self._given_up = False
        self._moved: tuple[list[int], float] | None = None
        self._error: BaseException | None = None
        self._engine = Worker(self._segment_all, "segment")
        self._started = clock()

    def run(
        self,
        stop: threading.Event | None = None,
        on_line: Callable[[RateLine], None] | None = None,
    ) -> RunTotals:
        """Run until every source ends, the limit is reached, a window is closed or ``stop``.

        Sinks are closed on a clean end, so that a video file is whole, and when a camera is
        given up; on another error they are aborted, so that nothing half-written is left.

        Args:
            stop: Looked at ten times a second or more.
            on_line: Called about every ``line_every`` seconds, on this thread.

        Returns:
            Frames segmented, frames dropped at capture, and the distribution of the time from
            the start of a frame's segmentation to its labels.

        Raises:
            SourceError: If a recorded source fails, or a camera is given up.
            SinkError: If a sink fails, or, where results may be dropped, takes none for ten
                seconds at the end. The others are whole then.
        """
        try:
            self._start()
            while not self._engine.ended:
                self._watch(stop, on_line)
            self._raise_failures(cameras_too=False)
            stuck = self._drain(stop)
            self._report_line(on_line)
            with self._lock:
                totals = self._reporter.totals()
            self._raise_failures(cameras_too=False)
            left = [each for each in self._deliveries if each not in stuck and not each.closed]
            _close([each.sink for each in left])
            self._raise_failures(cameras_too=True)
            if stuck:
                raise SinkError(
                    f"{', '.join(each.sink.name for each in stuck)} took no result for "
                    f"{_STUCK:g} s and was left",
                    fix="Check the disk, or whoever is on the other side.",
                )
            return totals
        finally:
            self._clean_up()

    def counters(self) -> LoopCounters:
        """Give a snapshot; callable from any thread."""
        left, dropped = self._box.dropped, self._dropped()
        with self._lock:
            segmented, ages = list(self._segmented), [age.summary() for age in self._ages]
            drifts = [drift.value for drift in self._drifts]
        sources = []
        for lane, feed in enumerate(self._feeds):
            state, frames, reconnects, stalls, size, problem = feed.figures
            sources.append(
                SourceCounters(
                    name=feed.name,
                    state=state,
                    frames_in=frames - left[lane] + dropped[lane],
                    segmented=segmented[lane],
                    dropped={"capture": dropped[lane]},
                    reconnects=reconnects,
                    stalls=stalls,
                    age=ages[lane],
                    size=size,
                    problem=problem,
                    drift=drifts[lane],
                    live=feed.live,
                )
            )
        return LoopCounters(
            seconds=self._clock() - self._started,
            sources=tuple(sources),
            sinks=tuple(delivery.counters() for delivery in self._deliveries),
            lost_wakeups=self._box.lost_wakeups
            + sum(delivery.lost_wakeups for delivery in self._deliveries),
        )

    def _dropped(self) -> list[int]:
        """Frames lost, by source: what a recording has beyond a limit was not asked for."""
        kept = [self._lossless and not feed.live for feed in self._feeds]
        return [0 if k else count for k, count in zip(kept, self._box.dropped, strict=True)]

    def _start(self) -> None:
        for delivery in self._deliveries:
            delivery.sink.watch(self.counters)
            if delivery.source is None:
                delivery.start()
        self._engine.start()
        self._start_feeds()

    def _start_feeds(self) -> None:
        """Start cameras at once; of recordings that nobody waits for, a few at a time."""
        at_once = OPEN_AT_ONCE if self._lossless else len(self._feeds)
        playing = sum(not feed.live and not feed.done for feed in self._feeds if feed.started)
        for feed in self._feeds:
            if not feed.started and (feed.live or playing < at_once):
                playing += not feed.live
                for delivery in self._deliveries:
                    if delivery.source == feed.name:
                        delivery.start()
                feed.start()

    def _watch(
        self, stop: threading.Event | None, on_line: Callable[[RateLine], None] | None
    ) -> None:
        """Do what the main thread does a few times a second while the others work."""
        windows = [each for each in self._deliveries if each.sink.on_main_thread]
        if windows:
            for window in windows:
                window.step(_TICK / len(windows))
                window.sink.idle()
        else:
            self._engine.wait(_TICK)
        for feed in self._feeds:
            feed.check()
        if not self._stopping:
            self._start_feeds()
            self._close_ended()
        if all(feed.done for feed in self._feeds):
            # What is in the mailbox is still segmented.
            self._box.close()
        told = self._told_to_end(stop)
        failed = any(feed.error is not None and not feed.live for feed in self._feeds)
        if (
            told
            or failed
            or any(each.error is not None or each.sink.closed_by_user for each in self._deliveries)
        ):
            self._end_capture()
        if told:
            self._leave_stuck()
        self._report_line(on_line)

    def _told_to_end(self, stop: threading.Event | None) -> bool:
        """Whether a signal came, or time is up."""
        out_of_time = self._duration is not None and self._clock() - self._started >= self._duration
        return out_of_time or (stop is not None and stop.is_set())

    def _leave_stuck(self) -> None:
        """Once told to end, wait no longer for sinks that take nothing, though none may be lost."""
        counts, now = [each.delivered for each in self._deliveries], self._clock()
        if self._moved is None or self._moved[0] != counts:
            self._moved = counts, now
        elif now - self._moved[1] >= _STUCK and not self._given_up:
            self._given_up = True
            for delivery in self._deliveries:
                delivery.give_up()

    def _close_ended(self) -> None:
        """Close what one recording alone goes into at its end: many encoders take much memory."""
        for handed, feed in zip(self._handed, self._feeds, strict=True):
            if self._lossless and feed.done and handed == feed.figures[1]:
                for delivery in self._deliveries:
                    if delivery.source == feed.name:
                        delivery.close_early()

    def _drain(self, stop: threading.Event | None = None) -> list[Delivery]:
        """Wait until every sink has its results; give those that are stuck, and are left.

        None is left where nothing may be lost, until the run is told to end.
        """
        started = self._clock()
        for delivery in self._deliveries:
            delivery.finish()
        counts = [delivery.delivered for delivery in self._deliveries]
        stuck = []
        for delivery, count in zip(self._deliveries, counts, strict=True):
            since = started
            # In short steps, so that a second signal gets through.
            while not delivery.join(_TICK):
                now = self._clock()
                if delivery.delivered != count:
                    # Slow, but it moves.
                    count, since = delivery.delivered, now
                elif now - since >= _STUCK and (not self._lossless or self._told_to_end(stop)):
                    stuck.append(delivery)
                    break
        return stuck

    def _report_line(self, on_line: Callable[[RateLine], None] | None) -> None:
        drops = sum(self._dropped())
        with self._lock:
            self._reporter.dropped(drops - self._reported_drops)
            self._reported_drops = drops
            line = self._reporter.poll()
        if line is not None and on_line is not None:
            on_line(line)

    def _end_capture(self) -> None:
        """Let the frame under way be the last."""
        self._stopping = True
        self._box.close(discard=True)
        for feed in self._feeds:
            feed.stop()

    def _raise_failures(self, *, cameras_too: bool) -> None:
        failures = [self._error, *(each.error for each in self._deliveries)]
        failures += [feed.error for feed in self._feeds if cameras_too or not feed.live]
        for failure in failures:
            if failure is not None:
                raise failure

    def _clean_up(self) -> None:
        """Leave nothing behind, whatever happened; after a good end there is nothing to do."""
        self._end_capture()
        for delivery in self._deliveries:
            delivery.give_up()
        # The engine's owner closes it next, and may not while a frame is under way.
        self._engine.wait(_PATIENCE_AT_END)
        for feed in self._feeds:
            feed.join(_PATIENCE_AT_END)
        for delivery in self._deliveries:
            ended = delivery.join(_PATIENCE_AT_END)
            if ended or (delivery.sink.interrupt() and delivery.join(_PATIENCE_AT_END)):
                delivery.sink.abort()
            else:
                _log.warning("%s is stuck and is left as it is", delivery.sink.name)

    def _take_in(self, lane: int, captured: Captured, cancelled: Callable[[], bool]) -> bool:
        return self._box.put(captured, lane, cancelled=cancelled)

    def _segment_all(self) -> None:
        """Segment what is in the mailbox until it is closed and empty; the body of a thread."""
        try:
            self._segment_each()
        except BaseException as error:
            self._error = error
        finally:
            self._end_capture()

    def _segment_each(self) -> None:
        # Where nothing may be lost, the next frame is submitted before the last one is
        # collected, and its copy overlaps the other's work. Where only the newest counts, a
        # frame that waits in the engine would age there.
        depth = 2 if self._lossless else 1
        under_way: deque[tuple[int, Captured, SubmittedFrame, float]] = deque()
        sessions: dict[int, tuple[int, str | None]] = {}
        begun = 0
        # What was segmented before, perhaps another recording, is not smoothed into this one.
        self._segmenter.reset()
        while True:
            closed = self._box.closed
            wanted = self._frames is None or begun < self._frames
            taken = None
            if wanted and not self._stopping:
                taken = self._box.take(0.0 if under_way or closed else _NAP)
            if taken is not None:
                lane, captured = taken
                session = captured.session, captured.frame.recording
                if sessions.get(lane, session) != session:
                    while under_way:
                        self._finish(*under_way.popleft())
                    self._segmenter.reset(lane)
                sessions[lane] = session
                frame, started = captured.frame, time.perf_counter()
                submitted = self._segmenter.submit(
                    frame.image, captured=frame.captured, stream=lane
                )
                under_way.append((lane, captured, submitted, started))
                begun += 1
            if under_way and (taken is None or len(under_way) >= depth):
                self._finish(*under_way.popleft())
            elif taken is None and (closed or not wanted or self._stopping):
                return

    def _finish(
        self, lane: int, captured: Captured, submitted: SubmittedFrame, started: float
    ) -> None:
        """Collect one frame and hand it to every sink."""
        measured = self._drift_every and self._segmented[lane] % self._drift_every == 0
        wanted = [each.sink.wants for each in self._deliveries]
        result = self._segmenter.collect(
            submitted, (_DISTANCE if measured else frozenset()).union(*wanted)
        )
        milliseconds = (time.perf_counter() - started) * 1e3
        frame = captured.frame
        with self._lock:
            self._segmented[lane] += 1
            self._reporter.frame(milliseconds)
            self._ages[lane].add(max(0.0, self._clock() - frame.captured) * 1e3)
            if measured and result.frame_drift is not None:
                self._drifts[lane].add(result.frame_drift)
            drift = self._drifts[lane].value
        delivered = replace(result, frame=frame, drift=drift)
        for delivery in self._deliveries:
            delivery.put(frame, delivered)
        self._handed[lane] += 1


def _close(sinks: Sequence[Sink]) -> None:
    """Close every sink, also after one fails: a full disk does not spoil another's file."""
    failures = []
    for sink in sinks:
        try:
            sink.close()
        except SinkError as problem:
            failures.append(problem)
    for failure in failures[1:]:
        _log.error("%s", failure)
    if failures:
        raise failures[0]
