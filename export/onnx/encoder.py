"""From a trained autoencoder to the encoder's ONNX graph: the one place that exports torch."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from aeseg_edge.bundle.contract import ENCODED, FRAME, NORMALISED
from aeseg_edge.calibration.graphs.deployed import OPSET, finish
from aeseg_edge.errors import ExportError
from aeseg_edge.export.network.autoencoder import Autoencoder

_log = logging.getLogger(__name__)


class _Deployed(nn.Module):
    """Encoder as the device sees it: bytes in, channels last."""

    scale: Tensor
    shift: Tensor

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.trunk = autoencoder.trunk
        self.project = autoencoder.project
        self.register_buffer("scale", 1.0 / (255.0 * autoencoder.std))
        self.register_buffer("shift", -255.0 * autoencoder.mean)

    def forward(self, frame: Tensor) -> Tensor:
        # Cast before the transpose: TensorRT refuses uint8 in a Transpose.
        images = frame.to(torch.float32).permute(0, 3, 1, 2)
        latents: Tensor = self.project(self.trunk((images + self.shift) * self.scale))
        return latents


def export_encoder(autoencoder: Autoencoder, *, height: int, width: int) -> onnx.ModelProto:
    """Export the encoder in float32: ``frame`` uint8 [1, H, W, C] (BGR) -> ``encoded``.

    The graph holds no sizes: every operation works at any multiple of the deepest stride, so H and
    W are symbolic afterwards. ExportError if those to trace with do not divide, or torch cannot.
    """
    multiple = autoencoder.multiple
    if height % multiple or width % multiple or min(height, width) < multiple:
        raise ExportError(
            f"{width}x{height} is not a multiple of {multiple}, the deepest stride of "
            f"{autoencoder.config.arch!r}",
            fix="Round both sides.",
        )
    network = _Deployed(copy.deepcopy(autoencoder).cpu().float()).eval()
    frame = torch.zeros((1, height, width, autoencoder.config.channels), dtype=torch.uint8)
    return _tidy(trace(network, frame, names=(FRAME, ENCODED), what="encoder"))


def trace(
    network: nn.Module,
    example: Tensor,
    *,
    names: tuple[str, str],
    what: str,
    dynamic: dict[int, Any] | None = None,
) -> onnx.ModelProto:
    """Let torch export a network with one input and one output; ExportError if it cannot.

    ``dynamic``: axes of the input whose size stays open; None for those of the example. ``what``
    names the network in errors.
    """
    with quiet_exporter(), torch.no_grad():
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_shapes=None if dynamic is None else (dynamic,),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(
                f"torch cannot export the {what}: {error}",
                fix="Use the torch version of the constraints file.",
            ) from error
    if program is None:
        raise ExportError("torch exported nothing", fix="Use the torch version of the constraints.")
    return program.model_proto


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make sizes symbolic, name the normalised image, drop what the exporter left behind."""
    graph = model.graph
    # The exporter leaves shapes, and notes on itself, at every tensor and node.
    del graph.value_info[:]
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
    frame, encoded = graph.input[0], graph.output[0]
    for item, names in ((frame, ("height", "width")), (encoded, ("latent_height", "latent_width"))):
        first = 1 if item is frame else 2
        for offset, name in enumerate(names):
            item.type.tensor_type.shape.dim[first + offset].dim_param = name
    _fold_pads(graph)
    multiply = next(node for node in graph.node if node.op_type == "Mul")
    _rename(graph, multiply.output[0], NORMALISED)
    wanted = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in wanted]
    copies = [onnx.TensorProto.FromString(item.SerializeToString()) for item in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    graph.name = "encoder"
    return finish(model)


def _fold_pads(graph: onnx.GraphProto) -> None:
    """Make the zero padding before a convolution part of it: one node, one kernel less.

    A convolution of ONNX may pad more at one side than at the other; one of torch may not.
    """
    weights = {item.name: item for item in graph.initializer}
    convolutions = {node.input[0]: node for node in graph.node if node.op_type == "Conv"}
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        convolution = convolutions[pad.output[0]]
        # Of the four axes N, C, H, W: all starts, then all ends.
        sides = [int(side) for side in numpy_helper.to_array(weights[pad.input[1]])]
        held = next(item for item in convolution.attribute if item.name == "pads")
        for index, side in enumerate((sides[2], sides[3], sides[6], sides[7])):
            held.ints[index] += side
        convolution.input[0] = pad.input[0]
        graph.node.remove(pad)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide the exporter's notices on things this project does not use."""
    names = ("torch.onnx._internal.exporter._registration", "onnxscript", "torch.onnx")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
