"""Any amount of footage gives a bounded number of latents, each frame its equal part."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx")

from aeseg_edge.calibration.latents import EncoderSession, Samples, draw_samples

DIM, ROWS, COLUMNS = 16, 24, 32


class Numbered(Sequence[NDArray[np.uint8]]):
    """A recording of any length, of which one frame is in memory at a time."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return np.full((8, 8, 3), index % 251, np.uint8)


def encode(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Latents that tell their frame."""
    return np.full((DIM, ROWS, COLUMNS), frame[0, 0, 0], np.float32)


def drawn(frames: int, count: int) -> tuple[Samples, int]:
    tracemalloc.start()
    found = draw_samples(cast(EncoderSession, encode), Numbered(frames), count=count, seed=0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, most


@pytest.mark.parametrize("frames", [40, 400, 1900])
def test_memory_does_not_grow_with_the_footage(frames: int) -> None:
    count = 2000
    drawn(20, count)
    one_frame = DIM * ROWS * COLUMNS * 4
    # Up to twice as many are drawn, and then thinned out; 1900 frames have 93 MB of latents.
    kept = count * (DIM * 4 + 8)
    assert drawn(frames, count)[1] < 3 * kept + 3 * one_frame


def test_more_frames_than_latents_are_not_all_looked_at() -> None:
    found, most = drawn(20_000, 100)
    assert len(found.latents) == len(np.unique(found.frames)) == 100
    assert (found.frames.min(), found.frames.max()) == (0, 19_999)
    assert most < 3 * DIM * ROWS * COLUMNS * 4


@pytest.mark.parametrize("frames", [40, 800])
def test_every_frame_gives_its_equal_part(frames: int) -> None:
    found, _ = drawn(frames, 1600)
    assert len(found.latents) == 1600
    per_frame = np.bincount(found.frames, minlength=frames)
    assert per_frame.min() == per_frame.max() == 1600 // frames
    assert np.array_equal(found.latents[:, 0], found.frames % 251)
