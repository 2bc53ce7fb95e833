"""The run loop: every frame of a source through a segmenter into every sink."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from types import FrameType
from typing import TYPE_CHECKING

from aeseg_edge.errors import SinkError
from aeseg_edge.timing import RateLine, RateReporter, RunTotals

if TYPE_CHECKING:
    from aeseg_edge.io.sinks import Sink
    from aeseg_edge.io.sources import Source
    from aeseg_edge.segmenter import Segmenter

_log = logging.getLogger(__name__)


def run_loop(
    segmenter: Segmenter,
    source: Source,
    sinks: Sequence[Sink],
    *,
    frames: int | None = None,
    stop: threading.Event | None = None,
    on_line: Callable[[RateLine], None] | None = None,
) -> RunTotals:
    """Segment frames until the source ends, ``frames`` are done, or ``stop`` is set.

    Sinks are closed on a clean end, so that a video file is whole; on an error they are
    aborted, so that nothing half-written is left.

    Args:
        segmenter: Open segmenter.
        source: Open source; closed here.
        sinks: Open sinks; closed here.
        frames: Most frames to segment; no limit when None.
        stop: Looked at between frames.
        on_line: Called about once a second.

    Returns:
        Frames, drops and the distribution of the time a frame took (segmentation and
        delivery).

    Raises:
        SourceError: If the source fails.
        SinkError: If a sink fails.
    """
    reporter = RateReporter()
    with ExitStack() as stack:
        stack.callback(source.close)
        for sink in sinks:
            stack.callback(sink.abort)
        # islice never asks for the frame after the last one wanted.
        for frame in islice(source, frames):
            if stop is not None and stop.is_set():
                break
            started = time.perf_counter()
            result = segmenter(frame.image, captured=frame.captured)
            delivered = replace(result, frame=frame)
            for sink in sinks:
                sink.write(frame, delivered)
            reporter.frame((time.perf_counter() - started) * 1e3)
            line = reporter.poll()
            if line is not None and on_line is not None:
                on_line(line)
            if any(sink.closed_by_user for sink in sinks):
                break
        totals = reporter.totals()
        _close(sinks)
    return totals


def _close(sinks: Sequence[Sink]) -> None:
    """Close every sink, also after one fails: a full disk does not spoil another's file.

    Raises:
        SinkError: The first failure.
    """
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


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event; a second signal ends the process at once.

    Yields:
        An event that is set by the first signal. Outside the main thread signals cannot be
        caught, and the event stays unset.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        _log.info("signal %d: finishing the current frame", number)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
