"""Flicker: label changes where the picture stands still."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")

from aeseg_edge.errors import FrameError
from aeseg_edge.measure.flicker import FlickerMeter

GREY = np.full((20, 30, 3), 100, np.uint8)
CLASS_0 = np.zeros((20, 30), np.uint8)


def test_a_label_that_changes_on_a_still_picture_flickers_and_noise_is_still() -> None:
    meter = FlickerMeter()
    chance = np.random.default_rng(0)
    flipped = CLASS_0.copy()
    flipped[:5] = 1
    for labels in (CLASS_0, flipped, flipped):
        noise = chance.integers(-2, 3, GREY.shape)
        meter.add((GREY + noise).astype(np.uint8), labels)
    found = meter.result()
    assert found.frames == 3
    assert found.unchanged == 1.0
    assert found.flicker == pytest.approx(150 / 1200)
    assert found.agreement is None


def test_a_label_that_changes_with_its_picture_does_not_flicker_but_may_lag() -> None:
    meter = FlickerMeter()
    moved, follows = GREY.copy(), CLASS_0.copy()
    moved[:, 15:], follows[:, 15:] = 200, 1
    meter.add(GREY, CLASS_0, CLASS_0)
    meter.add(moved, CLASS_0, follows)
    found = meter.result()
    # The 3x3 mean of the column beside the edge has changed too.
    assert found.unchanged == pytest.approx(14 / 30)
    assert found.flicker == 0.0
    assert found.agreement == pytest.approx(1 / 16)


def test_void_and_a_new_size_are_not_compared() -> None:
    meter = FlickerMeter()
    void = np.full_like(CLASS_0, 255)
    meter.add(GREY, CLASS_0)
    meter.add(GREY, void)
    meter.add(GREY[:10], CLASS_0[:10])
    assert meter.result().flicker is None
    with pytest.raises(FrameError, match=r"\[10, 30\]"):
        meter.add(GREY, CLASS_0[:10])
