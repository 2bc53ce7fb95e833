"""The line that a running loop shows each second, and its totals."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from aeseg_edge.support.stats import LatencySketch, Summary


@dataclass(frozen=True)
class RateLine:
    """What happened since the last line: seconds and frames since the run began, in all.

    ``p50`` and ``p95`` are latencies in ms, None where no frame was ready; ``fps`` and ``drops``
    are since the last line.
    """

    seconds: float
    fps: float
    p50: float | None
    p95: float | None
    drops: int
    frames: int
    total_drops: int

    def __str__(self) -> str:
        """Return one line of text for a terminal."""
        p50, p95 = ("-" if v is None else f"{v:.1f}" for v in (self.p50, self.p95))
        return (
            f"{self.seconds:7.0f} s  {self.fps:6.1f} fps  p50 {p50} ms  p95 {p95} ms  "
            f"drops {self.drops} ({self.total_drops} in all)"
        )


@dataclass(frozen=True)
class RunTotals:
    """Figures of a whole run; the latency in ms is a sketch, None where there was no frame."""

    seconds: float
    frames: int
    drops: int
    fps: float
    latency: Summary | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {
            "seconds": round(self.seconds, 3),
            "frames": self.frames,
            "drops": self.drops,
            "fps": round(self.fps, 3),
            "latency_ms": None if self.latency is None else self.latency.to_json(),
        }


class RateReporter:
    """Turns frames and drops into one RateLine a ``period`` (s) and the totals of a run.

    Memory is bounded: the last ``window`` latencies since the last line (percentiles are of
    these), and a LatencySketch for the run. Not locked: one thread owns it.

    Example:
        >>> reporter = RateReporter(clock=iter([0.0, 0.5, 1.0]).__next__)
        >>> reporter.frame(12.0)
        >>> reporter.poll() is None
        True
        >>> str(reporter.poll()).strip()
        '1 s     1.0 fps  p50 12.0 ms  p95 12.0 ms  drops 0 (0 in all)'
    """

    def __init__(
        self,
        *,
        period: float = 1.0,
        window: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._period = period
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=window)
        self._sketch = LatencySketch()
        self._frames = self._drops = 0
        self._line_frames = self._line_drops = 0
        self._start = self._line_start = clock()

    def frame(self, milliseconds: float) -> None:
        """Record one delivered frame and its latency."""
        self._sketch.add(milliseconds)
        self._recent.append(milliseconds)
        self._frames += 1
        self._line_frames += 1

    def dropped(self, count: int = 1) -> None:
        """Record frames that were captured and never segmented."""
        self._drops += count
        self._line_drops += count

    def poll(self) -> RateLine | None:
        """Return a line when a period has passed since the last, otherwise None.

        Call it after each frame, and while waiting for one: a camera that stalls then
        shows 0 fps.
        """
        now = self._clock()
        elapsed = now - self._line_start
        # The first one tells that the run has begun.
        if elapsed < (self._period if self._line_start > self._start else min(1.0, self._period)):
            return None
        p50 = p95 = None
        if self._recent:
            p50, p95 = (float(v) for v in np.percentile(list(self._recent), (50, 95)))
        line = RateLine(
            seconds=now - self._start,
            fps=self._line_frames / elapsed,
            p50=p50,
            p95=p95,
            drops=self._line_drops,
            frames=self._frames,
            total_drops=self._drops,
        )
        self._recent.clear()
        self._line_frames = self._line_drops = 0
        self._line_start = now
        return line

    def totals(self) -> RunTotals:
        """Return the figures of the run up to now."""
        seconds = self._clock() - self._start
        return RunTotals(
            seconds=seconds,
            frames=self._frames,
            drops=self._drops,
            fps=self._frames / seconds if seconds > 0 else 0.0,
            latency=self._sketch.summary(),
        )
