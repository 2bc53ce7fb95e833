"""The contact sheet shows each cluster where it is large and in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.view.sheet import collect, draw

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

SKY, GRASS = (200, 160, 110), (60, 120, 70)


@pytest.fixture
def segmenter(v1_bundle: Path) -> Iterator[Segmenter]:
    with Segmenter.load(v1_bundle, precision="fp32", backend="onnxruntime", threads=1) as opened:
        yield opened


def scene(share_of_sky: float, height: int = 96, width: int = 144) -> np.ndarray:
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = GRASS
    frame[: int(height * share_of_sky)] = SKY
    return frame


def test_each_cluster_is_shown_in_its_own_pixels(segmenter: Segmenter) -> None:
    gallery = collect(segmenter, [scene(0.5), scene(0.3)], count=2)
    assert gallery.frames == 2
    assert gallery.shares.sum() == pytest.approx(1.0)
    sky = int(np.bincount(segmenter.clusters(scene(1.0)).ravel()).argmax())
    first = gallery.crops[sky][0]
    assert first.image.shape == (32, 32, 3)
    middle = first.image[16, 16].astype(int)
    assert np.abs(middle - SKY).max() < 8
    assert len(gallery.crops[sky]) == 2
    assert first.weight >= gallery.crops[sky][1].weight


def test_the_frame_with_most_of_a_cluster_comes_first(segmenter: Segmenter) -> None:
    sky = int(np.bincount(segmenter.clusters(scene(1.0)).ravel()).argmax())
    thin, thick = collect(segmenter, [scene(0.15)]), collect(segmenter, [scene(0.6)])
    both = collect(segmenter, [scene(0.15), scene(0.6)], count=1)
    assert thin.crops[sky][0].weight < thick.crops[sky][0].weight
    assert both.crops[sky][0].weight == thick.crops[sky][0].weight


def test_what_is_not_of_the_cluster_is_grey(segmenter: Segmenter) -> None:
    sky = int(np.bincount(segmenter.clusters(scene(1.0)).ravel()).argmax())
    crop = collect(segmenter, [scene(0.2)]).crops[sky][0].image.astype(int)
    spread = crop.max(axis=2) - crop.min(axis=2)
    assert (spread[:8] > 80).all()
    assert (spread[-4:] == 0).all()


def test_a_cluster_that_never_occurs_has_a_line_without_crops(segmenter: Segmenter) -> None:
    gallery = collect(segmenter, [scene(1.0)])
    empty = [number for number, crops in enumerate(gallery.crops) if not crops]
    assert empty
    sheet = draw(gallery, segmenter.codebook)
    assert sheet.dtype == np.uint8
    line = (sheet.shape[0] - 8) // segmenter.codebook.clusters
    row = sheet[8 + empty[0] * line : 8 + (empty[0] + 1) * line - 8, 230:]
    assert (row == 250).all()


def test_a_sheet_of_nothing_is_refused(segmenter: Segmenter) -> None:
    with pytest.raises(SourceError, match="no frames"):
        collect(segmenter, [])
