"""Leaving convolutions out of an int8 graph: they get their float weights back.

Quantising first and putting back afterwards serves both runtimes with one rule, keeps the
camera's bytes as the first convolution's input, and needs no second look at the footage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from aeseg_edge.bundle.contract import ENCODED
from aeseg_edge.calibration.graphs.deployed import finish
from aeseg_edge.errors import CalibrationError, UsageError

RECORD = "int8_excluded"
"""Where the manifest's record of the calibration says what was left out."""

_FOLLOWS = ("MaxPool", "Resize", "Relu", "Clip")
"""Operations that are float or int8 as what they read is."""

_ACTIVATIONS = ("Relu", "Clip")
"""What the CPU's graph leaves to the clamping of the quantisation behind a convolution."""

Makers = Mapping[str, onnx.NodeProto]


def check_names(encoder: onnx.ModelProto, names: Sequence[str]) -> None:
    """Refuse names to leave out of int8 that an encoder does not have or that never are in it."""
    known = [
        node.name
        for node in encoder.graph.node
        if node.op_type == "Conv" and ENCODED not in node.output
    ]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"no int8 convolution is named {', '.join(unknown)}",
            fix=f"Choose from {', '.join(known)}; aeseg report says what each of them buys.",
        )


def excluded_of(training: Mapping[str, Any], backend: str) -> list[str]:
    """Read from a manifest's training what was left out of a backend's int8 graph."""
    record = training.get("calibration", {}).get(RECORD)
    if not isinstance(record, Mapping):
        return []
    names = record.get(backend, {}).get("names", ())
    return [str(name) for name in names]


def float_convolutions(model: onnx.ModelProto) -> list[str]:
    """Name the convolutions whose input or weights are not int8, in graph order."""
    makers = _makers(model.graph)
    return [
        node.name
        for node in _everywhere(model.graph)
        if node.op_type == "Conv" and not all(_is(makers, name) for name in node.input[:2])
    ]


def quantised_convolutions(model: onnx.ModelProto) -> list[str]:
    """Name the int8 convolutions of an encoder or deployed graph, in graph order."""
    floats = set(float_convolutions(model))
    return [n.name for n in model.graph.node if n.op_type == "Conv" and n.name not in floats]


def restored(
    model: onnx.ModelProto, plain: onnx.ModelProto, names: Iterable[str]
) -> onnx.ModelProto:
    """Give convolutions of a quantised graph the float weights of ``plain`` back, in a copy.

    A Q/DQ pair that nothing in int8 needs any more goes too. TensorRT's graph has them only for the
    convolutions that read them; the CPU's also for those that write them, where the range stands
    for a ReLU, which comes back. CalibrationError if a name is not one in int8.
    """
    wanted = list(dict.fromkeys(names))
    known = quantised_convolutions(model)
    if unknown := sorted(set(wanted) - set(known)):
        raise CalibrationError(
            f"the int8 graph has no int8 convolution named {', '.join(unknown)}",
            fix=f"Choose from {', '.join(known)}.",
        )
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    for_cpu = _quantises_outputs(changed, known)
    _put_back(graph, plain, wanted)
    while _drop_pairs(graph, for_cpu):
        pass
    _sweep(graph)
    return finish(changed)


def _put_back(graph: onnx.GraphProto, plain: onnx.ModelProto, names: list[str]) -> None:
    """Replace weights and biases, and restore activations that quantisation stood for."""
    makers, originals = _makers(graph), _makers(plain.graph)
    sources = {node.name: node for node in plain.graph.node}
    weights = {item.name: item for item in plain.graph.initializer}
    mine = {item.name: item for item in graph.initializer}
    present = set(mine)
    for node in [node for node in graph.node if node.name in names]:
        source = sources[node.name]
        half = mine[makers[node.input[1]].input[1]].data_type == onnx.TensorProto.FLOAT16
        for index, name in enumerate(source.input[1:], start=1):
            values = numpy_helper.to_array(weights[name])
            fresh = f"{name}.float"
            if fresh not in present:
                graph.initializer.append(
                    numpy_helper.from_array(values.astype(np.float16) if half else values, fresh)
                )
                present.add(fresh)
            node.input[index] = fresh
        activation = originals.get(node.output[0])
        if activation is None or activation.name == node.name:
            continue
        node.output[0] = source.output[0]
        copy = onnx.NodeProto.FromString(activation.SerializeToString())
        for name in copy.input[1:]:
            if name and name not in present:
                graph.initializer.append(weights[name])
                present.add(name)
        graph.node.insert(list(graph.node).index(node) + 1, copy)


def _drop_pairs(graph: onnx.GraphProto, for_cpu: bool) -> bool:
    """Drop one Q/DQ pair that nothing in int8 needs; say whether there was one."""
    makers = _makers(graph)
    for quantise in graph.node:
        if quantise.op_type != "QuantizeLinear" or quantise.input[0] not in makers:
            continue
        source = makers[quantise.input[0]]
        if for_cpu and not _runs_in_float(source, makers):
            continue
        pairs = [node for node in graph.node if quantise.output[0] in node.input]
        read = {name for pair in pairs for name in pair.output}
        readers = [node for node in graph.node if read.intersection(node.input)]
        if not readers or any(_needs_int8(node, makers, for_cpu) for node in readers):
            continue
        for node in readers:
            for index, name in enumerate(node.input):
                if name in read:
                    node.input[index] = quantise.input[0]
        return True
    return False


def _runs_in_float(node: onnx.NodeProto, makers: Makers) -> bool:
    if node.op_type == "Conv":
        return not _is(makers, node.input[1])
    return node.op_type in _FOLLOWS and not _is(makers, node.input[0])


def _needs_int8(node: onnx.NodeProto, makers: Makers, for_cpu: bool) -> bool:
    if node.op_type == "Conv":
        return _is(makers, node.input[1])
    return for_cpu and node.op_type not in _FOLLOWS


def _quantises_outputs(model: onnx.ModelProto, convolutions: list[str]) -> bool:
    """Whether outputs of convolutions are quantised, as the CPU's kernels want it."""
    outputs = {n.output[0] for n in model.graph.node if n.name in set(convolutions)}
    return any(n.op_type == "QuantizeLinear" and n.input[0] in outputs for n in model.graph.node)


def _sweep(graph: onnx.GraphProto) -> None:
    """Remove nodes and weights that nothing reads any more."""
    outputs = {item.name for item in graph.output}
    while True:
        used = outputs | {name for node in graph.node for name in _reads(node)}
        unused = [node for node in graph.node if not used.intersection(node.output)]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    kept = [
        onnx.TensorProto.FromString(item.SerializeToString())
        for item in graph.initializer
        if item.name in used
    ]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _everywhere(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of branches behind the node that has them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _everywhere(attribute.g)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names of all tensors that a node reads, in its branches too."""
    found = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            found |= _reads(inner)
    return found


def _makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def _is(makers: Makers, name: str) -> bool:
    """Whether a tensor is dequantised from int8."""
    return name in makers and makers[name].op_type == "DequantizeLinear"
