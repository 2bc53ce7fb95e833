"""How each precision of a bundle differs from fp32 on real frames: what ``aeseg report`` shows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.bundle.geometry import fit_frame
from aeseg_edge.bundle.manifest import Entry
from aeseg_edge.bundle.precisions import INT8, ONNXRUNTIME, REFERENCE, TITLES
from aeseg_edge.calibration.score.agreement import Agreement, open_graph, sum_up
from aeseg_edge.calibration.score.counts import LABELS, label_table, labels_equal
from aeseg_edge.calibration.score.sensitivity import FRAMES as LAYER_FRAMES
from aeseg_edge.calibration.score.sensitivity import Sensitivity, measure_sensitivity
from aeseg_edge.errors import CalibrationError
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.support.progress import Progress

Image = NDArray[np.uint8]

BINS = 24
"""Of the margin histogram; the last holds everything above."""

WORST = 3
"""Frames shown for each precision."""


@dataclass(frozen=True)
class WorstFrame:
    """A frame (at the graph's size) on which a precision agrees little with fp32."""

    index: int
    labels_equal: float
    image: Image
    expected: Image
    found: Image


@dataclass(frozen=True)
class PrecisionFigures:
    """One graph of the bundle against fp32.

    Attributes:
        entry: Of the manifest.
        emulated: Whether it was made for TensorRT and ran on ONNX Runtime here.
        agreement: Over all frames; None for fp32 itself.
        shares: Share of equal labels of each frame, 0..1; void frames are left out.
        milliseconds: Median inference on this machine.
        agree: int64 [BINS], places where labels agree, by fp32's margin.
        differ: int64 [BINS], places where they differ.
        worst: Lowest agreement first.
    """

    entry: Entry
    emulated: bool
    agreement: Agreement | None
    shares: tuple[float, ...]
    milliseconds: float
    agree: NDArray[np.int64]
    differ: NDArray[np.int64]
    worst: tuple[WorstFrame, ...]

    @property
    def title(self) -> str:
        """For people."""
        made = TITLES[self.entry.backend]
        return f"{self.entry.precision} for {made}" + (", emulated" if self.emulated else "")

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {
            "precision": self.entry.precision,
            "backend": self.entry.backend,
            "emulated": self.emulated,
            "milliseconds": self.milliseconds,
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "median_labels_equal": statistics.median(self.shares) if self.shares else None,
            "margin_agree": self.agree.tolist(),
            "margin_differ": self.differ.tolist(),
            "worst_frames": [
                {"frame": each.index, "labels_equal": each.labels_equal} for each in self.worst
            ],
        }


@dataclass(frozen=True)
class PrecisionReport:
    """All graphs of a bundle on the frames of one source; fp32 comes first.

    ``edges`` is float64 [BINS], the lower edge of each bin of the margin; ``layers`` the
    sensitivity of each int8 graph, empty where it was not asked for.
    """

    bundle: Bundle
    source: str
    frames: int
    figures: tuple[PrecisionFigures, ...]
    edges: NDArray[np.float64]
    layers: tuple[Sensitivity, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {
            "source": self.source,
            "frames": self.frames,
            "margin_edges": self.edges.tolist(),
            "precisions": [each.to_json() for each in self.figures],
            "int8_layers": [each.to_json() for each in self.layers],
        }


def compare_precisions(
    bundle: Bundle,
    images: Iterable[Image],
    *,
    source: str,
    total: int | None = None,
    layers: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PrecisionReport:
    """Run every graph of a bundle on the same frames, in turn.

    Of the frames, uint8 [h, w, C] of any size, only the worst and those for the layers are
    held. ``source`` is what they are from; ``total``, how many there are where that is known,
    is for the progress, and to spread the frames that sensitivity is measured on; ``layers``
    measures the sensitivity of each int8 convolution too.

    Raises:
        CalibrationError: If there are no frames, or nothing but void.
        BundleError: If the bundle has no fp32 graph.
    """
    tell = progress or (lambda stage, fraction: None)
    geometry = bundle.manifest.geometry
    with ExitStack() as stack:

        def opened(entry: Entry) -> Segmenter:
            return stack.enter_context(open_graph(bundle, entry.key, threads=threads))

        reference = _Running(bundle.manifest.entry(*REFERENCE), opened, bundle)
        others = [_Running(entry, opened, bundle) for entry in _others(bundle)]
        edges: NDArray[np.float64] | None = None
        kept: list[Image] = []
        step = max(1, (total or 0) // LAYER_FRAMES)
        count = 0
        for index, image in enumerate(images):
            frame = fit_frame(np.ascontiguousarray(image), geometry)
            expected, margin = reference.run(frame)
            if edges is None:
                edges = _edges(margin)
            for other in others:
                found, _ = other.run(frame)
                other.add(index, frame, expected, found, margin, edges)
            if index % step == 0 and len(kept) < LAYER_FRAMES:
                kept.append(frame)
            count = index + 1
            tell("comparing precisions", min(1.0, count / total) if total else 0.0)
        if edges is None:
            raise CalibrationError(
                f"{source} has no frames to compare precisions on", fix="Give some footage."
            )
        if not total or count < total:
            tell("comparing precisions", 1.0)
        figures = (reference.figures(None), *(other.figures(count) for other in others))
    sensitivities = []
    for other in others if layers else ():
        if other.entry.precision == INT8:
            backend = other.entry.backend
            sensitivities.append(
                measure_sensitivity(
                    bundle,
                    kept,
                    backend=backend,
                    threads=threads,
                    progress=lambda done, name=backend: tell(f"int8 layers ({name})", done),  # type: ignore[misc]
                )
            )
    return PrecisionReport(bundle, source, count, figures, edges, tuple(sensitivities))


class _Running:
    """One graph, and what was counted so far."""

    def __init__(self, entry: Entry, opened: Callable[[Entry], Segmenter], bundle: Bundle) -> None:
        self.entry = entry
        self._segmenter = opened(entry)
        self._stride = bundle.manifest.stride
        self._ids = [item.id for item in bundle.codebook.classes]
        self._spent: list[float] = []
        self._shares: list[float] = []
        self._agree = np.zeros(BINS, np.int64)
        self._differ = np.zeros(BINS, np.int64)
        self._table = np.zeros((LABELS, LABELS), np.int64)
        self._worst: list[WorstFrame] = []

    def run(self, frame: Image) -> tuple[Image, NDArray[np.float32]]:
        """Segment one frame: labels and margin."""
        result = self._segmenter(frame, want=frozenset({"margin"}))
        if result.margin is None:
            raise CalibrationError("a graph gives no margin", fix="Export the bundle again.")
        # Memory for a long recording too: the median of the last frames is as good.
        self._spent = [*self._spent[-999:], result.milliseconds["inference"]]
        return result.labels, result.margin

    def add(
        self,
        index: int,
        frame: Image,
        expected: Image,
        found: Image,
        margin: NDArray[np.float32],
        edges: NDArray[np.float64],
    ) -> None:
        """Count one frame against fp32."""
        table = label_table(expected, found)
        self._table += table
        share = labels_equal(table)
        if share is not None:
            self._shares.append(share)
            if len(self._worst) < WORST or share < self._worst[-1].labels_equal:
                self._worst.append(
                    WorstFrame(index, share, frame.copy(), expected.copy(), found.copy())
                )
                self._worst.sort(key=lambda each: (each.labels_equal, each.index))
                del self._worst[WORST:]
        half, stride = self._stride // 2, self._stride
        first, second = (labels[half::stride, half::stride] for labels in (expected, found))
        inside = (first != VOID) | (second != VOID)
        places = np.clip(np.searchsorted(edges, margin, side="right") - 1, 0, BINS - 1)
        for counts, where in (
            (self._agree, inside & (first == second)),
            (self._differ, inside & (first != second)),
        ):
            counts += np.bincount(places[where], minlength=BINS)

    def figures(self, frames: int | None) -> PrecisionFigures:
        """Sum up; ``frames`` is None for fp32 itself."""
        worst = (self._worst[0].labels_equal, self._worst[0].index) if self._worst else None
        return PrecisionFigures(
            entry=self.entry,
            emulated=self.entry.backend != ONNXRUNTIME,
            agreement=None if frames is None else sum_up(self._table, self._ids, frames, worst),
            shares=tuple(self._shares),
            milliseconds=statistics.median(self._spent),
            agree=self._agree,
            differ=self._differ,
            worst=tuple(self._worst),
        )


def _others(bundle: Bundle) -> Sequence[Entry]:
    """Entries whose graph is not the reference's, each graph once."""
    seen = {bundle.manifest.entry(*REFERENCE).graph}
    chosen = []
    for entry in bundle.manifest.entries:
        if entry.graph not in seen:
            seen.add(entry.graph)
            chosen.append(entry)
    return chosen


def _edges(margin: NDArray[np.float32]) -> NDArray[np.float64]:
    """Lower edges of the bins: even up to the 95th percentile of the first frame's margin."""
    top = float(np.percentile(margin, 95))
    return np.linspace(0.0, top if top > 0 else 1.0, BINS)
