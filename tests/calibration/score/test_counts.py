"""The arithmetic of mIoU, against scikit-learn and against cases worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from aeseg_edge.calibration.score.counts import (
    UNMATCHED,
    ConfusionMatrix,
    class_iou,
    fold,
    hungarian_map,
    majority_map,
    score,
)
from aeseg_edge.errors import EvaluationError

IGNORE = 255


def labelled_frames(seed: int) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Random truths and predictions over several frames, with some classes missing."""
    generator = np.random.default_rng(seed)
    classes = int(generator.integers(2, 12))
    frames = []
    for _ in range(int(generator.integers(1, 4))):
        shape = tuple(generator.integers(1, 20, 2))
        truth = generator.integers(0, classes, shape)
        truth[truth == seed % classes] = (seed + 1) % classes  # one class never occurs
        predicted = np.where(
            generator.random(shape) < 0.6, truth, generator.integers(0, classes, shape)
        )
        truth[generator.random(shape) < 0.1] = IGNORE
        truth.flat[0] = (seed + 1) % classes  # at least one pixel counts
        frames.append((truth.astype(np.uint8), predicted))
    return classes, frames


@pytest.mark.parametrize("seed", range(40))
def test_streamed_scores_equal_scikit_learns_over_all_pixels_at_once(seed: int) -> None:
    classes, frames = labelled_frames(seed)
    matrix = ConfusionMatrix(classes, classes, ignore=IGNORE)
    for truth, predicted in frames:
        matrix.update(truth, predicted)
    scores = score(matrix.counts, matrix.missed)

    truth = np.concatenate([t.ravel() for t, _ in frames])
    predicted = np.concatenate([p.ravel() for _, p in frames])[truth != IGNORE]
    truth = truth[truth != IGNORE]
    labels = np.arange(classes)
    present = np.unique(truth)
    jaccard = jaccard_score(truth, predicted, labels=labels, average=None, zero_division=0)
    np.testing.assert_array_equal(matrix.counts, confusion_matrix(truth, predicted, labels=labels))
    assert [i for i, value in enumerate(scores.iou) if value is not None] == present.tolist()
    np.testing.assert_allclose([scores.iou[i] for i in present], jaccard[present])
    assert scores.miou == pytest.approx(
        jaccard_score(truth, predicted, labels=present, average="macro", zero_division=0)
    )
    assert scores.pixel_accuracy == pytest.approx(accuracy_score(truth, predicted))


@pytest.mark.parametrize("seed", range(12))
def test_the_hungarian_map_is_the_best_of_all_one_to_one_maps(seed: int) -> None:
    generator = np.random.default_rng(seed)
    classes, clusters = (3, 5) if seed % 2 else (4, 3)
    counts = generator.integers(0, 50, (classes, clusters))
    mapping = hungarian_map(counts)

    matched = mapping[mapping != UNMATCHED]
    assert len(set(matched.tolist())) == len(matched) == min(classes, clusters)
    small, large = sorted((classes, clusters))
    table = counts if classes == small else counts.T
    best = max(
        sum(table[row, column] for row, column in enumerate(columns))
        for columns in itertools.permutations(range(large), small)
    )
    assert sum(counts[c, k] for k, c in enumerate(mapping) if c != UNMATCHED) == best


def test_the_hungarian_map_undoes_a_permutation_of_the_classes() -> None:
    truth = np.arange(6).repeat(10)
    permutation = np.array([3, 5, 0, 1, 4, 2])
    matrix = ConfusionMatrix(6, 6)
    matrix.update(truth, permutation[truth])
    mapping = hungarian_map(matrix.counts)
    np.testing.assert_array_equal(mapping[permutation], np.arange(6))
    assert score(*fold(matrix.counts, mapping)).miou == 1.0


def test_pixels_of_unmatched_clusters_are_wrong_but_blame_no_other_class() -> None:
    #                cluster  0   1   2
    counts = np.array([[60, 0, 40], [0, 80, 20]])
    mapping = hungarian_map(counts)
    assert mapping.tolist() == [0, 1, UNMATCHED]
    scores = score(*fold(counts, mapping))
    assert scores.iou == (0.6, 0.8)  # 40 and 20 false negatives, no false positive
    assert scores.miou == pytest.approx(0.7)
    assert scores.pixel_accuracy == pytest.approx(140 / 200)


