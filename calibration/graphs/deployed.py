"""The deployed graph as ONNX: encoder plus head, and the surgery between the two.

The trainer exports one encoder in float32 (``frame`` -> ``encoded``). Everything else is
made from it here, without torch: centring, the fp16 encoder, and the head that smooths,
scores, upsamples and assigns. ``int8.py`` makes the two int8 encoders.

The head's contract (names, shapes, dtypes) is in bundle/contract.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from aeseg_edge.bundle.contract import (
    ENCODED,
    EXTRAS,
    FRAME,
    HEAD,
    INPUTS,
    LATENTS,
    NORMALISED,
    OUTPUTS,
    GraphSpec,
)
from aeseg_edge.bundle.precisions import Layout
from aeseg_edge.calibration.graphs.head import BRANCH, Head, Projection
from aeseg_edge.errors import ExportError

OPSET = 19
"""INT8 scales of type float16 need 19; TensorRT 10.3 reads up to 20."""

IR_VERSION = 9
"""The IR version that came with opset 19: old ONNX Runtimes read it."""

_FIX = "Export the model again with this version of aeseg_edge."


def attach_head(
    encoder: onnx.ModelProto,
    spec: GraphSpec,
    *,
    gate: float | None = None,
    layout: Layout = "any",
) -> onnx.ModelProto:
    """Put the head behind an encoder (``frame`` uint8 [1, H, W, C] -> ``encoded`` float32).

    ``latents = encoded + weight * (previous - encoded)``, with ``weight = mix`` or, gated, ``mix *
    exp(-d^2 / gate^2)``, d the channel's own ``previous - encoded`` at that place: a Gaussian range
    kernel in latent space, as a bilateral filter has one in colour (Tomasi and Manduchi, ICCV
    1998). What moves changes its latents by much more than noise does, and passes: no channel is
    ever off by more than 0.43 gate. Then scores ``W [z, z^2] + b``, or ``W z + b`` for a codebook
    without squares, at stride r; bilinear half-pixel upsampling to stride s (ONNX Resize-19);
    argmax.

    H, W and K stay symbolic (``height``, ``width``, ``clusters``); a backend fixes H and W. Every
    runtime runs all three layouts. On a CPU scores of one place lie side by side (channels last),
    which ONNX Runtime resizes and compares twice as fast. ``cpu`` has one more input, ``extras``
    (bool [1]): where it is false, nothing is smoothed, whatever ``mix`` is, latents and margin are
    empty, and, without squares, the encoder's last layer is multiplied with the codebook instead of
    run. ExportError if the encoder has other inputs or outputs, or the strides do not divide.
    """
    _expect(encoder, [FRAME], [ENCODED])
    if spec.stride % spec.output_stride:
        raise ExportError(
            f"output stride {spec.output_stride} does not divide the encoder's {spec.stride}",
            fix="Use 1, 2, 4 or the encoder's own stride.",
        )
    if gate is not None and not 0 < gate < float("inf"):
        raise ExportError(
            f"a gate of width {gate} is not above 0", fix="Calibrate on frames that differ."
        )
    model = onnx.ModelProto()
    model.CopyFrom(encoder)
    graph = model.graph
    folds = layout == "cpu" and not spec.squares
    head = Head(spec, gate, layout, _take_projection(model) if folds else None)
    head.build()
    graph.node.extend(head.nodes)
    graph.initializer.extend(head.constants)
    del graph.input[:]
    del graph.output[:]
    del graph.value_info[:]
    asks = (EXTRAS,) if layout == "cpu" else ()
    graph.input.extend(_tensor(spec, name) for name in (*INPUTS, *asks))
    graph.output.extend(_tensor(spec, name) for name in OUTPUTS)
    return finish(model)


def _tensor(spec: GraphSpec, name: str) -> onnx.ValueInfoProto:
    dtype, shape = spec.written(name)
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
    )


def _take_projection(model: onnx.ModelProto) -> Projection | None:
    """Take the last layer out of an encoder; None, and nothing done, where it is not linear."""
    node = _producer(model, ENCODED)
    weights = {item.name: item for item in model.graph.initializer}
    if node.op_type != "Conv" or len(node.input) != 3 or not set(node.input[1:]) <= set(weights):
        return None
    weight, bias = (numpy_helper.to_array(weights[name]) for name in node.input[1:])
    if weight.shape[2:] != (1, 1) or weight.dtype != np.float32 or bias.dtype != np.float32:
        return None
    taken = onnx.NodeProto.FromString(node.SerializeToString())
    model.graph.node.remove(node)
    return Projection(taken, weight[:, :, 0, 0], bias)


def detach_head(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give back the encoder that ``attach_head`` was given; ExportError of no deployed graph."""
    asks = any(item.name == EXTRAS for item in model.graph.input)
    inputs = [*INPUTS, EXTRAS] if asks else list(INPUTS)
    _expect(model, inputs, list(OUTPUTS))
    encoder = onnx.ModelProto()
    encoder.CopyFrom(model)
    graph = encoder.graph
    branches = [a.g for n in graph.node if n.name == BRANCH for a in n.attribute]
    everywhere = itertools.chain(graph.node, *(branch.node for branch in branches))
    nodes = [node for node in everywhere if not node.name.startswith(HEAD)]
    weights = [item for item in graph.initializer if not item.name.startswith("head.")]
    frame = next(item for item in graph.input if item.name == FRAME)
    latents = next(item for item in graph.output if item.name == LATENTS)
    encoded = onnx.ValueInfoProto()
    encoded.CopyFrom(latents)
    encoded.name = ENCODED
    for field, items in (
        (graph.node, nodes),
        (graph.initializer, weights),
        (graph.input, [frame]),
        (graph.output, [encoded]),
    ):
        kept = [type(item).FromString(item.SerializeToString()) for item in items]
        del field[:]
        field.extend(kept)
    return finish(encoder)


