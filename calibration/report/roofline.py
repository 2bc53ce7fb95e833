"""The roofline of a bundle: a lower bound on latency, layer by layer.

A layer takes at least as long as its operations need at the device's peak, and at least as long
as its bytes need at the device's bandwidth (Williams, Waterman and Patterson, Roofline: An
Insightful Visual Performance Model, CACM 52(4), 2009). It is a bound, never a prediction: real
kernels reach neither peak.

Counted are convolutions and matrix products: two operations a multiply-accumulate; weights once,
activations in and out, each at the width of the layer's precision. What compilers fuse into their
neighbours (ReLU, additions, resizing, argmax, conversions) counts nothing, nor do biases.
Convolutions count as direct ones; Winograd's need fewer multiplications in floating point, and
could go below their part of the bound.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import onnx

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.precisions import (
    FLOAT,
    ONNXRUNTIME,
    PRECISIONS,
    REFERENCE,
    TENSORRT,
    WIDTHS,
    variant,
)
from aeseg_edge.calibration.graphs.int8 import float_convolutions
from aeseg_edge.calibration.graphs.layers import Layer, layers_of
from aeseg_edge.calibration.report.devices import Device
from aeseg_edge.errors import UsageError


@dataclass(frozen=True)
class LayerBound:
    """The bound on one layer: its operations at the device's peak, its bytes at its bandwidth.

    ``precision`` is the one it runs in; not every layer of an int8 graph runs in int8.
    """

    layer: Layer
    precision: str
    operations_ms: float
    bytes_ms: float

    @property
    def milliseconds(self) -> float:
        """The larger of the two."""
        return max(self.operations_ms, self.bytes_ms)

    @property
    def limit(self) -> str:
        """What binds: ``operations`` or ``bytes``."""
        return "operations" if self.operations_ms >= self.bytes_ms else "bytes"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            **asdict(self.layer),
            "precision": self.precision,
            "bytes": self.layer.bytes_at(self.precision),
            "operations_ms": self.operations_ms,
            "bytes_ms": self.bytes_ms,
            "bound_ms": self.milliseconds,
            "limit": self.limit,
        }


@dataclass(frozen=True)
class Roofline:
    """Bounds on all layers of one graph on one device, in graph order."""

    device: Device
    precision: str
    layers: tuple[LayerBound, ...]

    def milliseconds(self, part: str | None = None) -> float:
        """Bound where every layer's activations pass through memory: the sum over layers."""
        return sum(each.milliseconds for each in self._of(part))

    def fused_milliseconds(self, part: str | None = None) -> float:
        """Bound where nothing but weights and the frame passes: all else stays in caches.

        Weaker, and holds for any implementation, however it fuses.
        """
        chosen = self._of(part)
        operations = sum(each.operations_ms for each in chosen)
        once = sum(
            each.layer.weights * WIDTHS[each.precision]
            + (each.layer.inputs if each.layer.reads_frame else 0)
            for each in chosen
        )
        return max(operations, 1e3 * once / self.device.bandwidth)

    def operations(self, part: str | None = None) -> int:
        """Operations of one frame."""
        return sum(each.layer.operations for each in self._of(part))

    def bytes(self, part: str | None = None) -> int:
        """Bytes of one frame, where every layer's activations pass through memory."""
        return sum(each.layer.bytes_at(each.precision) for each in self._of(part))

    def _of(self, part: str | None) -> list[LayerBound]:
        return [each for each in self.layers if part in (None, each.layer.part)]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        parts = {"total": None, "encoder": "encoder", "head": "head"}
        return {
            "device": asdict(self.device),
            "precision": self.precision,
            "what": "a lower bound on latency, not a prediction",
            **{
                title: {
                    "operations": self.operations(part),
                    "bytes": self.bytes(part),
                    "bound_ms": self.milliseconds(part),
                    "bound_fused_ms": self.fused_milliseconds(part),
                }
                for title, part in parts.items()
            },
            "layers": [each.to_json() for each in self.layers],
        }


def roofline(bundle: Bundle, device: Device, precision: str) -> Roofline:
    """Bound the latency of one of a bundle's graphs on a device; for a size see ``with_size``.

    The graph is the one made for the device: for TensorRT, or for ONNX Runtime where the device
    is ``cpu``. A convolution that it does not quantise (the projection, and what was excluded)
    counts at the precision it then has; the head counts as float32.

    Raises:
        UsageError: If the device has no such precision.
        BundleError: If the bundle has no such graph.
        ExportError: If a shape of the graph cannot be found.
    """
    if precision not in device.operations:
        raise UsageError(
            f"{device.name} has no {precision} figures",
            fix=f"Use one of {', '.join(device.operations)}.",
        )
    backend = _backend(device)
    made = onnx.load_from_string(bundle.graph(precision, backend))
    beside = variant(precision, backend).beside
    floats = set(float_convolutions(made)) if beside else set()
    # The fp32 graph has the same layers and none of the conversions.
    plain = onnx.load_from_string(bundle.graph(*REFERENCE))
    bounds = []
    for layer in layers_of(plain, bundle.manifest.spec, bundle.codebook.clusters):
        runs = precision if layer.name not in floats else beside
        if layer.part == "head":
            runs = FLOAT
        bounds.append(
            LayerBound(
                layer,
                runs,
                1e3 * layer.operations / device.operations[runs],
                1e3 * layer.bytes_at(runs) / device.bandwidth,
            )
        )
    return Roofline(device, precision, tuple(bounds))


def _backend(device: Device) -> str:
    return ONNXRUNTIME if device.name == "cpu" else TENSORRT


def rooflines(bundle: Bundle, device: Device) -> list[Roofline]:
    """Bound every precision that both the device and the bundle have, fp32 first."""
    backend = _backend(device)
    has = {entry.precision for entry in bundle.manifest.entries if entry.backend == backend}
    return [
        roofline(bundle, device, precision)
        for precision in PRECISIONS
        if precision in has and precision in device.operations
    ]
