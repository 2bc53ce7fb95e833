"""Linear codebooks: what they can tell apart, how the ridge is chosen, and targets of cells."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.calibration.footage.masks import fit_mask
from aeseg_edge.calibration.labels import linear
from aeseg_edge.calibration.labels.linear import Cells, class_shares, fit_linear
from aeseg_edge.calibration.labels.naming import mask_classes
from aeseg_edge.errors import CalibrationError, MissingDependency

CLASSES = mask_classes(("sky", "road", "car"))


def one_hot(labels: NDArray[np.int64], classes: int = 3) -> NDArray[np.float32]:
    return np.eye(classes, dtype=np.float32)[labels]


def cells_of(latents: NDArray[np.float64], labels: NDArray[np.int64], frames: int = 6) -> Cells:
    origin = np.arange(len(labels)) * frames // len(labels)
    return Cells(latents.astype(np.float32), one_hot(labels), origin)


def blobs(seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Three overlapping classes, of which one is rare."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, 1500, p=(0.6, 0.37, 0.03))
    centres = np.array([[0, 0, 0, 0], [3, 0, 0, 0], [0, 3, 0, 0]])
    return centres[labels] + random.normal(size=(1500, 4)), labels


def test_the_codebook_tells_classes_apart_whatever_offset_and_scale_latents_have() -> None:
    latents, labels = blobs()
    plain = fit_linear(cells_of(latents, labels), CLASSES)
    assert plain.codebook.method == "linear"
    right = plain.codebook.assign(latents.astype(np.float32)) == labels
    assert right.mean() > 0.9
    moved = latents * (100, 0.01, 1, 10) + (500, 3, -2, 0)
    fit = fit_linear(cells_of(moved, labels), CLASSES)
    same = fit.codebook.assign(moved.astype(np.float32)) == plain.codebook.assign(
        latents.astype(np.float32)
    )
    # Squares of moved latents are other features, so a few at the borders may differ.
    assert same.mean() > 0.98


def test_squares_tell_inside_from_outside_and_latents_alone_do_not() -> None:
    random = np.random.default_rng(0)
    latents = random.normal(size=(1500, 2)) * 1.5
    labels = ((latents**2).sum(axis=1) > 2).astype(np.int64)
    cells = cells_of(latents, labels)
    for square, low, high in ((True, 0.97, 1.0), (False, 0.0, 0.75)):
        found = fit_linear(cells, CLASSES, square=square).codebook.assign(cells.latents)
        assert low <= (found == labels).mean() <= high


def test_weighting_finds_more_of_a_rare_class() -> None:
    latents, labels = blobs()
    recall = []
    for weighted in (False, True):
        codebook = fit_linear(cells_of(latents, labels), CLASSES, weighted=weighted).codebook
        found = codebook.assign(latents.astype(np.float32))
        recall.append((found[labels == 2] == 2).mean())
    assert recall[1] > recall[0]


def test_the_ridge_is_chosen_by_frames_that_were_held_out_whole() -> None:
    random = np.random.default_rng(0)
    latents, labels = blobs()
    real = fit_linear(cells_of(latents, labels), CLASSES)
    assert tuple(real.scores) == linear.STRENGTHS
    assert real.scores[real.strength] == max(real.scores.values()) > 0.7
    # Every frame has its own look, and what the look means is chance. Cells of a frame that
    # was seen would tell all about its others; a frame that was not tells nothing.
    frames = np.arange(1500) * 30 // 1500
    look = random.normal(size=(30, 16))[frames] + 0.01 * random.normal(size=(1500, 16))
    meaning = one_hot(random.integers(0, 2, 30)[frames])
    chance = fit_linear(Cells(look.astype(np.float32), meaning, frames), CLASSES)
    assert max(chance.scores.values()) < 0.6


def test_with_one_frame_the_ridge_is_the_default() -> None:
    latents, labels = blobs()
    fit = fit_linear(cells_of(latents, labels, frames=1), CLASSES)
    assert (fit.strength, fit.scores) == (linear.DEFAULT_STRENGTH, {})


def test_classes_that_are_not_there_are_left_out_and_ids_stay_those_of_the_masks() -> None:
    latents, labels = blobs()
    cells = cells_of(latents, np.where(labels == 1, 2, 0))
    codebook = fit_linear(cells, CLASSES).codebook
    assert codebook.remap.tolist() == [0, 2]
    assert [item.name for item in codebook.classes] == ["sky", "car"]


def test_a_single_class_is_refused() -> None:
    latents, labels = blobs()
    with pytest.raises(CalibrationError, match="two or more"):
        fit_linear(cells_of(latents, 0 * labels), CLASSES)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(20, 3)).astype(np.float32)
    targets = random.random((20, 4)).astype(np.float32)
    found = random.normal(size=(4, 4))
    _, gradient = linear._loss(features, targets, found)
    for place in ((0, 0), (2, 1), (3, 3)):
        step = np.zeros((4, 4))
        step[place] = 1e-2
        rise = linear._loss(features, targets, found + step)[0]
        rise -= linear._loss(features, targets, found - step)[0]
        assert gradient[place] == pytest.approx(rise / 2e-2, rel=2e-3, abs=1e-3)


def test_a_cells_target_is_the_share_of_each_class() -> None:
    mask = np.zeros((2, 6), np.uint8)
    mask[:, 1] = 1
    mask[:, 2:4] = VOID
    mask[0, 4] = VOID
    shares = class_shares(mask, 2, 2)
    np.testing.assert_allclose(shares, [[0.5, 0.5], [0, 0], [0.75, 0]])


def test_a_mask_is_laid_over_the_input_as_its_frame_is_and_bars_do_not_count() -> None:
    mask = np.array([[0, 1, 7], [1, 1, 2]], np.uint8)
    stretched = fit_mask(mask, Geometry(6, 4), 2, None)
    np.testing.assert_array_equal(stretched[:2], [[0, 0, 1, 1, VOID, VOID]] * 2)
    boxed = fit_mask(mask, Geometry(6, 8, resize="letterbox"), 3, 1)
    assert (boxed[:2] == VOID).all()
    assert (boxed[6:] == VOID).all()
    np.testing.assert_array_equal(
        boxed[2:6:2], [[0, 0, VOID, VOID, VOID, VOID], [VOID] * 4 + [2, 2]]
    )


@pytest.mark.parametrize("package", ["scipy", "threadpoolctl"])
def test_a_missing_package_is_named_with_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    latents, labels = blobs()
    with pytest.raises(MissingDependency, match=r"\[calibrate\]"):
        fit_linear(cells_of(latents, labels), CLASSES)
