"""The benchmark's bookkeeping, with a clock that moves only inside the fake segmenter."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aeseg_edge.errors import SourceError, UsageError
from aeseg_edge.measure.bench import (
    alternate,
    bench,
    format_table,
    synthetic_frame,
)
from aeseg_edge.measure.power import PowerRecorder

MILLISECOND = 1_000_000


class Clock:
    """Time that moves only when told."""

    def __init__(self) -> None:
        self.now = 5_000 * MILLISECOND  # so that a start that is forgotten shows

    def __call__(self) -> int:
        return self.now


@dataclass
class FakeSegmenter:
    """Takes 10 ms, then 11, 12, ... for each frame, of which 2 ms are preprocessing."""

    clock: Clock
    seen: list[np.ndarray] = field(default_factory=list)
    manifest: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            geometry=SimpleNamespace(width=48, height=32, channels=3),
            files={"graphs/int8.onnx": SimpleNamespace(size=1_250_000)},
        )
    )
    entry: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            precision="int8", backend="onnxruntime", graph="graphs/int8.onnx"
        )
    )
    backend: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(name="onnxruntime"))

    def __call__(self, frame: np.ndarray) -> SimpleNamespace:
        total = 10 + len(self.seen)
        self.seen.append(frame)
        self.clock.now += total * MILLISECOND
        return SimpleNamespace(
            milliseconds={
                "total": float(total),
                "postprocess": 1.0,
                "upload": 0.5,
                "inference": total - 3.0,
                "preprocess": 2.0,
            }
        )


@pytest.fixture
def segmenter() -> FakeSegmenter:
    return FakeSegmenter(Clock())


def test_every_stage_is_summarised_from_raw_samples_after_the_warm_up(
    segmenter: FakeSegmenter,
) -> None:
    report = bench(
        segmenter,  # type: ignore[arg-type]
        frames=5,
        warmup_seconds=0.021,
        clock=segmenter.clock,
    )
    assert report.warmup_frames == 2  # 10 + 11 ms
    assert report.samples["total"] == (12.0, 13.0, 14.0, 15.0, 16.0)
    assert list(report.stages) == ["preprocess", "inference", "postprocess", "upload", "total"]
    assert (report.stages["total"].p50, report.stages["total"].max) == (14.0, 16.0)
    assert report.stages["inference"].mean == 11.0
    assert report.fps == pytest.approx(5 / 0.070)
    assert (report.precision, report.backend, report.entry_bytes) == (
        "int8",
        "onnxruntime",
        1_250_000,
    )


def test_without_a_source_a_synthetic_frame_of_the_bundles_size_is_used(
    segmenter: FakeSegmenter,
) -> None:
    report = bench(segmenter, frames=2, warmup_seconds=0, clock=segmenter.clock)  # type: ignore[arg-type]
    assert report.source == "synthetic"
    assert report.frame_sizes == ((48, 32),)
    assert len(segmenter.seen) == 3  # one to warm up, whatever the seconds
    assert segmenter.seen[0].shape == (32, 48, 3)
    assert segmenter.seen[0].dtype == np.uint8
    assert "synthetic" in format_table(report)


def test_a_source_is_read_for_a_few_frames_and_cycled(segmenter: FakeSegmenter) -> None:
    read: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        for index in itertools.count():
            read.append(index)
            yield np.full((4, 6, 3), index, np.uint8)

    report = bench(
        segmenter,  # type: ignore[arg-type]
        endless(),
        frames=20,
        warmup_seconds=0,
        source="street.mp4",
        clock=segmenter.clock,
    )
    assert len(read) == report.distinct_frames == 16
    order = [int(frame[0, 0, 0]) for frame in segmenter.seen]
    assert order == [*range(16), *range(5)]
    assert (report.source, report.frame_sizes) == ("street.mp4", ((6, 4),))


def test_large_frames_are_held_within_a_memory_bound(segmenter: FakeSegmenter) -> None:
    frame = np.zeros((2160, 3840, 3), np.uint8)  # 24.9 MB
    report = bench(
        segmenter,  # type: ignore[arg-type]
        itertools.repeat(frame),
        frames=1,
        warmup_seconds=0,
        clock=segmenter.clock,
    )
    assert report.distinct_frames == 1


def test_an_empty_source_and_senseless_counts_are_refused(segmenter: FakeSegmenter) -> None:
    with pytest.raises(SourceError, match=r"empty\.mp4 has no frame"):
        bench(segmenter, [], source="empty.mp4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="0 frames"):
        bench(segmenter, frames=0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="-1"):
        bench(segmenter, warmup_seconds=-1)  # type: ignore[arg-type]


def test_the_json_holds_raw_samples_environment_and_settings(segmenter: FakeSegmenter) -> None:
    report = bench(
        segmenter,  # type: ignore[arg-type]
        frames=3,
        warmup_seconds=0,
        settings={"threads": 1},
        clock=segmenter.clock,
    )
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["samples_ms"]["total"] == [11.0, 12.0, 13.0]
    assert found["stages_ms"]["total"]["p50"] == 12.0
    assert found["settings"] == {"threads": 1}
    assert found["environment"]["packages"]["numpy"] == np.__version__
    assert found["frame_sizes"] == ["48x32"]


def test_the_table_has_a_row_for_each_stage(segmenter: FakeSegmenter) -> None:
    report = bench(segmenter, frames=3, warmup_seconds=0, clock=segmenter.clock)  # type: ignore[arg-type]
    lines = format_table(report).splitlines()
    assert lines[0].startswith("int8 on onnxruntime, graph 1.25 MB, frames 48x32")
    columns = ["min", "mean", "p50", "p90", "p95", "p99", "max", "jitter", "(ms)"]
    assert lines[2].split() == columns
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:8]}
    assert rows["total"] == [
        "11.000", "12.000", "12.000", "12.800", "12.900", "12.980", "13.000", "0.816"
    ]  # fmt: skip
    assert list(rows) == list(report.stages)
    assert f"numpy {np.__version__}" in lines[-1]
    measured = replace(report, memory={"resident": 120_000_000, "peak": 150_000_000})
    assert "memory 120 MB resident, 150 MB at most" in format_table(measured)
    assert "memory" not in format_table(replace(report, memory=None))
    assert replace(report, memory=None).to_json()["memory_bytes"] is None


def test_power_is_recorded_during_the_timed_frames(
    segmenter: FakeSegmenter, tmp_path: Path
) -> None:
    monitor = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    monitor.mkdir(parents=True)
    for name, text in (("in1_label", "VDD_IN"), ("in1_input", "5000"), ("curr1_input", "500")):
        (monitor / name).write_text(text)
    report = bench(
        segmenter,  # type: ignore[arg-type]
        frames=5,
        warmup_seconds=0,
        clock=segmenter.clock,
        recorder=PowerRecorder(tmp_path),
    )
    assert report.fps_per_watt == pytest.approx(report.fps / 2.5)
    assert report.to_json()["power"]["total_watts"] == 2.5
    assert "power 2.50 W (VDD_IN)" in format_table(report)
    absent = bench(
        segmenter,  # type: ignore[arg-type]
        frames=1,
        warmup_seconds=0,
        clock=segmenter.clock,
        recorder=PowerRecorder(tmp_path / "nothing"),
    )
    assert absent.to_json()["fps_per_watt"] is None
    assert "watt" not in format_table(absent)


def test_too_few_frames_for_a_99th_percentile_are_called_that(segmenter: FakeSegmenter) -> None:
    few = bench(segmenter, frames=3, warmup_seconds=0, clock=segmenter.clock)  # type: ignore[arg-type]
    assert "fewer than 300 frames" in format_table(few)
    assert "fewer than" not in format_table(replace(few, frames=300))


def test_an_emulated_graph_is_called_that(segmenter: FakeSegmenter) -> None:
    segmenter.entry.backend = "tensorrt"
    report = bench(segmenter, frames=1, warmup_seconds=0, clock=segmenter.clock)  # type: ignore[arg-type]
    assert (report.backend, report.shaped_for) == ("onnxruntime", "tensorrt")
    assert format_table(report).startswith("int8 on onnxruntime, graph made for tensorrt 1.25 MB")


def test_synthetic_frames_repeat_and_are_not_flat() -> None:
    frame = synthetic_frame(8, 12, 4)
    assert frame.shape == (8, 12, 4)
    np.testing.assert_array_equal(frame, synthetic_frame(8, 12, 4))
    assert len(np.unique(frame)) > 50
    assert frame[:, -1].mean() > frame[:, 0].mean() + 100


def waits(clock: Clock, name: str, log: list[str], cost: Callable[[int], float]) -> Callable:
    calls = itertools.count()

    def candidate(_frame: np.ndarray) -> None:
        log.append(name)
        clock.now += int(cost(next(calls)) * MILLISECOND)

    return candidate


def test_candidates_take_turns_and_warm_up_rounds_are_not_timed() -> None:
    clock, log = Clock(), []
    candidates = {
        "a": waits(clock, "a", log, lambda call: 100 if call < 2 else 4),
        "b": waits(clock, "b", log, lambda call: 2),
    }
    found = alternate(candidates, [synthetic_frame(2, 2, 3)] * 2, rounds=2, clock=clock)
    assert "".join(log) == "aabb" * 3
    assert alternate(candidates, [synthetic_frame(2, 2, 3)], 1).milliseconds.keys() == {"a", "b"}
    assert found.milliseconds == {"a": (4.0, 4.0), "b": (2.0, 2.0)}
    assert found.ratio("a", "b").median == 2.0


def test_ratios_are_paired_by_round_so_that_drift_cancels() -> None:
    clock = Clock()
    # The machine slows down threefold on the way; one round is disturbed.
    found = alternate(
        {
            "a": waits(clock, "a", [], lambda call: (6, 12, 18, 90, 18)[call]),
            "b": waits(clock, "b", [], lambda call: (2, 4, 6, 6, 6)[call]),
        },
        [synthetic_frame(2, 2, 3)],
        rounds=5,
        warmup_rounds=0,
        clock=clock,
    )
    ratio = found.ratio("a", "b")
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 3.0, 15.0)
    assert found.to_json()["ratios"] == {"a / b": {"median": 3.0, "low": 3.0, "high": 15.0}}
    assert found.ratio("b", "a").median == pytest.approx(1 / 3)


def test_nothing_to_alternate_is_refused() -> None:
    frame = synthetic_frame(2, 2, 3)
    for candidates, frames, rounds in (
        ({}, [frame], 1),
        ({"a": id}, [], 1),
        ({"a": id}, [frame], 0),
    ):
        with pytest.raises(UsageError, match="nothing to time"):
            alternate(candidates, frames, rounds)
