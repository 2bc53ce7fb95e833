"""Evaluation of a bundle on labelled frames: the figures behind `aeseg eval`.

Labels are read here, after clustering, and nowhere earlier. Clusters get their classes in
up to three ways: one to one (Hungarian), by majority on other frames, and by the names
that the bundle already has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.geometry import fit_labels
from aeseg_edge.calibration.footage.masks import (
    MASK_SUFFIX,
    Pair,
    Read,
    find_pairs,
    labelled_frames,
    read_classes,
    read_image,
    read_mask,
)
from aeseg_edge.calibration.score.counts import (
    UNMATCHED,
    ConfusionMatrix,
    Scores,
    fold,
    hungarian_map,
    majority_map,
    score,
)
from aeseg_edge.errors import EvaluationError
from aeseg_edge.sources.images import IMAGE_SUFFIXES
from aeseg_edge.support.require import import_scipy

__all__ = [
    "IMAGE_SUFFIXES",
    "MASK_SUFFIX",
    "EvaluationReport",
    "Pair",
    "count_clusters",
    "evaluate",
    "find_pairs",
    "format_table",
    "read_classes",
    "read_image",
    "read_mask",
]

_log = logging.getLogger(__name__)

Predict = Callable[[NDArray[np.uint8]], NDArray[Any]]
"""uint8 [H, W, C] frame -> integers [H, W], cluster ids; negative means no cluster (void)."""

Progress = Callable[[int, int], None]
"""Called after each frame with (frames done, frames in all)."""

Outside = Callable[[int, int], NDArray[np.bool_]]
"""Height and width of a frame -> bool [H, W], True where nothing is segmented."""


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found.

    Attributes:
        frames: Frames scored.
        clusters: Clusters of the codebook.
        classes: Names of the classes, in the order of their ids in the masks.
        hungarian: Scores with clusters matched one to one on the scored frames themselves.
        majority: Scores with each cluster named by majority on the fit frames, or None
            where there were none.
        named: Scores with the bundle's own names, or None where none occurs in `classes`.
        hungarian_map: Class of each cluster, UNMATCHED (-1) where it has none.
        majority_map: The same for `majority`.
        outside: Share of the labelled pixels outside the region of interest, which count
            nowhere; None without a region.
    """

    frames: int
    clusters: int
    classes: tuple[str, ...]
    hungarian: Scores
    majority: Scores | None
    named: Scores | None
    hungarian_map: tuple[int, ...]
    majority_map: tuple[int, ...] | None
    outside: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report with figures in percent; an absent class has the IoU None."""
        report: dict[str, Any] = {
            "frames": self.frames,
            "clusters": self.clusters,
            "classes": list(self.classes),
            "hungarian": self.hungarian.to_json(),
        }
        if self.majority is not None:
            report["majority"] = self.majority.to_json()
        if self.named is not None:
            report["named"] = self.named.to_json()
        if self.outside is not None:
            report["outside_region"] = round(100 * self.outside, 2)
        return report


def evaluate(
    predict: Predict,
    pairs: Sequence[Pair],
    class_names: Sequence[str],
    *,
    clusters: int,
    ignore: int | None,
    fit_pairs: Sequence[Pair] | None = None,
    fit_every: int = 1,
    named: Mapping[int, str] | None = None,
    progress: Progress | None = None,
    read: Read | None = None,
    outside: Outside | None = None,
) -> EvaluationReport:
    """Score a predictor of clusters against masks, over all frames at once.

    Args:
        predict: Frame uint8 [H, W, C] -> cluster ids, integers [H, W] at the frame's size.
        pairs: The frames to score.
        class_names: Names of the classes 0, 1, ... of the masks.
        clusters: Number of clusters that `predict` chooses from.
        ignore: Mask value that leaves every count, or None.
        fit_pairs: Frames for the majority map; no frame of `pairs` should be among them.
        fit_every: Use every n-th of the fit pairs, from the first.
        named: Name of each cluster's class in the bundle. Names are compared without regard
            to case and outer blanks; clusters whose name is no class count as wrong.
        progress: Called after each frame.
        read: Turns an image path into a frame; colour pictures unless given.
        outside: Pixels that count nowhere, see ``outside_region``; none unless given.

    Raises:
        EvaluationError: A file is missing, unreadable or of another size than its partner,
            a mask holds a value that is no class, or there is nothing to score.
        MissingDependency: If scipy is not installed.
    """
    import_scipy("optimize")  # Needed at the end, so asked for before the frames.
    if fit_every < 1:
        raise EvaluationError(
            f"--fit-every is {fit_every}", fix="Use 1 for every fit frame, 4 for every fourth."
        )
    fit = list(fit_pairs or ())[::fit_every]
    if fit_pairs is not None and not fit:
        raise EvaluationError("there are no frames to fit on", fix="Check --fit-images.")
    if not pairs:
        raise EvaluationError("there are no frames to score", fix="Check --images.")
    shared = {pair.mask.resolve() for pair in fit} & {pair.mask.resolve() for pair in pairs}
    if shared:
        _log.warning(
            "%d of %d scored frames are also fit frames: the majority figures are optimistic",
            len(shared),
            len(pairs),
        )
    total = len(fit) + len(pairs)

    def count(wanted: Sequence[Pair], before: int) -> ConfusionMatrix:
        return count_clusters(
            predict,
            wanted,
            class_names,
            clusters=clusters,
            ignore=ignore,
            progress=None if progress is None else lambda done, _: progress(before + done, total),
            read=read,
            outside=outside,
        )

    fit_matrix = count(fit, 0) if fit else None
    matrix = count(pairs, len(fit))
    if matrix.pixels == 0:
        raise EvaluationError(
            f"every pixel of the {len(pairs)} masks has the ignored value {ignore}"
            + (" or lies outside the region of interest" if matrix.outside else ""),
            fix="Check --ignore and the masks.",
        )

    def scores(mapping: NDArray[np.int64]) -> Scores:
        counts, missed = fold(matrix.counts, mapping)
        return score(counts, missed + matrix.missed)

    hungarian = hungarian_map(matrix.counts)
    majority = None if fit_matrix is None else majority_map(fit_matrix.counts)
    names = _named_map(named or {}, class_names, clusters)
    return EvaluationReport(
        frames=len(pairs),
        clusters=clusters,
        classes=tuple(class_names),
        hungarian=scores(hungarian),
        majority=None if majority is None else scores(majority),
        named=None if names is None else scores(names),
        hungarian_map=tuple(hungarian.tolist()),
        majority_map=None if majority is None else tuple(majority.tolist()),
        outside=None if outside is None else matrix.outside / (matrix.outside + matrix.pixels),
    )


def count_clusters(
    predict: Predict,
    pairs: Sequence[Pair],
    class_names: Sequence[str],
    *,
    clusters: int,
    ignore: int | None,
    progress: Progress | None = None,
    read: Read | None = None,
    outside: Outside | None = None,
) -> ConfusionMatrix:
    """Count the pixels of labelled frames by class and cluster; arguments as for ``evaluate``."""
    matrix = ConfusionMatrix(len(class_names), clusters, ignore=ignore)
    frames = labelled_frames(pairs, class_names, ignore=ignore, read=read)
    for done, (pair, frame, mask) in enumerate(frames, 1):
        matrix.update(
            mask,
            _predicted(predict, frame, pair.image, clusters),
            None if outside is None else outside(*mask.shape),
        )
        if progress is not None:
            progress(done, len(pairs))
    return matrix


def outside_region(bundle: Bundle) -> Outside | None:
    """Say where frames of any size lie outside a bundle's region of interest; None without one."""
    region = bundle.region
    if region is None:
        return None
    return lambda height, width: fit_labels(region, bundle.manifest.geometry, height, width) <= 127


