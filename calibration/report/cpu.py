"""What one thread of this CPU can do at most, measured; and how much of it an encoder reaches.

Peaks are the best of several shapes and of many repetitions: a bound must rest on what the
processor can do, not on what it did while something else ran. Operations are measured as matrix
products through ONNX Runtime, the same library that runs the bundle; bytes as numpy's copy, once
within the cache and once far beyond it. The activations of these networks fit into the caches, so
the bound uses the faster of the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from aeseg_edge.backends.session import load_onnxruntime, open_session
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.precisions import FLOAT, INT8, ONNXRUNTIME
from aeseg_edge.calibration.graphs.deployed import OPSET
from aeseg_edge.calibration.report.devices import Device
from aeseg_edge.calibration.report.roofline import Roofline, roofline
from aeseg_edge.measure.profile import node_times, run_profiled
from aeseg_edge.support.progress import Tick

PRODUCTS = (
    (256, 256, 256),
    (512, 512, 512),
    (1024, 1024, 1024),
    (384, 4096, 384),
    (512, 2304, 256),
)
"""Rows, inner size and columns of the products that are tried: small ones stay in the cache
nearest to the core, deep ones write little, and 2304 = 256 x 9 is a 3x3 convolution's."""

CACHED_COPIES = (1 << 17, 1 << 18, 1 << 19)
"""Bytes that are copied within the cache: twice as much is touched."""

LARGEST_COPY = 1 << 29
"""Bytes. Where the last-level cache is larger than what this touches, the report says so."""

SECONDS = 0.3
"""For each shape and each size: the best repetition counts."""

RUNS = 60
"""Frames of the profile."""


