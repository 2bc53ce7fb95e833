"""Percentiles and the line a second, with clocks that the tests turn."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aeseg_edge.errors import UsageError
from aeseg_edge.loop.rate import RateReporter
from aeseg_edge.support.stats import LatencySketch, summarise


class Clock:
    """Time that moves only when told."""

    START = 1000  # so that a start that is forgotten shows

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.START + self.now


def test_a_summary_equals_numpys_percentiles() -> None:
    samples = np.random.default_rng(0).gamma(2.0, 5.0, 997).tolist()
    summary = summarise(samples)
    assert (summary.p50, summary.p90, summary.p95, summary.p99) == pytest.approx(
        np.percentile(samples, [50, 90, 95, 99]).tolist()
    )
    assert (summary.count, summary.min, summary.max) == (997, min(samples), max(samples))
    assert (summary.mean, summary.jitter) == pytest.approx((np.mean(samples), np.std(samples)))


def test_percentiles_interpolate_linearly_between_samples() -> None:
    summary = summarise([10.0, 20.0])
    assert (summary.p50, summary.p90) == pytest.approx((15.0, 19.0))
    assert summarise([3.0]).p99 == 3.0
    assert summary.to_json()["jitter"] == 5.0


def test_a_summary_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no samples"):
        summarise([])


def test_the_sketch_is_within_one_percent_of_the_sample_of_that_rank() -> None:
    samples = np.random.default_rng(1).lognormal(2.0, 1.5, 20_000)
    sketch = LatencySketch(accuracy=0.01)
    for sample in samples:
        sketch.add(float(sample))
    found = sketch.summary()
    assert found is not None
    expected = np.percentile(samples, [50, 90, 95, 99], method="lower")
    np.testing.assert_allclose([found.p50, found.p90, found.p95, found.p99], expected, rtol=0.01)
    assert (found.count, found.min, found.max) == (20_000, samples.min(), samples.max())
    assert (found.mean, found.jitter) == pytest.approx((samples.mean(), samples.std()))


def test_the_sketch_takes_the_rank_below_and_knows_a_single_sample() -> None:
    sketch = LatencySketch()
    sketch.add(3.0)
    one = sketch.summary()
    assert one is not None
    assert (one.p50, one.p99, one.jitter) == (3.0, 3.0, 0.0)
    for sample in (1.0, 2.0, 9e5):
        sketch.add(sample)
    four = sketch.summary()
    assert four is not None
    assert four.p50 == pytest.approx(2.0, rel=0.01)
    assert four.p99 == pytest.approx(3.0, rel=0.01)


def test_the_sketch_is_exact_to_a_percent_up_to_a_thousand_seconds() -> None:
    sketch = LatencySketch()
    for sample in (9.5e5, 9.5e5, 9.5e5, 5e6):
        sketch.add(sample)
    found = sketch.summary()
    assert found is not None
    assert found.p50 == pytest.approx(9.5e5, rel=0.01)


def test_the_sketch_keeps_its_size_and_takes_extremes() -> None:
    sketch = LatencySketch()
    before = sketch._bins.nbytes
    for value in (0.0, 1e-9, 1e12, 5.0):
        sketch.add(value)
    found = sketch.summary()
    assert found is not None
    assert (found.count, found.min, found.max) == (4, 0.0, 1e12)
    assert found.p50 == pytest.approx(1e-3, rel=0.02)  # the first bin
    assert sketch._bins.nbytes == before < 10_000


def test_the_sketch_refuses_what_no_clock_can_give() -> None:
    sketch = LatencySketch()
    assert sketch.summary() is None
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="impossible"):
            sketch.add(value)
    assert sketch.summary() is None


def test_one_line_a_period_with_the_figures_since_the_last() -> None:
    clock = Clock()
    reporter = RateReporter(clock=clock)
    lines = []
    for tick in range(1, 41):  # 20 frames a second for two seconds
        clock.now = tick / 20
        reporter.frame(10.0 if tick <= 20 else 10.0 * tick)
        if tick % 10 == 0:
            reporter.dropped(2)
        line = reporter.poll()
        if line:
            lines.append(line)
    first, second = lines
    assert (first.seconds, first.fps, first.p50, first.p95) == (1.0, 20.0, 10.0, 10.0)
    assert (first.drops, first.total_drops, first.frames) == (4, 4, 20)
    assert (second.seconds, second.fps, second.drops, second.total_drops) == (2.0, 20.0, 4, 8)
    assert (second.p50, second.p95) == pytest.approx((305.0, 390.5))
    assert "2 s    20.0 fps  p50 305.0 ms  p95 390.5 ms  drops 4 (8 in all)" in str(second)


def test_a_late_line_divides_by_the_time_that_really_passed() -> None:
    clock = Clock()
    reporter = RateReporter(clock=clock)
    for _ in range(10):
        reporter.frame(1.0)
    clock.now = 4
    line = reporter.poll()
    assert line is not None
    assert line.fps == 2.5


def test_a_stalled_source_shows_zero_fps_and_no_latency() -> None:
    clock = Clock()
    reporter = RateReporter(clock=clock)
    clock.now = 1
    line = reporter.poll()
    assert line is not None
    assert (line.fps, line.p50, line.p95) == (0.0, None, None)
    assert "p50 - ms" in str(line)
    assert reporter.poll() is None


def test_a_line_keeps_only_the_last_latencies_and_counts_all_frames() -> None:
    clock = Clock()
    reporter = RateReporter(window=5, clock=clock)
    for value in range(100):
        reporter.frame(float(value))
    clock.now = 1
    line = reporter.poll()
    assert line is not None
    assert (line.p50, line.fps) == (97.0, 100.0)


def test_totals_cover_the_whole_run_as_json() -> None:
    clock = Clock()
    reporter = RateReporter(clock=clock)
    empty = reporter.totals().to_json()
    assert (empty["fps"], empty["latency_ms"]) == (0.0, None)
    for tick in range(1, 11):
        clock.now = tick / 2
        reporter.frame(8.0)
        reporter.poll()
    reporter.dropped()
    totals = json.loads(json.dumps(reporter.totals().to_json(), allow_nan=False))
    assert (totals["seconds"], totals["frames"], totals["drops"], totals["fps"]) == (5, 10, 1, 2)
    assert totals["latency_ms"]["count"] == 10
    assert totals["latency_ms"]["p50"] == pytest.approx(8.0, rel=0.01)


def test_lines_a_minute_apart_cover_the_minute_and_the_first_comes_soon() -> None:
    now = [0.0]
    reporter = RateReporter(period=60.0, clock=lambda: now[0])
    lines = []
    for second in range(1, 125):
        now[0] = float(second)
        for _ in range(5):
            reporter.frame(10.0)
        reporter.dropped()
        lines.append(reporter.poll())
    told = [line for line in lines if line is not None]
    assert [line.seconds for line in told] == [1.0, 61.0, 121.0]
    assert [line.drops for line in told] == [1, 60, 60]
    assert [line.fps for line in told] == [5.0, 5.0, 5.0]
