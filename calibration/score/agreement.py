"""How far each precision and backend agrees with fp32, label by label.

The frames must not be those that the INT8 ranges were fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.backends.onnxruntime import OnnxRuntimeBackend
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.precisions import ONNXRUNTIME, REFERENCE
from aeseg_edge.calibration.score.counts import LABELS, label_table, labels_equal
from aeseg_edge.errors import CalibrationError
from aeseg_edge.segment.segmenter import Segmenter

Key = TypeVar("Key", bound=Hashable)
Labeller = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""uint8 [H, W, C] frame -> uint8 [H, W] class ids, 255 for void."""


@dataclass(frozen=True)
class Agreement:
    """How well one (precision, backend) reproduces the labels of fp32.

    Pixels that are void in both count nowhere: a region of interest must not flatter the
    figure. Pixels that are void in one of the two count as different.

    Attributes:
        labels_equal: Share (0 to 1) of equal labels over all pixels of all frames.
        iou: By class id, intersection over union with the fp32 labels; None where
            neither labelling has the class.
        frames: Frames compared.
        worst_frame: Index of the frame with the lowest share of equal labels.
        worst_labels_equal: That frame's share.
        minimum_iou: The lowest IoU of any class, or None where no class occurs.
    """

    labels_equal: float
    iou: Mapping[int, float | None]
    frames: int
    worst_frame: int
    worst_labels_equal: float
    minimum_iou: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types, shares rounded to six decimals."""
        return {
            "labels_equal": round(self.labels_equal, 6),
            "iou": {str(k): None if v is None else round(v, 6) for k, v in self.iou.items()},
            "frames": self.frames,
            "worst_frame": self.worst_frame,
            "worst_labels_equal": round(self.worst_labels_equal, 6),
            "minimum_iou": None if self.minimum_iou is None else round(self.minimum_iou, 6),
        }


def measure_agreement(
    reference: Labeller,
    candidates: Mapping[Key, Labeller],
    frames: Iterable[NDArray[np.uint8]],
    classes: Sequence[int],
) -> dict[Key, Agreement]:
    """Compare the labels of each candidate with those of the reference, in one pass.

    Each is called once a frame, uint8 [H, W, C]; only one frame is held at a time. Gives an
    Agreement for each key, in the order of ``candidates``, with an IoU for each of ``classes``.

    Raises:
        CalibrationError: There is no frame, or nothing but void, or a labeller returns
            something other than uint8 labels of the reference's shape.
    """
    tables = {key: np.zeros((LABELS, LABELS), np.int64) for key in candidates}
    # Share and index of the frame that agrees least. A frame that is all void has no share.
    worst: dict[Key, tuple[float, int]] = {}
    count = 0
    for index, frame in enumerate(frames):
        expected = reference(frame)
        for key, candidate in candidates.items():
            table = _table(expected, candidate(frame), key)
            tables[key] += table
            share = labels_equal(table)
            if share is not None:
                worst[key] = min(worst.get(key, (share, index)), (share, index))
        count = index + 1
    if count == 0:
        raise CalibrationError(
            "there are no frames to measure agreement on",
            fix="Hold back frames that are not used for calibration.",
        )
    return {key: sum_up(table, classes, count, worst.get(key)) for key, table in tables.items()}


def open_graph(
    bundle: Bundle,
    key: tuple[str, str],
    *,
    graph: bytes | None = None,
    threads: int | None = None,
) -> Segmenter:
    """Open one entry of a bundle on ONNX Runtime: what a device computes, emulated where needed.

    ``graph`` is serialised ONNX to run in the place of the entry's own.
    """
    backend = OnnxRuntimeBackend(
        bundle.graph(*key) if graph is None else graph,
        bundle.manifest.spec,
        bundle.codebook,
        threads=threads,
        emulate=key[1] != ONNXRUNTIME,
    )
    return Segmenter(bundle, backend, bundle.manifest.entry(*key))


def compare_entries(
    bundle: Bundle,
    frames: Sequence[NDArray[np.uint8]],
    *,
    graphs: Mapping[str, bytes] | None = None,
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> dict[tuple[str, str], Agreement]:
    """Measure every entry's labels against fp32's, all on ONNX Runtime, as a device would run it.

    ``graphs``, by member path, stand in the place of the bundle's own. Entries that share fp32's
    graph are left out. The frames must not be those the ranges were fitted on.
    """
    manifest = bundle.manifest
    graphs = bundle.graphs if graphs is None else graphs
    reference_graph = manifest.entry(*REFERENCE).graph
    others = [entry for entry in manifest.entries if entry.graph != reference_graph]
    done = 0
    with ExitStack() as stack:

        def labeller(key: tuple[str, str]) -> Labeller:
            graph = graphs[manifest.entry(*key).graph]
            opened = open_graph(bundle, key, graph=graph, threads=threads)
            segmenter = stack.enter_context(opened)
            return lambda frame: segmenter(frame).labels

        reference = labeller(REFERENCE)

        def counted(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
            nonlocal done
            done += 1
            if progress is not None:
                progress("agreement", done / len(frames))
            return reference(frame)

        return measure_agreement(
            counted,
            {entry.key: labeller(entry.key) for entry in others},
            frames,
            [item.id for item in bundle.codebook.classes],
        )


def gate(agreements: Mapping[Key, Agreement], minimum: float = 0.95) -> dict[Key, Agreement]:
    """Return the entries whose share of equal labels is below `minimum` (0 to 1)."""
    return {key: value for key, value in agreements.items() if value.labels_equal < minimum}


def _table(
    expected: NDArray[np.uint8], found: NDArray[np.uint8], key: Hashable
) -> NDArray[np.int64]:
    """Return int64 [256, 256], pixels by label of the reference and of the candidate."""
    if expected.dtype != np.uint8 or found.dtype != np.uint8 or expected.shape != found.shape:
        raise CalibrationError(
            f"{key} gives {found.dtype} labels {list(found.shape)}, "
            f"the reference {expected.dtype} {list(expected.shape)}",
            fix="Compare uint8 label maps of the same size.",
        )
    return label_table(expected, found)


def sum_up(
    table: NDArray[np.int64],
    classes: Sequence[int],
    frames: int,
    worst: tuple[float, int] | None,
) -> Agreement:
    """Give the figures of a whole table, int64 [256, 256], labels of the reference in rows.

    ``worst`` is the share of equal labels and the index of the frame that agrees least.
    CalibrationError if there is nothing but void.
    """
    equal = labels_equal(table)
    if equal is None or worst is None:
        raise CalibrationError(
            "every label of every frame is void, so there is nothing to compare",
            fix="Check the region of interest and the void clusters.",
        )
    union = table.sum(axis=0) + table.sum(axis=1) - np.diag(table)
    iou = {
        class_id: float(table[class_id, class_id] / union[class_id]) if union[class_id] else None
        for class_id in classes
    }
    return Agreement(
        labels_equal=equal,
        iou=iou,
        frames=frames,
        worst_frame=worst[1],
        worst_labels_equal=worst[0],
        minimum_iou=min((value for value in iou.values() if value is not None), default=None),
    )
