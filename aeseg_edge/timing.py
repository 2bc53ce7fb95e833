"""Stage times, percentiles, and the line that a running loop shows each second.

Nothing here prints, and nothing grows with the length of a run.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aeseg_edge.errors import UsageError

_NS_PER_MS = 1e6


class Stopwatch:
    """Measures the stages of one frame; make a new one for each frame.

    Args:
        clock: Monotonic nanoseconds.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.stage("preprocess"):
        ...     pass
        >>> sorted(watch.milliseconds())
        ['preprocess', 'total']
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Start the time that counts as "total"."""
        self._clock = clock
        self._stages: dict[str, float] = {}
        self._start = clock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside the `with` block to the stage `name`."""
        start = self._clock()
        try:
            yield
        finally:
            self.add(name, (self._clock() - start) / _NS_PER_MS)

    def add(self, name: str, milliseconds: float) -> None:
        """Add time that something else measured (a backend, a device event) to a stage."""
        self._stages[name] = self._stages.get(name, 0.0) + milliseconds

    def milliseconds(self) -> dict[str, float]:
        """Return the stages so far, and as "total" the time since this stopwatch was made."""
        return {**self._stages, "total": (self._clock() - self._start) / _NS_PER_MS}


@dataclass(frozen=True)
class Summary:
    """Distribution of samples, in the samples' own unit (milliseconds, unless said).

    Attributes:
        count: Number of samples.
        min: Smallest sample.
        mean: Arithmetic mean.
        p50: Median.
        p90: 90th percentile.
        p95: 95th percentile.
        p99: 99th percentile.
        max: Largest sample.
        jitter: Population standard deviation.
    """

    count: int
    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    jitter: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures, rounded to four decimals."""
        return {
            name: value if isinstance(value, int) else round(value, 4)
            for name, value in asdict(self).items()
        }


def summarise(samples: Sequence[float]) -> Summary:
    """Summarise raw samples.

    Percentiles interpolate linearly between the closest ranks: definition 7 of Hyndman and
    Fan, Sample Quantiles in Statistical Packages, 1996; numpy.percentile's default.

    Raises:
        UsageError: There are no samples.
    """
    if len(samples) == 0:
        raise UsageError("there are no samples to summarise", fix="Time at least one frame.")
    values = np.asarray(samples, np.float64)
    p50, p90, p95, p99 = (float(v) for v in np.percentile(values, (50, 90, 95, 99)))
    return Summary(
        count=len(values),
        min=float(values.min()),
        mean=float(values.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(values.max()),
        jitter=float(values.std()),
    )


class LatencySketch:
    """Distribution of any number of latencies in constant memory (about 8 KiB).

    Count, min, mean, max and jitter are exact. A percentile is within `accuracy` (relative)
    of the sample with that rank, rounded down, for samples between 1 microsecond and 1000
    seconds; others fall into the first or last bin.

    Sources: DDSketch (Masson, Rim and Lee, VLDB 2019) with fixed bins; Welford's running
    variance (Technometrics 1962).

    Args:
        accuracy: Relative error of a percentile.
    """

    _LOW_MS, _HIGH_MS = 1e-3, 1e6

    def __init__(self, accuracy: float = 0.01) -> None:
        """Start without samples."""
        self._gamma = (1 + accuracy) / (1 - accuracy)
        self._log_gamma = math.log(self._gamma)
        self._first = math.ceil(math.log(self._LOW_MS) / self._log_gamma)
        last = math.ceil(math.log(self._HIGH_MS) / self._log_gamma)
        self._bins = np.zeros(last - self._first + 1, np.int64)
        self._count = 0
        self._min = math.inf
        self._max = -math.inf
        self._mean = 0.0
        self._squares = 0.0

    def add(self, milliseconds: float) -> None:
        """Count one latency.

        Raises:
            UsageError: The value is negative or not a number.
        """
        if not 0 <= milliseconds < math.inf:
            raise UsageError(
                f"a latency of {milliseconds} ms is impossible", fix="Use a monotonic clock."
            )
        floored = max(milliseconds, self._LOW_MS)
        index = math.ceil(math.log(floored) / self._log_gamma) - self._first
        self._bins[min(index, len(self._bins) - 1)] += 1
        self._count += 1
        self._min = min(self._min, milliseconds)
        self._max = max(self._max, milliseconds)
        delta = milliseconds - self._mean
        self._mean += delta / self._count
        self._squares += delta * (milliseconds - self._mean)

    def summary(self) -> Summary | None:
        """Return the distribution so far, or None before the first sample."""
        if self._count == 0:
            return None
        p50, p90, p95, p99 = (self._percentile(p) for p in (50, 90, 95, 99))
        return Summary(
            count=self._count,
            min=self._min,
            mean=self._mean,
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            max=self._max,
            jitter=math.sqrt(self._squares / self._count),
        )

    def _percentile(self, percent: float) -> float:
        rank = math.floor(percent / 100 * (self._count - 1)) + 1
        index = int(np.searchsorted(np.cumsum(self._bins), rank)) + self._first
        middle = 2 * self._gamma**index / (self._gamma + 1)
        return min(max(middle, self._min), self._max)


@dataclass(frozen=True)
class RateLine:
    """What happened since the last line.

    Attributes:
        seconds: Time since the run began.
        fps: Frames a second since the last line.
        p50: Median latency in ms since the last line, or None where no frame was ready.
        p95: 95th percentile, likewise.
        drops: Frames dropped since the last line.
        frames: Frames since the run began.
        total_drops: Frames dropped since the run began.
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
    """Figures of a whole run.

    Attributes:
        seconds: Time from the start to now.
        frames: Frames delivered.
        drops: Frames dropped.
        fps: Frames over seconds.
        latency: Distribution of latency in ms (a sketch, see LatencySketch), or None where
            there was no frame.
    """

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
    """Turns frames and drops into one RateLine a second and the totals of a run.

    Memory is bounded: the last `window` latencies since the last line, and a LatencySketch
    for the run. Not locked: one thread owns it.

    Args:
        period: Seconds between lines.
        window: Latencies kept for one line; above `window` frames a period the percentiles
            are of the last ones.
        clock: Monotonic seconds. The run begins when the reporter is made.

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
        """Start the run."""
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
        if elapsed < self._period:
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
