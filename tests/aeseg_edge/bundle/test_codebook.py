"""The codebook decides as a nearest-centre search would, padded or not."""

from __future__ import annotations

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import (
    MAX_CLASSES,
    VOID,
    ClassInfo,
    Codebook,
    default_classes,
    palette,
)
from aeseg_edge.errors import CodebookError


@pytest.fixture
def centres() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(13, 6)).astype(np.float32)


def test_assignment_is_the_nearest_centre(centres: np.ndarray) -> None:
    latents = np.random.default_rng(2).normal(size=(4, 50, 6)).astype(np.float32)
    distance = ((latents[..., None, :] - centres) ** 2).sum(axis=-1)
    book = Codebook.from_centres(centres)
    np.testing.assert_array_equal(book.assign(latents), distance.argmin(axis=-1))
    assert (book.clusters, book.latent_dim) == (13, 6)


def test_padding_rows_never_win_and_stay_finite(centres: np.ndarray) -> None:
    latents = 100 * np.random.default_rng(3).normal(size=(500, 6)).astype(np.float32)
    book = Codebook.from_centres(centres)
    padded = book.padded(32)
    assert padded.weights.shape == (32, 12)
    assert np.isfinite(padded.scores(latents)).all()
    np.testing.assert_array_equal(padded.assign(latents), book.assign(latents))
    assert set(padded.remap[13:].tolist()) == {VOID}


def test_padding_to_fewer_clusters_is_refused(centres: np.ndarray) -> None:
    with pytest.raises(CodebookError, match="13 clusters do not fit"):
        Codebook.from_centres(centres).padded(8)


def test_more_clusters_than_class_ids_need_a_remap() -> None:
    many = np.random.default_rng(4).normal(size=(256, 2)).astype(np.float32)
    with pytest.raises(CodebookError, match="256 clusters do not fit"):
        Codebook.from_centres(many)
    merged = Codebook.from_centres(many, remap=np.arange(256) % 7, classes=default_classes(7))
    assert merged.clusters == 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": np.zeros(3, np.float32)}, "13 rows of weights"),
        ({"weights": np.zeros((13, 11), np.float32)}, "not \\[K, 2D\\]"),
        ({"weights": np.full((13, 12), np.nan, np.float32)}, "not finite"),
        ({"bias": np.zeros(13, np.float64)}, "dtypes"),
        ({"remap": np.full(13, 77, np.uint8)}, "no name"),
        ({"classes": (ClassInfo(1, "a", (0, 0, 0)), ClassInfo(0, "b", (0, 0, 0)))}, "ascending"),
        ({"centres": np.zeros((13, 5), np.float32)}, "centres have shape"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    centres: np.ndarray, change: dict[str, object], message: str
) -> None:
    book = Codebook.from_centres(centres)
    parts = {
        name: getattr(book, name)
        for name in ("weights", "bias", "remap", "classes", "method", "centres")
    }
    with pytest.raises(CodebookError, match=message):
        Codebook(**{**parts, **change})


def test_default_colours_differ_and_none_is_the_colour_of_void() -> None:
    classes = default_classes(MAX_CLASSES)
    colours = {item.color for item in classes}
    assert len(colours) == MAX_CLASSES
    assert (0, 0, 0) not in colours
    near = np.array([item.color for item in classes[:27]], float)
    gaps = np.linalg.norm(near[:, None] - near[None], axis=-1) + 1e9 * np.eye(27)
    assert gaps.min() > 15


def test_palette_is_bgr_and_void_is_black() -> None:
    table = palette([ClassInfo(3, "road", (10, 20, 30))])
    assert table.shape == (256, 3)
    assert table[3].tolist() == [30, 20, 10]
    assert not table[VOID].any()
