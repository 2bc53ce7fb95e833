"""How much each int8 convolution costs in agreement, and which are worth leaving out.

Measured is the agreement of labels with fp32 when all but one convolution are quantised. That is
the graph that leaving this one out would deploy, so it answers what leaving it out buys, effects
on the others included, at one pass over the frames a layer. (Quantising one alone costs the same,
and adds up only where errors are independent.)

No ranges are fitted again: a convolution is put back into the quantised graph itself (see
``exclusion.restored``).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.precisions import INT8, ONNXRUNTIME, REFERENCE, WIDTHS, variant
from aeseg_edge.calibration.graphs.exclude import quantised_convolutions, restored
from aeseg_edge.calibration.graphs.layers import layers_of
from aeseg_edge.calibration.score.agreement import Agreement, measure_agreement, open_graph
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.evenly import evenly
from aeseg_edge.support.progress import Tick

FRAMES = 12
"""Frames that sensitivity is measured on, evenly over those given."""

MOST_EXCLUDED = 0.25
"""Of the encoder's operations: what ``auto`` leaves out at most. Int8 is there to be fast."""


Frames = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class LayerSensitivity:
    """What leaving one convolution out of int8 does.

    Attributes:
        name: Of its node.
        labels_equal: Agreement of the labels with fp32 without it in int8, 0..1.
        gain: By how much that is above the agreement of the whole int8 graph.
        operations: Share of the encoder's operations, 0..1.
        more_bytes: By how much its weights grow in a runtime: to float32 on a CPU, to float16
            with TensorRT.
        milliseconds: Median inference of that graph here, on ONNX Runtime.
    """

    name: str
    labels_equal: float
    gain: float
    operations: float
    more_bytes: int
    milliseconds: float


@dataclass(frozen=True)
class Sensitivity:
    """Every quantised convolution of one int8 graph, in graph order.

    ``labels_equal`` and ``milliseconds`` (median inference here, on ONNX Runtime) are those of
    the whole int8 graph.
    """

    backend: str
    labels_equal: float
    milliseconds: float
    frames: int
    layers: tuple[LayerSensitivity, ...]

    def ranked(self) -> list[LayerSensitivity]:
        """What buys most comes first."""
        return sorted(self.layers, key=lambda layer: -layer.gain)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Exclusion:
    """Which convolutions of one int8 graph stay in floating point, and why.

    Attributes:
        names: Of their nodes.
        before: Agreement with all in int8.
        after: Agreement without these.
        target: Agreement that was wanted.
        operations: Share of the encoder's operations that they have.
        frames: It was measured on.
        why: For people.
    """

    names: tuple[str, ...]
    before: float
    after: float
    target: float
    operations: float
    frames: int
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        shares = ("before", "after", "target", "operations")
        rounded = {key: round(getattr(self, key), 6) for key in shares}
        return {**asdict(self), "names": list(self.names), **rounded}


def measure_sensitivity(
    bundle: Bundle,
    frames: Frames,
    *,
    backend: str = ONNXRUNTIME,
    threads: int | None = None,
    most: int = FRAMES,
    progress: Tick | None = None,
) -> Sensitivity:
    """Measure what leaving out each int8 convolution buys, one at a time; the codebook decides.

    TensorRT's graph is emulated on ONNX Runtime; at most ``most`` frames are looked at.

    Raises:
        CalibrationError: If there are no frames, or nothing is quantised.
        BundleError: If the bundle has no such graph.
    """
    return _Bench(bundle, frames, backend, threads, most).sensitivity(progress)


def choose_exclusion(
    bundle: Bundle,
    frames: Frames,
    target: float,
    *,
    backend: str = ONNXRUNTIME,
    threads: int | None = None,
    most: int = FRAMES,
    limit: float = MOST_EXCLUDED,
    progress: Tick | None = None,
) -> Exclusion:
    """Leave out the convolutions that buy most agreement, until a target (0..1) is met.

    Layers are ranked once by what each buys alone, and left out in that order as long as the
    agreement rises and no more than ``limit`` of the encoder's operations are in floating point.
    Where the target cannot be met within it, the best that was found is kept. The frames must
    not be those that the gate is measured on. CalibrationError if there are none.
    """
    tell = progress or (lambda fraction: None)
    bench = _Bench(bundle, frames, backend, threads, most)
    before = bench.whole.labels_equal

    def chosen(names: Sequence[str], after: float, why: str) -> Exclusion:
        share = sum(bench.operations[name] for name in names)
        return Exclusion(tuple(names), before, after, target, share, bench.frames, why)

    if before >= target:
        tell(1.0)
        return chosen((), before, f"{_percent(before)} meets {_percent(target)} as it is")
    found = bench.sensitivity(lambda fraction: tell(0.8 * fraction))
    names: list[str] = []
    best, spent, skipped = before, 0.0, False
    for step, layer in enumerate(found.ranked()):
        if best >= target or layer.gain <= 0:
            break
        if spent + layer.operations > limit:
            skipped = True
            continue
        tell(0.8 + 0.2 * step / len(found.layers))
        after = layer.labels_equal if not names else bench.run((*names, layer.name)).labels_equal
        if after > best:
            names.append(layer.name)
            best, spent = after, spent + layer.operations
    tell(1.0)
    if best >= target:
        return chosen(names, best, f"until {_percent(target)} was met")
    reason = (
        f"what else would help is more than {100 * limit:.0f} % of the encoder's operations"
        if skipped
        else "nothing else raises the agreement"
    )
    return chosen(names, best, f"{_percent(target)} is not met: {reason}")