def test_with_fewer_clusters_than_classes_the_rest_of_the_classes_score_zero() -> None:
    counts = np.array([[50], [20], [30]])
    scores = score(*fold(counts, hungarian_map(counts)))
    assert scores.iou == (0.5, 0.0, 0.0)
    assert scores.pixel_accuracy == 0.5


def test_majority_merges_clusters_and_breaks_ties_toward_the_lower_class() -> None:
    counts = np.array([[5, 0, 4, 0], [4, 9, 4, 0]])
    assert majority_map(counts).tolist() == [0, 1, 0, UNMATCHED]


def test_a_cluster_unseen_on_the_fit_frames_counts_as_wrong() -> None:
    mapping = majority_map(np.array([[7, 0], [0, 0]]))
    scores = score(*fold(np.array([[10, 30], [0, 10]]), mapping))
    assert scores.iou == (10 / 40, 0.0)


def test_a_class_absent_from_the_truth_is_nan_and_leaves_the_mean() -> None:
    counts = np.array([[8, 0, 2], [0, 10, 0], [0, 0, 0]])
    iou = class_iou(counts)
    assert np.isnan(iou[2])
    assert score(counts).miou == pytest.approx((0.8 + 1.0) / 2)


def test_pixels_without_a_prediction_count_as_wrong() -> None:
    matrix = ConfusionMatrix(2, 2)
    matrix.update(np.array([0, 0, 1, 1]), np.array([0, -1, 1, -1]))
    assert matrix.missed.tolist() == [1, 1]
    assert matrix.pixels == 4
    assert score(matrix.counts, matrix.missed).pixel_accuracy == 0.5


def test_ignored_pixels_leave_every_count_even_inside_the_class_range() -> None:
    matrix = ConfusionMatrix(3, 3, ignore=1)
    matrix.update(np.array([[0, 1], [1, 2]], np.uint8), np.array([[0, 0], [2, 2]]))
    assert matrix.pixels == 2
    assert matrix.counts.sum(axis=1).tolist() == [1, 0, 1]


def test_counts_hold_more_pixels_than_32_bits() -> None:
    matrix = ConfusionMatrix(1, 300)
    matrix.counts[0, 299] = 2**40
    matrix.update(np.zeros(5, np.uint8), np.full(5, 299, np.int16))
    assert matrix.counts[0, 299] == 2**40 + 5
    assert matrix.counts.dtype == np.int64


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.array([0, 2]), np.array([0, 0]), r"value 2, .* Use 0\.\.1"),
        (np.array([0, -1]), np.array([0, 0]), "value -1"),
        (np.array([0, 1]), np.array([0, 2]), r"id 2, .* ids 0\.\.1"),
        (np.array([0, 1]), np.array([[0, 1]]), "shape"),
        (np.array([0.0, 1.0]), np.array([0, 1]), "float64"),
    ],
)
def test_values_that_cannot_be_counted_are_named(
    truth: np.ndarray, predicted: np.ndarray, message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        ConfusionMatrix(2, 2).update(truth, predicted)


@pytest.mark.parametrize(("classes", "predictions"), [(0, 2), (2, 0)])
def test_a_matrix_of_nothing_is_refused(classes: int, predictions: int) -> None:
    with pytest.raises(EvaluationError, match="is empty"):
        ConfusionMatrix(classes, predictions)
    assert ConfusionMatrix(1, 1).pixels == 0


def test_a_score_of_no_pixels_is_refused() -> None:
    matrix = ConfusionMatrix(2, 2, ignore=9)
    matrix.update(np.full(4, 9), np.zeros(4, np.uint8))
    with pytest.raises(EvaluationError, match="no pixel"):
        score(matrix.counts, matrix.missed)


def test_figures_in_json_are_percent_with_none_for_absent_classes() -> None:
    counts = np.array([[1, 2], [0, 0]])
    assert score(counts).to_json() == {
        "miou": 33.33,
        "pixel_accuracy": 33.33,
        "iou": [33.33, None],
    }