@dataclass(frozen=True)
class CpuPeaks:
    """What one thread can do at most.

    Attributes:
        int8: Operations a second (two a multiply-accumulate), uint8 x int8 -> int32.
        fp32: The same in float32.
        int8_shape: Rows, inner size and columns of the best product.
        fp32_shape: The same in float32.
        cached: Bytes a second, read plus written, within the cache.
        memory: The same far beyond the last-level cache.
        copied: Bytes of the large copy; twice as much is touched.
        last_level: Bytes of the last-level cache as the system tells; None where it does not.
        runtime: Version of ONNX Runtime.
    """

    int8: float
    fp32: float
    int8_shape: tuple[int, int, int]
    fp32_shape: tuple[int, int, int]
    cached: float
    memory: float
    copied: int
    last_level: int | None
    runtime: str

    @property
    def beyond_cache(self) -> bool | None:
        """Whether the large copy touched more than the last-level cache; None if not known."""
        return None if self.last_level is None else 2 * self.copied > self.last_level

    def device(self) -> Device:
        """Give the peaks as a device for ``roofline``."""
        return Device(
            "cpu",
            "this CPU, one thread",
            {INT8: self.int8, FLOAT: self.fp32},
            max(self.cached, self.memory),
            f"measured here: matrix products through ONNX Runtime {self.runtime}, copies by numpy",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {**asdict(self), "beyond_cache": self.beyond_cache}


@dataclass(frozen=True)
class CpuShare:
    """How much of the bound the encoder of the CPU's int8 graph reaches.

    Attributes:
        bound_ms: Of the encoder, layer by layer.
        measured_ms: Of the encoder, by ONNX Runtime's profile: median over frames.
        fastest_ms: Of the fastest frame: where other programs run, peaks (the best of many
            repetitions) are comparable with this alone.
        head_ms: Of the head, by the same profile.
        peaks: What the bound rests on.
        layers_ms: Median time of every node of the profile, by its name, in order.
    """

    bound_ms: float
    measured_ms: float
    fastest_ms: float
    head_ms: float
    peaks: CpuPeaks
    layers_ms: tuple[tuple[str, float], ...]

    @property
    def share(self) -> float:
        """Bound over measured, 0..1."""
        return self.bound_ms / self.measured_ms

    @property
    def fastest_share(self) -> float:
        """Bound over the fastest frame, 0..1."""
        return self.bound_ms / self.fastest_ms

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {
            "bound_ms": self.bound_ms,
            "measured_ms": self.measured_ms,
            "head_ms": self.head_ms,
            "share": self.share,
            "fastest_ms": self.fastest_ms,
            "fastest_share": self.fastest_share,
            "nodes_ms": [list(each) for each in self.layers_ms],
        }


def cpu_share(bundle: Bundle, *, peaks: CpuPeaks | None = None, runs: int = RUNS) -> CpuShare:
    """Set the encoder's time on this CPU, one thread, against its int8 bound.

    Measures the peaks now when None. Raises BundleError if the bundle has no int8 graph for
    ONNX Runtime, and BackendError if ONNX Runtime's profile cannot be read.
    """
    graph = bundle.graph(INT8, ONNXRUNTIME)
    found = measure_peaks() if peaks is None else peaks
    bound: Roofline = roofline(bundle, found.device(), INT8)
    spec = bundle.manifest.spec
    frame = np.random.default_rng(0).integers(0, 256, spec.frame_shape, dtype=np.uint8)
    warm = max(1, runs // 10)
    events, head = run_profiled(graph, spec, bundle.codebook, frame, threads=1, runs=warm + runs)
    times, _ = node_times(events, warm)
    encoder, rest = encoder_times(times, head)
    return CpuShare(
        bound_ms=bound.milliseconds("encoder"),
        measured_ms=float(np.median(encoder)),
        fastest_ms=float(encoder.min()),
        head_ms=float(np.median(rest)),
        peaks=found,
        layers_ms=tuple((name, float(np.median(spent))) for (name, _), spent in times.items()),
    )


def measure_peaks(*, seconds: float = SECONDS, progress: Tick | None = None) -> CpuPeaks:
    """Measure what one thread of this CPU can do at most, ``seconds`` for each shape and size."""
    tell = progress or (lambda fraction: None)
    total = 2 * len(PRODUCTS) + len(CACHED_COPIES) + 1
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        tell(done / total)

    best: dict[str, tuple[float, tuple[int, int, int]]] = {}
    for precision in (INT8, FLOAT):
        for shape in PRODUCTS:
            run = _product(shape, precision)
            rate = 2 * shape[0] * shape[1] * shape[2] / _fastest(run, seconds)
            best[precision] = max(best.get(precision, (0.0, shape)), (rate, shape))
            step()
    cached = 0.0
    for size in CACHED_COPIES:
        cached = max(cached, _copy(size, seconds))
        step()
    last = last_level_cache()
    large = min(LARGEST_COPY, max(1 << 26, last or 0))
    memory = _copy(large, seconds)
    step()
    return CpuPeaks(
        int8=best[INT8][0],
        fp32=best[FLOAT][0],
        int8_shape=best[INT8][1],
        fp32_shape=best[FLOAT][1],
        cached=cached,
        memory=memory,
        copied=large,
        last_level=last,
        runtime=load_onnxruntime(extra="calibrate").__version__,
    )


def encoder_times(
    times: Mapping[tuple[str, str], NDArray[np.float64]], head: set[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add up nodes (``node_times``) run by run: float64 [runs] of the encoder, of the head."""
    zero = np.zeros(len(next(iter(times.values()))))
    encoder = sum((spent for (name, _), spent in times.items() if name not in head), zero)
    return encoder, sum((spent for (name, _), spent in times.items() if name in head), zero)


def last_level_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Give the size of the last-level cache in bytes, as Linux tells it; None elsewhere."""
    sizes = []
    for path in sorted(folder.glob("index*/size")):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 0)
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes, default=None)


def _product(shape: tuple[int, int, int], precision: str) -> Callable[[], Any]:
    """Make a matrix product with a constant second factor, as a convolution's weights are."""
    rows, inner, columns = shape
    random = np.random.default_rng(0)
    first: NDArray[Any]
    second: NDArray[Any]
    if precision == INT8:
        first = random.integers(0, 256, (rows, inner), dtype=np.uint8)
        second = random.integers(-127, 128, (inner, columns), dtype=np.int8)
        kind, takes, gives = "MatMulInteger", TensorProto.UINT8, TensorProto.INT32
    else:
        first = random.normal(size=(rows, inner)).astype(np.float32)
        second = random.normal(size=(inner, columns)).astype(np.float32)
        kind, takes, gives = "MatMul", TensorProto.FLOAT, TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(kind, ["first", "second"], ["product"])],
        "product",
        [helper.make_tensor_value_info("first", takes, [rows, inner])],
        [helper.make_tensor_value_info("product", gives, [rows, columns])],
        [numpy_helper.from_array(second, "second")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    session = open_session(model.SerializeToString(), threads=1, extra="calibrate")
    return lambda: session.run(None, {"first": first})


def _copy(size: int, seconds: float) -> float:
    """Bytes a second of a copy, read plus written."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return 2 * size / _fastest(lambda: np.copyto(target, source), seconds)


def _fastest(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest repetition, three at least."""
    best, count = float("inf"), 0
    until = time.perf_counter() + seconds
    while count < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
        count += 1
    return best
