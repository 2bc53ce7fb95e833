"""Two labellings of the same frames are compared, whatever ids they use."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")
metrics = pytest.importorskip("sklearn.metrics")

from aeseg_edge.bundle.codebook import VOID, default_classes  # noqa: E402
from aeseg_edge.calibration.score.difference import LabelCounts, adjusted_rand  # noqa: E402
from aeseg_edge.errors import EvaluationError  # noqa: E402

CLASSES = default_classes(4)


def labels(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, (20, 30)).astype(np.uint8)


def counted(*frames: tuple[np.ndarray, np.ndarray]) -> LabelCounts:
    counts = LabelCounts()
    for first, second in frames:
        counts.add(first, second)
    return counts


def test_the_index_is_scikit_learns_over_all_frames() -> None:
    first, second = labels(0), labels(1)
    half = np.where(np.arange(30) < 15, first, second).astype(np.uint8)
    pairs = [(first, half), (second, labels(2))]
    found = counted(*pairs).compare(CLASSES, CLASSES)
    wanted = metrics.adjusted_rand_score(
        np.concatenate([a.ravel() for a, _ in pairs]),
        np.concatenate([b.ravel() for _, b in pairs]),
    )
    assert 0.02 < wanted < 0.9
    assert found.ari == pytest.approx(wanted, abs=1e-12)
    assert found.frames == 2


def test_other_ids_for_the_same_regions_are_full_agreement() -> None:
    first = labels(0)
    second = np.array([2, 3, 1, 0], np.uint8)[first]
    counts = counted((first, second))
    found = counts.compare(CLASSES, CLASSES)
    assert (found.ari, found.matched) == (1.0, 1.0)
    assert counts.matching()[:5].tolist() == [3, 2, 0, 1, -1]
    assert all(each.iou == 1.0 for each in found.classes)


def test_unrelated_labellings_agree_as_much_as_chance() -> None:
    assert abs(counted((labels(0), labels(1))).compare(CLASSES, CLASSES).ari) < 0.02


def test_one_part_on_both_sides_is_agreement() -> None:
    assert adjusted_rand(np.array([[7]])) == 1.0


def test_a_class_that_the_other_bundle_lacks_is_named_first() -> None:
    first = np.zeros((10, 10), np.uint8)
    first[5:] = 1
    second = first.copy()
    second[:2, :5] = 2
    found = counted((first, second)).compare(CLASSES, CLASSES)
    new, *others = found.classes
    assert (new.name, new.best, new.share) == ("class 2", "class 0", 0.1)
    assert new.iou == pytest.approx(0.2)
    assert [each.name for each in others] == ["class 0", "class 1"]
    assert found.matched == pytest.approx(0.9)


def test_void_of_either_side_is_left_out() -> None:
    first, second = labels(0), labels(0)
    first[:5] = VOID
    second[:, :5] = VOID
    found = counted((first, second)).compare(CLASSES, CLASSES)
    assert found.ari == 1.0
    assert sum(each.share for each in found.classes) == pytest.approx(1.0)
    nothing = np.full((4, 4), VOID, np.uint8)
    with pytest.raises(EvaluationError, match="no pixel"):
        counted((nothing, nothing)).compare(CLASSES, CLASSES)


def test_maps_of_different_sizes_are_refused() -> None:
    with pytest.raises(EvaluationError, match="cannot be compared"):
        counted((labels(0), labels(1)[:5]))
