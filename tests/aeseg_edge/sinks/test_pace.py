"""What is written lasts as long as it lasted, whatever the source's rate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aeseg_edge.sinks.pace import Pace
from aeseg_edge.sources.base import Frame

IMAGE = np.zeros((4, 6, 3), np.uint8)


def recorded(times: Sequence[float], recording: str | None = None) -> list[Frame]:
    return [Frame(IMAGE, i, 0.0, "a.mp4", at, recording) for i, at in enumerate(times)]


def filmed(times: Sequence[float]) -> list[Frame]:
    return [Frame(IMAGE, i, at, "camera 0") for i, at in enumerate(times)]


def slots(pace: Pace, frames: Sequence[Frame]) -> list[int]:
    """How many slots of the stream each frame brings with it."""
    found = (pace.repeats(frame) for frame in frames)
    return [0 if count is None else count + 1 for count in found]


@pytest.mark.parametrize("fps", [0.5, 12.5, 25.0, 29.97, 30.0, 59.94, 240.0])
def test_a_steady_recording_keeps_its_frames_one_for_one(fps: float) -> None:
    times = [round(index / fps, 3) for index in range(500)]
    assert slots(Pace("a", fps), recorded(times)) == [1] * 500


def test_a_camera_slower_than_the_rate_lasts_as_long_as_it_ran() -> None:
    pace = Pace("a", None)
    found = slots(pace, filmed([100 + index / 10 for index in range(60)]))
    assert pace.fps == 30
    assert sum(found) == 1 + 59 * 3


def test_dropped_frames_are_gaps_that_are_filled() -> None:
    times = [index / 30 for index in range(300) if index % 7 in (0, 1)]
    assert sum(slots(Pace("a", 30.0), recorded(times))) == round(times[-1] * 30) + 1


def test_a_rate_that_varies_keeps_the_whole_time() -> None:
    times = [index / 30 for index in range(60)] + [2 + index / 5 for index in range(20)]
    assert sum(slots(Pace("a", 30.0), recorded(times))) == round(times[-1] * 30) + 1


def test_a_camera_that_delivers_in_bursts_loses_nothing() -> None:
    times = [100 + (index // 5) * 5 / 30 for index in range(100)]
    found = slots(Pace("a", 30.0), filmed(times))
    assert min(found) == 1
    assert abs(sum(found) - 100) <= 6


def test_what_comes_faster_than_the_rate_is_left_out_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pace = Pace("out.mp4", 25.0)
    found = slots(pace, filmed([100 + index / 100 for index in range(1000)]))
    assert abs(sum(found) - 250) <= 6
    with caplog.at_level(logging.WARNING):
        pace.report()
    assert "out.mp4: 744 of 1000 frames are left out: they came faster than 25" in caplog.text


def test_a_rate_that_is_a_little_off_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    pace = Pace("out.mp4", 30.0)
    slots(pace, filmed([100 + index / 30.3 for index in range(2000)]))
    with caplog.at_level(logging.WARNING):
        pace.report()
    assert pace.left_out > 0
    assert not caplog.records


def test_recordings_in_turn_follow_one_another() -> None:
    first = recorded([0.0, 0.1, 0.2], "a")
    second = recorded([0.0, 0.1, 0.3], "b")
    assert slots(Pace("a", 10.0), [*first, *second]) == [1, 1, 1, 1, 1, 2]


def test_pictures_take_one_slot_each_however_long_they_took() -> None:
    frames = [Frame(IMAGE, i, 3.7 * i, "photos", path=Path(f"{i}.png")) for i in range(9)]
    pace = Pace("a", None)
    assert slots(pace, frames) == [1] * 9
    assert pace.fps == 25


def test_a_video_of_a_known_path_keeps_its_times() -> None:
    times = (0.0, 0.1, 0.4)
    frames = [Frame(IMAGE, i, 9.0, "a", at, path=Path("a.mp4")) for i, at in enumerate(times)]
    assert slots(Pace("a", 10.0), frames) == [1, 1, 3]


def test_a_recording_without_times_is_not_taken_for_a_camera() -> None:
    pace = Pace("a", None)
    sources = [SimpleNamespace(name="camera 0", live=False)]
    pace.watch(lambda: SimpleNamespace(sources=sources))  # type: ignore[arg-type,return-value]
    assert slots(pace, filmed([3.0 * index for index in range(9)])) == [1] * 9


def test_a_pause_of_minutes_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert slots(Pace("out.mp4", 10.0), filmed([100.0, 100.1, 900.0])) == [1, 1, 1]
    assert "out.mp4: no frame for 800 s: this pause is left out" in caplog.text
    # One picture in five minutes is no pause where that is the rate.
    assert slots(Pace("a", 1 / 300), recorded([0.0, 300.0, 600.0])) == [1, 1, 1]


def test_times_that_stand_still_or_go_back_give_one_slot_each() -> None:
    assert slots(Pace("a", 10.0), recorded([5.0, 5.1, 0.0, 0.0, 0.1])) == [1] * 5
