"""Segmentation figures: confusion counts, IoU, and which cluster stands for which class.

Everything is counted in pixels over a whole set of frames (never averaged over frames),
as in Pascal VOC and Cityscapes. All functions take and return plain numpy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.errors import EvaluationError
from aeseg_edge.support.require import import_scipy

LABELS = 256
"""Label values: class ids and void."""

UNMATCHED = -1
"""In a cluster -> class map: the cluster stands for no class, so its pixels are wrong."""


@dataclass(frozen=True)
class Scores:
    """Figures of one labelling against the truth, as shares from 0 to 1.

    Attributes:
        iou: Intersection over union of each class; None where the truth has no such pixel.
        miou: Mean of the IoUs that are not None.
        pixel_accuracy: Correct pixels over all counted pixels.
    """

    iou: tuple[float | None, ...]
    miou: float
    pixel_accuracy: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures in percent, rounded to two decimals; absent classes are None."""
        return {
            "miou": round(100 * self.miou, 2),
            "pixel_accuracy": round(100 * self.pixel_accuracy, 2),
            "iou": [None if value is None else round(100 * value, 2) for value in self.iou],
        }


class ConfusionMatrix:
    """Pixels counted by true class and predicted id, frame after frame.

    Args:
        classes: Number of classes of the truth.
        predictions: Number of predicted ids (clusters or classes).
        ignore: Value of the truth that leaves every count, or None. It may lie inside
            or outside 0..classes-1.

    Attributes:
        counts: int64 [classes, predictions], pixels of true class i predicted as j.
        missed: int64 [classes], pixels of true class i with no prediction (a negative id,
            for instance void).
        outside: Pixels with a class that were left out of every count.
    """

    def __init__(self, classes: int, predictions: int, *, ignore: int | None = None) -> None:
        if classes < 1 or predictions < 1:
            raise EvaluationError(
                f"a confusion matrix of {classes} classes and {predictions} predicted ids is empty",
                fix="Give at least one of each.",
            )
        self.ignore = ignore
        self.counts: NDArray[np.int64] = np.zeros((classes, predictions), np.int64)
        self.missed: NDArray[np.int64] = np.zeros(classes, np.int64)
        self.outside = 0

    @property
    def pixels(self) -> int:
        """Pixels counted so far."""
        return int(self.counts.sum() + self.missed.sum())

    def update(
        self,
        truth: NDArray[Any],
        predicted: NDArray[Any],
        outside: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count one frame: integers of one shape, the truth's classes and predicted ids.

        A negative id means none; where ``outside`` is True nothing counts. EvaluationError if
        the shapes differ, an array is not of integers, or a value that is not ignored is out
        of range.
        """
        for name, array in (("truth", truth), ("prediction", predicted)):
            if array.dtype.kind not in "iu":
                raise EvaluationError(
                    f"the {name} has dtype {array.dtype}, not integers",
                    fix="Pass arrays of class and cluster ids.",
                )
        if truth.shape != predicted.shape:
            raise EvaluationError(
                f"the truth has shape {truth.shape}, the prediction {predicted.shape}",
                fix="Predict labels at the size of the mask.",
            )
        classes, ids = self.counts.shape
        flat_truth = truth.reshape(-1).astype(np.int64)
        flat_ids = predicted.reshape(-1).astype(np.int64)
        if self.ignore is not None or outside is not None:
            kept = np.ones(flat_truth.shape, np.bool_)
            if self.ignore is not None:
                kept = flat_truth != self.ignore
            if outside is not None:
                inside = ~outside.reshape(-1)
                self.outside += int((kept & ~inside).sum())
                kept = kept & inside
            flat_truth, flat_ids = flat_truth[kept], flat_ids[kept]
        if flat_truth.size == 0:
            return
        if flat_truth.min() < 0 or flat_truth.max() >= classes:
            bad = flat_truth[(flat_truth < 0) | (flat_truth >= classes)][0]
            raise EvaluationError(
                f"the truth has the value {bad}, which is none of the {classes} classes",
                fix=f"Use 0..{classes - 1}, or name {bad} as the value to ignore.",
            )
        if flat_ids.max() >= ids:
            raise EvaluationError(
                f"the prediction has the id {flat_ids.max()}, but there are only {ids}",
                fix=f"Predict ids 0..{ids - 1}.",
            )
        flat_ids[flat_ids < 0] = ids  # one extra column collects pixels without a prediction
        index = flat_truth * (ids + 1) + flat_ids
        table = np.bincount(index, minlength=classes * (ids + 1)).reshape(classes, ids + 1)
        self.counts += table[:, :ids]
        self.missed += table[:, ids]


def class_iou(
    counts: NDArray[np.int64] | NDArray[np.float64], missed: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return intersection over union per class, TP / (TP + FP + FN), float64 [C].

    Source: Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2010, 4.2.
    ``counts`` are [C, C], true class by predicted class; ``missed`` int64 [C], pixels predicted
    as no class: false negatives only. NaN for a class that the truth never has, predicted or not.
    """
    correct = np.diag(counts).astype(np.float64)
    true = counts.sum(axis=1) + (0 if missed is None else missed)
    union = true + counts.sum(axis=0) - correct
    present = true > 0
    iou: NDArray[np.float64] = np.full(len(correct), np.nan)
    iou[present] = correct[present] / union[present]
    return iou


def score(counts: NDArray[np.int64], missed: NDArray[np.int64] | None = None) -> Scores:
    """Return IoU per class, mIoU over the classes present, and pixel accuracy.

    ``counts`` are int64 [C, C], true class by predicted class; ``missed`` int64 [C] count as
    wrong. EvaluationError if no pixel was counted.
    """
    pixels = int(counts.sum()) + (0 if missed is None else int(missed.sum()))
    if pixels == 0:
        raise EvaluationError(
            "no pixel was counted",
            fix="Check that the masks hold more than the ignored value.",
        )
    iou = class_iou(counts, missed)
    return Scores(
        iou=tuple(None if np.isnan(value) else float(value) for value in iou),
        miou=float(np.nanmean(iou)),
        pixel_accuracy=float(np.trace(counts)) / pixels,
    )


def hungarian_map(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Match clusters to classes one to one, so that the most pixels are right: int64 [clusters].

    This is the field's protocol: the assignment maximises the matched pixels of the whole
    set (not IoU), as in IIC (Ji et al., ICCV 2019), PiCIE (Cho et al., CVPR 2021) and STEGO
    (Hamilton et al., ICLR 2022), by the Hungarian method (Kuhn 1955). With more clusters than
    classes, the rest are UNMATCHED: their pixels are wrong for their true class and hit no other.
    """
    rows, columns = import_scipy("optimize").linear_sum_assignment(counts, maximize=True)
    mapping: NDArray[np.int64] = np.full(counts.shape[1], UNMATCHED, np.int64)
    mapping[columns] = rows
    return mapping


def majority_map(counts: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.int64]:
    """Give every cluster the class that most of its pixels have, or UNMATCHED: int64 [clusters].

    ``counts`` are [classes, clusters], from the frames that the map is fitted on. Ties go to the
    class with the lower id. A cluster without a single labelled pixel has nothing to be named
    by: it is UNMATCHED, and counts as wrong where it appears later.
    """
    mapping: NDArray[np.int64] = np.argmax(counts, axis=0).astype(np.int64)
    mapping[counts.sum(axis=0) == 0] = UNMATCHED
    return mapping


def fold(
    counts: NDArray[np.int64], mapping: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Turn counts [classes, clusters] into counts by class: int64 [classes, classes].

    The second part, int64 [classes], has the pixels of unmatched clusters.
    """
    classes = counts.shape[0]
    matched = np.flatnonzero(mapping != UNMATCHED)
    folded: NDArray[np.int64] = np.zeros((classes, classes), np.int64)
    for cluster in matched:
        folded[:, mapping[cluster]] += counts[:, cluster]
    missed: NDArray[np.int64] = counts[:, mapping == UNMATCHED].sum(axis=1)
    return folded, missed


def label_table(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count pairs of labels of two uint8 maps: int64 [256, 256], the first map's in rows.

    Void in both counts nowhere.
    """
    pairs = first.reshape(-1).astype(np.int64) * LABELS + second.reshape(-1)
    table = np.bincount(pairs, minlength=LABELS * LABELS).reshape(LABELS, LABELS)
    table[VOID, VOID] = 0
    return table.astype(np.int64, copy=False)


def labels_equal(table: NDArray[np.int64]) -> float | None:
    """Give the share of equal labels, 0..1; None where nothing was counted."""
    pixels = int(table.sum())
    return int(np.trace(table)) / pixels if pixels else None
