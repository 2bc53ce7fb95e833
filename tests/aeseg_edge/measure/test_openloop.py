"""Frames on a clock: who waits, who is dropped, how old a label map is. The clock is a fake."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aeseg_edge.errors import SourceError, UsageError
from aeseg_edge.measure.openloop import OpenLoopReport, format_table, open_loop
from aeseg_edge.measure.power import PowerRecorder

MILLISECOND = 1_000_000


@dataclass
class World:
    """A segmenter that takes as long as it is told, and a clock that nothing else moves."""

    cost: Callable[[int], float]
    late: float = 0.0
    now: int = 7_000 * MILLISECOND
    seen: list[int] = field(default_factory=list)
    manifest: Any = field(
        default_factory=lambda: SimpleNamespace(
            geometry=SimpleNamespace(width=48, height=32, channels=3)
        )
    )
    entry: Any = field(default_factory=lambda: SimpleNamespace(precision="int8"))
    backend: Any = field(default_factory=lambda: SimpleNamespace(name="onnxruntime"))

    def __call__(self, frame: np.ndarray) -> None:
        self.now += int(self.cost(len(self.seen)) * MILLISECOND)
        self.seen.append(int(frame[0, 0, 0]))

    def clock(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += round(seconds * 1e9) + int(self.late * MILLISECOND)


def run(world: World, rate: float, frames: int, **options: Any) -> OpenLoopReport:
    options.setdefault("warmup_seconds", 0)
    return open_loop(
        world,  # type: ignore[arg-type]
        rate,
        frames=frames,
        clock=world.clock,
        sleep=world.sleep,
        recorder=PowerRecorder(Path("/nowhere")),
        **options,
    )


def test_a_segmenter_that_is_fast_enough_drops_nothing_and_keeps_the_rate() -> None:
    found = run(World(lambda call: 4), 100, 50)
    assert (found.dropped, found.frames) == (0, tuple(range(50)))
    assert found.achieved == pytest.approx(100)
    assert found.samples["age"] == pytest.approx([4.0] * 50)
    assert found.parts["waiting"].max == 0


def test_one_that_is_too_slow_takes_the_newest_frame_and_drops_the_others() -> None:
    # 25 ms a frame, one arrives every 10: at 0, 25, 50, ... the newest is 0, 2, 5, 7, 10, ...
    found = run(World(lambda call: 25), 100, 11)
    assert found.frames == (0, 2, 5, 7, 10)
    assert found.dropped == 6
    assert found.samples["waiting"] == pytest.approx([0, 5, 0, 5, 0])
    assert found.samples["age"] == pytest.approx([25, 30, 25, 30, 25])
    assert found.achieved == pytest.approx(5 / 0.125)  # until the last label map


def test_a_stall_makes_the_frames_behind_it_old_and_shifts_no_arrival() -> None:
    # The third frame hangs for 35 ms; without the stall each is 4 ms old.
    found = run(World(lambda call: 35 if call == 3 else 4), 100, 10)
    assert found.frames == (0, 1, 2, 5, 6, 7, 8, 9)
    assert found.samples["age"] == pytest.approx([4, 4, 35, 9, 4, 4, 4, 4])
    # Frame 9 arrived 90 ms after the first, whatever happened before.
    assert found.achieved == pytest.approx(8 / 0.1)


def test_lateness_does_not_add_up_over_the_run() -> None:
    # 9 ms of work in each 10 leave one to catch up: the stall of the first frame fades.
    found = run(World(lambda call: 14 if call == 1 else 9), 100, 8)
    assert found.dropped == 0
    assert found.samples["waiting"] == pytest.approx([0, 4, 3, 2, 1, 0, 0, 0])


def test_a_timer_that_fires_late_counts_into_the_age() -> None:
    found = run(World(lambda call: 1, late=2), 100, 4)
    assert found.samples["age"] == pytest.approx([1, 3, 3, 3])


def test_the_warm_up_comes_before_the_clock_and_is_not_counted() -> None:
    world = World(lambda call: 10)
    found = run(world, 50, 5, warmup_seconds=0.035)
    assert (found.warmup_frames, len(world.seen)) == (4, 9)
    assert found.frames == (0, 1, 2, 3, 4)


def test_frames_of_a_source_are_cycled_by_their_number_of_arrival() -> None:
    world = World(lambda call: 25)
    pictures = [np.full((4, 6, 3), index, np.uint8) for index in range(3)]
    found = run(world, 100, 11, source_frames=pictures, source="street.mp4")
    assert world.seen[1:] == [index % 3 for index in found.frames]
    assert (found.source, found.frame_sizes) == ("street.mp4", ((6, 4),))


def test_rates_counts_and_sources_that_cannot_be_are_refused() -> None:
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="cannot arrive"):
            run(World(lambda call: 1), rate, 3)
    with pytest.raises(UsageError, match="0 frames"):
        run(World(lambda call: 1), 30, 0)
    with pytest.raises(SourceError, match="no frame"):
        run(World(lambda call: 1), 30, 3, source_frames=[], source="empty")


def test_table_and_json_say_what_arrived_and_what_was_dropped() -> None:
    found = run(World(lambda call: 25), 100, 11, settings={"threads": 1})
    text = format_table(found)
    assert "at 100 a second" in text
    assert "11 arrived, 5 segmented, 6 dropped: 40.0 label maps a second" in text
    assert [line.split()[0] for line in text.splitlines()[3:6]] == ["waiting", "segmenting", "age"]
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (data["arrived"], data["segmented"], data["dropped"]) == (11, 5, 6)
    assert data["parts_ms"]["age"]["p50"] == 25.0
    assert data["frames"] == [0, 2, 5, 7, 10]
    assert data["samples_ms"]["age"][1] == 30.0
    assert data["settings"] == {"threads": 1}
    assert data["frame_sizes"] == ["48x32"]
