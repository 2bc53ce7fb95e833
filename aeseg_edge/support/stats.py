"""Stage times, percentiles, and the line that a running loop shows each second.

Nothing here prints, and nothing grows with the length of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aeseg_edge.errors import UsageError


@dataclass(frozen=True)
class Summary:
    """Distribution of samples, in the samples' own unit (milliseconds, unless said).

    ``p50`` to ``p99`` are percentiles, ``jitter`` is the population standard deviation.
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
    """Summarise raw samples; UsageError without any.

    Percentiles interpolate linearly between the closest ranks: definition 7 of Hyndman and
    Fan, Sample Quantiles in Statistical Packages, 1996; numpy.percentile's default.
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
        """Count one latency; UsageError if it is negative or not a number."""
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
