"""Any amount of footage gives a bounded number of latents, each frame its equal part."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx")

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.calibration.clusters.latents import (
    Boxes,
    EncoderSession,
    Samples,
    boxes_of,
    cells_seen,
    draw_samples,
)
from aeseg_edge.errors import CalibrationError
from aeseg_edge.segment.segmenter import Segmenter

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


def placed(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Latents that tell their frame, row and column; stride 4."""
    rows, columns = np.mgrid[: frame.shape[0] // 4, : frame.shape[1] // 4]
    return np.stack([np.full_like(rows, frame[0, 0, 0]), rows, columns]).astype(np.float32)


FRAMES = [np.full((24, 32, 3), index, np.uint8) for index in range(5)]
WHOLE = [(0, 0, 24, 32)] * 5


@pytest.mark.parametrize("boxes", [None, WHOLE])
@pytest.mark.parametrize("count", [50, 1000])
def test_without_bars_and_region_the_draw_is_what_it_always_was(
    boxes: Boxes | None, count: int
) -> None:
    generator = np.random.default_rng(3)
    wanted = []
    for frame in FRAMES:
        flat = placed(frame).reshape(3, -1)
        if count == 50:
            flat = flat[:, np.sort(generator.choice(48, 10, replace=False))]
        wanted.append(flat.T)
    encoder = cast(EncoderSession, placed)
    found = draw_samples(encoder, FRAMES, count=count, seed=3, boxes=boxes)
    np.testing.assert_array_equal(found.latents, np.concatenate(wanted))
    np.testing.assert_array_equal(found.frames, found.latents[:, 0])


def test_latents_in_bars_are_not_drawn_and_each_frame_has_its_own() -> None:
    # Bars of 4 rows, of 8 columns, none; 5 and 7 rows, which is the middle of a cell and beyond.
    boxes = [(4, 0, 16, 32), (0, 8, 24, 16), WHOLE[0], (5, 0, 14, 32), (7, 0, 10, 32)]
    encoder = cast(EncoderSession, placed)
    found = draw_samples(encoder, FRAMES, count=1000, seed=0, boxes=boxes).latents
    rows = [np.unique(found[found[:, 0] == index, 1]).tolist() for index in range(5)]
    columns = [np.unique(found[found[:, 0] == index, 2]).tolist() for index in range(5)]
    assert rows == [[1, 2, 3, 4], [*range(6)], [*range(6)], [1, 2, 3, 4], [2, 3]]
    assert columns == [[*range(8)], [2, 3, 4, 5], [*range(8)], [*range(8)], [*range(8)]]
    assert len(found) == 4 * 8 + 6 * 4 + 6 * 8 + 4 * 8 + 2 * 8
    region = np.zeros((24, 32), np.uint8)
    region[:12] = 255
    upper = draw_samples(encoder, FRAMES, count=1000, seed=0, region=region, boxes=boxes).latents
    np.testing.assert_array_equal(upper, found[found[:, 1] < 3])


def test_pictures_too_thin_for_a_latent_are_said_to_be() -> None:
    thin = [(11, 0, 1, 32)] * 5
    with pytest.raises(CalibrationError, match="between their bars hold no latents"):
        draw_samples(cast(EncoderSession, placed), FRAMES, count=9, seed=0, boxes=thin)


def test_the_latents_that_count_are_those_that_a_segmenter_looks_at(v1_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle = Bundle.open(v1_bundle)
    geometry = replace(bundle.manifest.geometry, resize="letterbox")
    region = np.zeros((64, 96), np.uint8)
    region[:, 40:] = 255
    manifest = replace(bundle.manifest, geometry=geometry)
    bundle = Bundle.build(manifest, bundle.codebook, bundle.graphs, region=region)
    sizes = np.array([(90, 160), (64, 96), (80, 60), (31, 200), (97, 64)])
    boxes = boxes_of(geometry, sizes)
    with Segmenter.load(bundle, precision="fp32", backend="onnxruntime", threads=1) as segmenter:
        for index, (rows, columns) in enumerate(sizes.tolist()):
            counted = cells_seen(index, (64, 96, 3), (16, 24), region, boxes)
            np.testing.assert_array_equal(counted, ~segmenter._unseen_cells(rows, columns))
    assert boxes_of(bundle.manifest.geometry, None) is None
    assert boxes_of(replace(geometry, resize="stretch"), sizes) is None
