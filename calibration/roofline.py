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

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from aeseg_edge.backends.base import GraphSpec
from aeseg_edge.bundle import Bundle
from aeseg_edge.errors import ExportError, UsageError
from aeseg_edge.manifest import PRECISIONS

from .graph import FRAME
from .ranges import float_convolutions

WIDTHS = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of one value."""

HEAD = "head/"
"""What the names of the head's nodes begin with."""

_MODULES = "NVIDIA Jetson Orin Nano Series Data Sheet, DS-11105-001 v1.1 (April 26, 2023)"
_SUPER = (
    "NVIDIA, Jetson Orin Nano Developer Kit Gets a 'Super' Boost (December 2024): 33 TOPS dense, "
    "17 FP16 TFLOPs, 1,020 MHz, 102 GB/s"
)
_AGX = "NVIDIA Jetson AGX Orin Series Modules Data Sheet, DS-10662-001 v1.6 (December 5, 2024)"


@dataclass(frozen=True)
class Device:
    """What a device can do at most.

    Attributes:
        name: As ``--device`` has it.
        title: For people.
        operations: Peak operations a second (two a multiply-accumulate) by precision, dense.
        bandwidth: Peak bytes a second to and from memory.
        source: Where the figures are from.
    """

    name: str
    title: str
    operations: Mapping[str, float]
    bandwidth: float
    source: str


DEVICES = {
    each.name: each
    for each in (
        Device(
            "orin-nano",
            "Jetson Orin Nano 8GB, GPU at 625 MHz",
            # fp16 at half of int8, as NVIDIA's table for the developer kit has it (10 TFLOPs);
            # fp32 on 1024 CUDA cores, 2 operations a clock: TF32 is off in these engines.
            {"int8": 20e12, "fp16": 10e12, "fp32": 1024 * 2 * 625e6},
            # 128 bits at 2133 MHz, two transfers a clock.
            128 / 8 * 2 * 2133e6,
            f"{_MODULES}: 20 (dense) INT8 TOPs, 1024 CUDA cores at up to 625 MHz, 128-bit LPDDR5 "
            "at up to 2133 MHz; fp16 as in NVIDIA's table for the developer kit, 10 TFLOPs",
        ),
        Device(
            "orin-nano-super",
            "Jetson Orin Nano 8GB in MAXN SUPER, GPU at 1020 MHz",
            {"int8": 33e12, "fp16": 17e12, "fp32": 1024 * 2 * 1020e6},
            102e9,
            _SUPER,
        ),
        Device(
            "agx-orin",
            "Jetson AGX Orin 64GB, GPU at 1.3 GHz (without its DLA cores)",
            # The sheet states sparse figures; sparsity doubles throughput.
            {"int8": 170e12 / 2, "fp16": 85e12 / 2, "fp32": 5.32e12},
            204.8e9,
            f"{_AGX}, tables 1-2 and 1-3: 170 INT8 sparse TOPS and 85 FP16 sparse TFLOPS (Tensor "
            "Cores), halved for dense; 5.32 FP32 TFLOPS (CUDA cores); 204.8 GB/s",
        ),
    )
}


@dataclass(frozen=True)
class Layer:
    """What one layer costs, whatever runs it.

    Attributes:
        name: Of its node.
        kind: ``Conv``, ``ConvTranspose``, ``MatMul`` or ``Gemm``.
        part: ``encoder`` or ``head``.
        operations: Two a multiply-accumulate.
        weights: Values.
        inputs: Values of its activations that are read.
        outputs: Values that are written.
        reads_frame: Whether it reads the camera's bytes: one byte a value in any precision.
    """

    name: str
    kind: str
    part: str
    operations: int
    weights: int
    inputs: int
    outputs: int
    reads_frame: bool = False

    def bytes_at(self, precision: str) -> int:
        """Bytes read and written where all values have the width of ``precision``."""
        width = WIDTHS[precision]
        return self.inputs * (1 if self.reads_frame else width) + width * (
            self.weights + self.outputs
        )


