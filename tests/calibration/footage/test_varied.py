"""Frames for INT8 ranges are varied, and those for the check are others."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")

from aeseg_edge.calibration.footage.varied import choose_varied, split_for_agreement
from aeseg_edge.errors import CalibrationError


def plain(levels: list[int]) -> list[np.ndarray]:
    return [np.full((24, 24, 3), level, np.uint8) for level in levels]


def test_the_rare_scene_is_chosen_before_the_tenth_copy() -> None:
    frames = plain([100] * 10 + [101] * 10 + [250] + [3])
    chosen = choose_varied(frames, 3)
    assert {20, 21} <= set(chosen)
    assert len(chosen) == 3


def test_equal_frames_still_fill_the_count() -> None:
    assert sorted(choose_varied(plain([7] * 6), 4)) == sorted(set(choose_varied(plain([7] * 6), 4)))
    assert len(choose_varied(plain([7] * 6), 4)) == 4
    assert len(choose_varied(plain([7] * 3), 9)) == 3


@pytest.mark.parametrize("count", [2, 3, 10, 200])
def test_ranges_and_check_never_share_a_frame(count: int) -> None:
    frames = plain([i % 256 for i in range(count)])
    ranges, check = split_for_agreement(frames, 48, 24)
    assert ranges
    assert check
    assert not set(ranges) & set(check)
    assert max(ranges + check) < count
    assert len(ranges) <= 48
    assert len(check) <= 24


def test_one_frame_is_too_few() -> None:
    with pytest.raises(CalibrationError, match="1 frames are too few"):
        split_for_agreement(plain([1]), 4, 4)
    with pytest.raises(CalibrationError, match="no frames"):
        choose_varied([], 4)
