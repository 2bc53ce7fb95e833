"""A decoder graph that numpy can follow: one affine map a latent, each pixel repeated."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from aeseg_edge.bundle.contract import DECODED, LATENTS
from aeseg_edge.calibration.graphs.deployed import OPSET, finish


def affine(latent_dim: int, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [C, D] and biases [C], in grey levels."""
    random = np.random.default_rng(5)
    weights = random.normal(0, 12, (channels, latent_dim)).astype(np.float32)
    return weights, np.linspace(90, 150, channels).astype(np.float32)


def draw(latents: NDArray[np.float32], stride: int, channels: int) -> NDArray[np.uint8]:
    """What the graph computes: [D, h, w] -> uint8 [h r, w r, C]."""
    weights, bias = affine(latents.shape[0], channels)
    levels = np.einsum("cd,dhw->hwc", weights, latents) + bias
    cells = np.clip(levels, 0, 255).astype(np.uint8)
    return cells.repeat(stride, axis=0).repeat(stride, axis=1)


def decoder(latent_dim: int, stride: int, channels: int = 3) -> bytes:
    """The graph, serialised."""
    weights, bias = affine(latent_dim, channels)
    constants = {
        "weights": weights[:, :, None, None],
        "bias": bias,
        "scales": np.array([1, 1, stride, stride], np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
    }
    nodes = [
        helper.make_node("Conv", [LATENTS, "weights", "bias"], ["levels"], name="affine"),
        helper.make_node("Clip", ["levels", "low", "high"], ["clipped"], name="clip"),
        helper.make_node(
            "Resize",
            ["clipped", "", "scales"],
            ["large"],
            name="repeat",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("Transpose", ["large"], ["last"], name="last", perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["last"], [DECODED], name="bytes", to=TensorProto.UINT8),
    ]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "decoder",
        [tensor(LATENTS, TensorProto.FLOAT, [1, latent_dim, "latent_height", "latent_width"])],
        [tensor(DECODED, TensorProto.UINT8, [1, "height", "width", channels])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model: onnx.ModelProto = finish(helper.make_model(graph, opset_imports=opset))
    data: bytes = model.SerializeToString()
    return data