@dataclass(frozen=True)
class LayerBound:
    """The bound on one layer.

    Attributes:
        layer: Its costs.
        precision: It runs in; not every layer of an int8 graph runs in int8.
        operations_ms: Its operations at the device's peak.
        bytes_ms: Its bytes at the device's bandwidth.
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
    """Bounds on all layers of one graph on one device.

    Attributes:
        device: Its peaks.
        precision: Of the graph.
        layers: In graph order.
    """

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
    """Bound the latency of one of a bundle's graphs on a device.

    The graph is the one made for the device: for TensorRT, or for ONNX Runtime where the device
    is ``cpu``. A convolution that it does not quantise (the projection, and what was excluded)
    counts at the precision it then has; the head counts as float32.

    Args:
        bundle: At the size to bound; see ``Bundle.with_size``.
        device: Its peaks.
        precision: ``fp32``, ``fp16`` or ``int8``.

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
    backend = "onnxruntime" if device.name == "cpu" else "tensorrt"
    made = onnx.load_from_string(bundle.graph(precision, backend))
    floats = set(float_convolutions(made)) if precision == "int8" else set()
    beside = "fp32" if backend == "onnxruntime" else "fp16"
    # The fp32 graph has the same layers and none of the conversions.
    plain = onnx.load_from_string(bundle.graph("fp32", "onnxruntime"))
    bounds = []
    for layer in layers_of(plain, bundle.manifest.spec, bundle.codebook.clusters):
        runs = precision if layer.name not in floats else beside
        if layer.part == "head":
            runs = "fp32"
        bounds.append(
            LayerBound(
                layer,
                runs,
                1e3 * layer.operations / device.operations[runs],
                1e3 * layer.bytes_at(runs) / device.bandwidth,
            )
        )
    return Roofline(device, precision, tuple(bounds))


def rooflines(bundle: Bundle, device: Device) -> list[Roofline]:
    """Bound every precision that both the device and the bundle have, fp32 first."""
    backend = "onnxruntime" if device.name == "cpu" else "tensorrt"
    has = {entry.precision for entry in bundle.manifest.entries if entry.backend == backend}
    return [
        roofline(bundle, device, precision)
        for precision in PRECISIONS
        if precision in has and precision in device.operations
    ]


def layers_of(model: onnx.ModelProto, spec: GraphSpec, clusters: int) -> list[Layer]:
    """Count operations and values of every convolution and matrix product.

    Args:
        model: A deployed graph in float32.
        spec: Sizes that are symbolic in it.
        clusters: Rows of the codebook.

    Returns:
        In graph order.

    Raises:
        ExportError: If a shape cannot be found.
    """
    graph = _with_sizes(model, spec, clusters).graph
    shapes = {item.name: [int(dim) for dim in item.dims] for item in graph.initializer}
    constant = set(shapes)
    for item in (*graph.input, *graph.output, *graph.value_info):
        dims = item.type.tensor_type.shape.dim
        if item.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[item.name] = [d.dim_value for d in dims]
    codebook = {"weights"}
    cameras = _untouched(graph)

    def count(name: str) -> int:
        if name not in shapes:
            raise ExportError(
                f"the shape of {name} cannot be found",
                fix="Export the model again with this version of aeseg_edge.",
            )
        return math.prod(shapes[name])

    layers = []
    for node in graph.node:
        if node.op_type not in _MACS:
            continue
        for name in (*node.input[:2], node.output[0]):
            count(name)
        fixed = [name for name in node.input[:2] if name in constant | codebook]
        moving = [name for name in node.input[:2] if name not in fixed]
        layers.append(
            Layer(
                name=node.name,
                kind=node.op_type,
                part="head" if node.name.startswith(HEAD) else "encoder",
                operations=2 * _macs(node, shapes),
                weights=sum(count(name) for name in fixed),
                inputs=sum(count(name) for name in moving),
                outputs=count(node.output[0]),
                reads_frame=any(name in cameras for name in moving),
            )
        )
    return layers


_MACS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> int:
    first, second, out = (shapes[name] for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        # Weights [M, C / groups, kernel...]: one product each for every output value.
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    turned = any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(out) * first[-2 if turned else -1]


def _untouched(graph: onnx.GraphProto) -> set[str]:
    """Tensors that are the camera's bytes, but for type, order and one scale and shift."""
    found = {FRAME}
    for node in graph.node:
        if node.op_type in ("Cast", "Transpose", "Add", "Sub", "Mul", "Div"):
            moving = [name for name in node.input if name in found]
            if moving:
                found.update(node.output)
    return found


def _with_sizes(model: onnx.ModelProto, spec: GraphSpec, clusters: int) -> onnx.ModelProto:
    """Give every symbolic dimension its size, and infer all shapes."""
    _, rows, columns = spec.latent_shape
    label_rows, label_columns = spec.label_shape
    sizes = {
        "height": spec.height,
        "width": spec.width,
        "clusters": clusters,
        "latent_height": rows,
        "latent_width": columns,
        "label_height": label_rows,
        "label_width": label_columns,
    }
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for item in (*fixed.graph.input, *fixed.graph.output):
        for dim in item.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