def centre_latents(encoder: onnx.ModelProto, mean: NDArray[np.floating]) -> onnx.ModelProto:
    """Subtract a fixed mean, float [D], from the latents by changing the last bias.

    Centred latents keep fp16 scores exact: with a large common offset the differences between
    scores drown in rounding. ExportError if the last convolution has no bias of that length.
    """
    model = onnx.ModelProto()
    model.CopyFrom(encoder)
    projection = _producer(model, ENCODED)
    if projection.op_type != "Conv" or len(projection.input) != 3:
        raise ExportError("the encoder does not end in a convolution with a bias", fix=_FIX)
    bias = _initializer(model, projection.input[2])
    values = numpy_helper.to_array(bias)
    if values.shape != mean.shape or values.dtype != np.float32:
        raise ExportError(
            f"the projection's bias is {values.dtype} {values.shape}, the mean {mean.shape}",
            fix=_FIX,
        )
    bias.CopyFrom(numpy_helper.from_array((values - mean).astype(np.float32), bias.name))
    return finish(model)


def to_half(encoder: onnx.ModelProto) -> onnx.ModelProto:
    """Make the fp16 encoder: float16 from the first convolution to the projection.

    Normalisation stays in float32 in front, and ``encoded`` is cast back to float32, so the head
    works on float32 (a property of the graph, not of a builder flag). ExportError if a weight
    overflows.
    """
    model = onnx.ModelProto()
    model.CopyFrom(encoder)
    graph = model.graph
    normaliser = _producer(model, NORMALISED)
    outside = upstream(model, NORMALISED)
    inside = [node for node in graph.node if node.name not in outside]
    keep_float = {name for node in inside if node.op_type == "Resize" for name in node.input[1:]}
    names = {name for node in inside for name in node.input} - keep_float
    for item in graph.initializer:
        if item.name in names and item.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(item)
            half = values.astype(np.float16)
            if not np.isfinite(half).all():
                raise ExportError(
                    f"weight {item.name} overflows float16 (largest {np.abs(values).max():g})",
                    fix="Train with weight decay or a lower learning rate.",
                )
            item.CopyFrom(numpy_helper.from_array(half, item.name))
    for node in inside:
        for index, name in enumerate(node.input):
            if name == NORMALISED:
                node.input[index] = "normalised_half"
        for index, name in enumerate(node.output):
            if name == ENCODED:
                node.output[index] = "encoded_half"
    cast_in = helper.make_node(
        "Cast", [NORMALISED], ["normalised_half"], name="to_half", to=TensorProto.FLOAT16
    )
    cast_out = helper.make_node(
        "Cast", ["encoded_half"], [ENCODED], name="to_float", to=TensorProto.FLOAT
    )
    graph.node.insert(list(graph.node).index(normaliser) + 1, cast_in)
    graph.node.append(cast_out)
    del graph.value_info[:]
    return finish(model)


def finish(model: onnx.ModelProto) -> onnx.ModelProto:
    """Set versions and check a model, in place; ExportError if onnx.checker refuses it."""
    model.ir_version = IR_VERSION
    model.producer_name = "aeseg_edge"
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph is not valid ONNX: {error}", fix=_FIX) from error
    return model


def _expect(model: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> None:
    found = [i.name for i in model.graph.input], [o.name for o in model.graph.output]
    if found != (inputs, outputs):
        raise ExportError(
            f"the graph has inputs {found[0]} and outputs {found[1]}, not {inputs} and {outputs}",
            fix=_FIX,
        )


def _producer(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    for node in model.graph.node:
        if tensor in node.output:
            found: onnx.NodeProto = node
            return found
    raise ExportError(f"no node of the graph makes {tensor}", fix=_FIX)


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    for item in model.graph.initializer:
        if item.name == name:
            found: onnx.TensorProto = item
            return found
    raise ExportError(f"the graph has no weight {name}", fix=_FIX)


def upstream(model: onnx.ModelProto, tensor: str) -> set[str]:
    """Name the nodes that a tensor is made by, directly or not; none for inputs and weights."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    todo = [tensor]
    while todo:
        node = makers.get(todo.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            todo.extend(node.input)
    return found
