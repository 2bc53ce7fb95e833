"""From a trained autoencoder to the decoder's ONNX graph: latents in, a picture out.

The deployed graph's latents are centred: a fixed mean was folded into the encoder's last bias.
The decoder was trained on latents that are not, so its graph adds the mean first, as a node of
its own: folded into the first convolution it would be wrong at the borders, where the
convolution pads with zeros and not with the mean.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from aeseg_edge.bundle.contract import DECODED, ENCODED, LATENTS
from aeseg_edge.calibration.graphs.deployed import finish
from aeseg_edge.errors import ExportError
from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.onnx.encoder import trace

_TRACED = (3, 5)
"""Rows and columns of latents to trace with; unlike each other and every channel count."""


class _Drawing(nn.Module):
    """Decoder as the runtime wants it: centred latents in, bytes out, channels last."""

    mean: Tensor

    def __init__(self, autoencoder: Autoencoder, mean: Tensor) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        images = self.autoencoder.decode(latents + self.mean)
        # Added before the cast, which cuts off: this rounds to the nearest level.
        levels = torch.clamp(images * 255.0 + 0.5, 0.0, 255.0)
        return levels.permute(0, 2, 3, 1).to(torch.uint8)


def export_decoder(autoencoder: Autoencoder, mean: NDArray[np.floating]) -> onnx.ModelProto:
    """Export the decoder in float32; ``mean``, float [D], was taken from the encoder's latents.

    ``latents`` float32 [1, D, h, w] (centred) -> ``decoded`` uint8 [1, h r, w r, C] (BGR first); h
    and w are symbolic. ExportError if torch cannot, or the mean has another length.
    """
    dim = autoencoder.config.latent_dim
    if mean.shape != (dim,):
        raise ExportError(
            f"the mean of the latents has shape {list(mean.shape)}, not [{dim}]",
            fix="Export the model again with this version of aeseg_edge.",
        )
    network = _Drawing(
        copy.deepcopy(autoencoder).cpu().float(), torch.from_numpy(np.asarray(mean, np.float32))
    ).eval()
    latents = torch.zeros((1, dim, *_TRACED))
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    model = trace(network, latents, names=(LATENTS, DECODED), what="decoder", dynamic=sizes)
    return _tidy(model)


def folded_mean(
    encoder: onnx.ModelProto, centred: onnx.ModelProto, *, output: str = ENCODED
) -> NDArray[np.float32]:
    """Find what ``centre_latents`` subtracted: float32 [D], the difference of the last biases.

    ``centred`` may be a deployed graph made from the encoder; ``output`` names the latents in both.
    """
    before, after = _last_bias(encoder, output), _last_bias(centred, output)
    return np.asarray(before - after, np.float32)


def _last_bias(model: onnx.ModelProto, output: str) -> NDArray[np.float32]:
    graph = model.graph
    node = next((n for n in graph.node if output in n.output and n.op_type == "Conv"), None)
    name = node.input[2] if node is not None and len(node.input) == 3 else None
    for item in graph.initializer:
        if item.name == name:
            return np.asarray(numpy_helper.to_array(item), np.float32)
    raise ExportError(
        "the encoder does not end in a convolution with a bias",
        fix="Export the model again with this version of aeseg_edge.",
    )


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name the symbolic sizes, and drop what the exporter left behind."""
    graph = model.graph
    del graph.value_info[:]
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
    for item, first, names in (
        (graph.input[0], 2, ("latent_height", "latent_width")),
        (graph.output[0], 1, ("height", "width")),
    ):
        for offset, name in enumerate(names):
            item.type.tensor_type.shape.dim[first + offset].dim_param = name
    graph.name = "decoder"
    return finish(model)