def format_table(report: EvaluationReport) -> str:
    """Return the report as a plain text table, figures in percent."""
    columns: list[tuple[str, Scores]] = [("hungarian", report.hungarian)]
    if report.majority is not None:
        columns.append(("majority", report.majority))
    if report.named is not None:
        columns.append(("named", report.named))
    rows: list[tuple[str, list[float | None]]] = [
        (name, [scores.iou[i] for _, scores in columns]) for i, name in enumerate(report.classes)
    ]
    rows.append(("mIoU", [scores.miou for _, scores in columns]))
    rows.append(("pixel accuracy", [scores.pixel_accuracy for _, scores in columns]))
    width = max(len(name) for name, _ in rows)
    lines = [
        f"frames {report.frames}, clusters {report.clusters}, classes {len(report.classes)}",
        " " * width + "".join(f"{name:>11}" for name, _ in columns),
    ]
    for index, (name, values) in enumerate(rows):
        if index == len(report.classes):
            lines.append("-" * (width + 11 * len(columns)))
        cells = ("-" if value is None else f"{100 * value:.2f}" for value in values)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    if report.outside is not None:
        share = f"{100 * report.outside:.1f} %"
        lines.append(
            f"{share} of the labelled pixels lie outside the region of interest: not scored"
        )
    return "\n".join(lines)


def _predicted(
    predict: Predict, frame: NDArray[np.uint8], path: Path, clusters: int
) -> NDArray[Any]:
    ids = np.asarray(predict(frame))
    if ids.shape != frame.shape[:2] or ids.dtype.kind not in "iu":
        raise EvaluationError(
            f"the prediction for {path} is {ids.dtype} {list(ids.shape)}, "
            f"not integers {list(frame.shape[:2])}",
            fix="Return one cluster id for each pixel of the frame.",
        )
    if ids.max() >= clusters:
        raise EvaluationError(
            f"the prediction for {path} has cluster {int(ids.max())}, but there are {clusters}",
            fix="Pass the number of clusters of the codebook.",
        )
    return ids


def _named_map(
    named: Mapping[int, str], class_names: Sequence[str], clusters: int
) -> NDArray[np.int64] | None:
    """Return the class of each cluster by its name, or None where no name is a class."""
    ids = {name.strip().casefold(): index for index, name in enumerate(class_names)}
    mapping: NDArray[np.int64] = np.full(clusters, UNMATCHED, np.int64)
    for cluster, name in named.items():
        mapping[cluster] = ids.get(name.strip().casefold(), UNMATCHED)
    return None if (mapping == UNMATCHED).all() else mapping