def exclude_layers(
    bundle: Bundle,
    frames: Frames,
    target: float,
    *,
    stated: float | None = None,
    threads: int | None = None,
    progress: Tick | None = None,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Leave convolutions out of both int8 graphs where their agreement misses a target.

    ``bundle`` is freshly calibrated, all in int8; ``stated`` is the target where it is one of
    its own and not the gate: kept for calibrating again. Returns all graphs by member path, and
    what the manifest's record says of what was left out. CalibrationError if there are no frames.
    """
    tell = progress or (lambda fraction: None)
    graphs = bundle.graphs
    plain = onnx.load_from_string(bundle.graph(*REFERENCE))
    record: dict[str, Any] = {"asked": "auto"}
    if stated is not None:
        record["target"] = stated
    entries = [e for e in bundle.manifest.entries if e.precision == INT8]
    for index, entry in enumerate(entries):
        done, of = index, len(entries)

        def part(fraction: float, done: int = done, of: int = of) -> None:
            tell((done + fraction) / of)

        found = choose_exclusion(
            bundle, frames, target, backend=entry.backend, threads=threads, progress=part
        )
        record[entry.backend] = found.to_json()
        if found.names:
            model = onnx.load_from_string(graphs[entry.graph])
            graphs[entry.graph] = restored(model, plain, found.names).SerializeToString()
    return graphs, record


class _Bench:
    """One int8 graph, its frames, and the labels that fp32 gives them."""

    def __init__(
        self, bundle: Bundle, frames: Frames, backend: str, threads: int | None, most: int
    ) -> None:
        if not len(frames):
            raise CalibrationError(
                "there are no frames to measure sensitivity on", fix="Give some footage."
            )
        self._shown = [frames[i] for i in evenly(len(frames), most)]
        self.frames = len(self._shown)
        self._bundle, self._backend, self._threads = bundle, backend, threads
        self._ids = [item.id for item in bundle.codebook.classes]
        self._model = onnx.load_from_string(bundle.graph(INT8, backend))
        self._plain = onnx.load_from_string(bundle.graph(*REFERENCE))
        self.names = quantised_convolutions(self._model)
        if not self.names:
            raise CalibrationError(
                f"the int8 graph for {backend} has no int8 convolution",
                fix="Calibrate again with --int8-exclude none.",
            )
        layers = layers_of(self._plain, bundle.manifest.spec, bundle.codebook.clusters)
        total = sum(each.operations for each in layers if each.part == "encoder")
        self.operations = {each.name: each.operations / total for each in layers}
        wider = WIDTHS[variant(INT8, backend).beside] - WIDTHS[INT8]
        self._more_bytes = {each.name: each.weights * wider for each in layers}
        self._expected = [labels for labels, _ in self._labels(bundle.graph(*REFERENCE), REFERENCE)]
        self.whole_ms = 0.0
        self.whole = self.run(())
        self.whole_ms = self.last_ms

    def run(self, names: Sequence[str]) -> Agreement:
        """Measure the agreement without some convolutions in int8."""
        changed = restored(self._model, self._plain, names) if names else self._model
        spent: list[float] = []
        found = self._labels(changed.SerializeToString(), (INT8, self._backend))
        expected = iter(self._expected)

        def candidate(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
            labels, milliseconds = next(found)
            spent.append(milliseconds)
            return labels

        made = measure_agreement(
            lambda frame: next(expected), {"": candidate}, self._shown, self._ids
        )[""]
        self.last_ms = statistics.median(spent)
        return made

    def sensitivity(self, progress: Tick | None) -> Sensitivity:
        """Leave out each convolution in turn."""
        layers = []
        for index, name in enumerate(self.names):
            agreement = self.run((name,)).labels_equal
            layers.append(
                LayerSensitivity(
                    name=name,
                    labels_equal=agreement,
                    gain=agreement - self.whole.labels_equal,
                    operations=self.operations[name],
                    more_bytes=self._more_bytes[name],
                    milliseconds=self.last_ms,
                )
            )
            if progress is not None:
                progress((index + 1) / len(self.names))
        return Sensitivity(
            self._backend, self.whole.labels_equal, self.whole_ms, self.frames, tuple(layers)
        )

    def _labels(
        self, graph: bytes, key: tuple[str, str]
    ) -> Iterator[tuple[NDArray[np.uint8], float]]:
        """Yield the labels of every frame, and the milliseconds of inference."""
        with open_graph(self._bundle, key, graph=graph, threads=self._threads) as segmenter:
            for frame in self._shown:
                result = segmenter(frame)
                yield result.labels, result.milliseconds["inference"]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
