"""The layers of a graph and what each costs: operations and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from aeseg_edge.bundle.contract import FRAME, HEAD, WEIGHTS, GraphSpec
from aeseg_edge.bundle.precisions import WIDTHS
from aeseg_edge.errors import ExportError


@dataclass(frozen=True)
class Layer:
    """What one layer costs, whatever runs it: operations are two a multiply-accumulate.

    ``part`` is ``encoder`` or ``head``; weights, inputs and outputs count values; a layer that
    reads the camera's bytes reads one byte a value in any precision.
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


def layers_of(model: onnx.ModelProto, spec: GraphSpec, clusters: int) -> list[Layer]:
    """Count operations and values of every convolution and matrix product of a float32 graph.

    In graph order; ``spec`` and ``clusters`` are sizes that are symbolic in it. ExportError if a
    shape cannot be found.
    """
    graph = _with_sizes(model, spec, clusters).graph
    shapes = {item.name: [int(dim) for dim in item.dims] for item in graph.initializer}
    constant = set(shapes)
    for item in (*graph.input, *graph.output, *graph.value_info):
        dims = item.type.tensor_type.shape.dim
        if item.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[item.name] = [d.dim_value for d in dims]
    codebook = {WEIGHTS}
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
    sizes = {**spec.sizes, "clusters": clusters}
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for item in (*fixed.graph.input, *fixed.graph.output):
        for dim in item.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
