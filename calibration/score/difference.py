"""How the labels of two bundles differ on the same frames: what thermal changed, for instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import VOID, ClassInfo
from aeseg_edge.calibration.score.counts import LABELS, UNMATCHED, hungarian_map, label_table
from aeseg_edge.errors import EvaluationError


@dataclass(frozen=True)
class ClassOverlap:
    """What one class (``name``) of the second bundle, ``share`` of all pixels, is in the first.

    ``best`` is the first's class that overlaps it most by ``iou`` (0..1); empty where none does.
    """

    name: str
    share: float
    best: str
    iou: float


@dataclass(frozen=True)
class Comparison:
    """Two bundles on the same frames.

    Attributes:
        frames: Frames compared.
        ari: Adjusted Rand index of the two labellings over all pixels: 1 for the same
            regions whatever their ids, about 0 for unrelated ones.
        matched: Share of pixels that agree once classes are matched one to one, 0..1.
        classes: One entry a class of the second bundle that occurs, the least alike first.
    """

    frames: int
    ari: float
    matched: float
    classes: tuple[ClassOverlap, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dictionaries and numbers."""
        return asdict(self)


class LabelCounts:
    """Counts label pairs over frames; void pixels of either side are left out."""

    def __init__(self) -> None:
        self.frames = 0
        self._table = np.zeros((LABELS, LABELS), np.int64)

    def add(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> None:
        """Count one frame, uint8 [H, W] each; EvaluationError if the shapes differ."""
        if first.shape != second.shape:
            raise EvaluationError(
                f"label maps of {first.shape} and {second.shape} cannot be compared",
                fix="Give both bundles the same frames.",
            )
        self._table += label_table(first, second)
        self.frames += 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pixels by label: int64 [255, 255], the first bundle's labels in rows."""
        return self._table[:VOID, :VOID]

    def matching(self) -> NDArray[np.int64]:
        """Match classes one to one so that the most pixels agree (Kuhn 1955).

        int64 [256]: the first bundle's class for each of the second's; UNMATCHED (-1) where
        there is none, or where the two share no pixel.
        """
        counts = self.counts
        mapping = np.full(LABELS, UNMATCHED, np.int64)
        mapping[:VOID] = hungarian_map(counts)
        second = np.arange(VOID)
        empty = counts[mapping[:VOID], second] == 0
        mapping[:VOID][empty] = UNMATCHED
        return mapping

    def compare(self, first: Sequence[ClassInfo], second: Sequence[ClassInfo]) -> Comparison:
        """Sum up what was counted; EvaluationError if no pixel has a label in both."""
        counts = self.counts
        total = int(counts.sum())
        if not total:
            raise EvaluationError(
                "no pixel has a label in both bundles", fix="Give frames inside both regions."
            )
        mapping = self.matching()[:VOID]
        agreed = sum(int(counts[mapping[k], k]) for k in np.flatnonzero(mapping != UNMATCHED))
        names = {item.id: item.name for item in first}
        overlaps = [_overlap(counts, item, names, total) for item in second]
        present = sorted((each for each in overlaps if each.share), key=lambda each: each.iou)
        return Comparison(self.frames, adjusted_rand(counts), agreed / total, tuple(present))


def adjusted_rand(counts: NDArray[np.int64]) -> float:
    """Compute the adjusted Rand index from int64 [A, B]: items with one label and the other.

    Hubert and Arabie, "Comparing partitions", Journal of Classification 2, 1985, eq. 5: 1 for
    equal partitions (and where both put everything into one part), 0 on average for independent.
    """

    def pairs(values: NDArray[np.int64]) -> float:
        # Beyond 3e9 pixels the squares would leave 64 bits.
        exact = values.astype(np.float64)
        return float((exact * (exact - 1) / 2).sum())

    together = pairs(counts.ravel())
    rows, columns = pairs(counts.sum(axis=1)), pairs(counts.sum(axis=0))
    everything = pairs(np.array([counts.sum()]))
    expected = rows * columns / everything if everything else 0.0
    most = (rows + columns) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def _overlap(
    counts: NDArray[np.int64], item: ClassInfo, names: Mapping[int, str], total: int
) -> ClassOverlap:
    here = counts[:, item.id]
    size = int(here.sum())
    union = counts.sum(axis=1) + size - here
    iou = np.where(here > 0, here / np.maximum(union, 1), 0.0)
    best = int(iou.argmax())
    name = names.get(best, "") if here[best] else ""
    return ClassOverlap(item.name, size / total, name, float(iou[best]))
