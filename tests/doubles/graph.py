"""A deployed graph small enough to run in a millisecond, with the real head."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import ENCODED, FRAME, NORMALISED, GraphSpec
from aeseg_edge.calibration.graphs.deployed import OPSET, attach_head, finish

SPEC = GraphSpec(height=32, width=48, channels=3, latent_dim=4, stride=4, output_stride=2)


def encoder(spec: GraphSpec = SPEC, *, seed: int = 0) -> onnx.ModelProto:
    """Two convolutions with random weights: `frame` -> `encoded`, stride 4, sizes symbolic."""
    random = np.random.default_rng(seed)
    weights = {
        "first.weight": random.normal(0, 0.3, (8, spec.channels, 4, 4)),
        "first.bias": random.normal(0, 0.1, 8),
        "project.weight": random.normal(0, 0.5, (spec.latent_dim, 8, 1, 1)),
        "project.bias": random.normal(0, 0.1, spec.latent_dim),
        "shift": np.full((1, spec.channels, 1, 1), -128.0),
        "scale": np.full((1, spec.channels, 1, 1), 1 / 64),
    }
    nodes = [
        helper.make_node("Cast", [FRAME], ["float"], name="to_image", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["image"], name="planes", perm=[0, 3, 1, 2]),
        helper.make_node("Add", ["image", "shift"], ["shifted"], name="shift_image"),
        helper.make_node("Mul", ["shifted", "scale"], [NORMALISED], name="scale_image"),
        helper.make_node(
            "Conv",
            [NORMALISED, "first.weight", "first.bias"],
            ["first"],
            name="first",
            kernel_shape=[4, 4],
            strides=[4, 4],
        ),
        helper.make_node("Relu", ["first"], ["active"], name="relu"),
        helper.make_node(
            "Conv",
            ["active", "project.weight", "project.bias"],
            [ENCODED],
            name="project",
            kernel_shape=[1, 1],
        ),
    ]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "encoder",
        [tensor(FRAME, TensorProto.UINT8, [1, "height", "width", spec.channels])],
        [
            tensor(
                ENCODED,
                TensorProto.FLOAT,
                [1, spec.latent_dim, "latent_height", "latent_width"],
            )
        ],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    return finish(helper.make_model(graph, opset_imports=opset))


def deployed(spec: GraphSpec = SPEC, *, seed: int = 0) -> bytes:
    """The encoder with the head, serialised."""
    model: bytes = attach_head(encoder(spec, seed=seed), spec).SerializeToString()
    return model


def codebook(clusters: int = 5, *, seed: int = 0, spec: GraphSpec = SPEC) -> Codebook:
    """Random centres, every cluster a class of its own."""
    centres = np.random.default_rng(seed).normal(0, 1, (clusters, spec.latent_dim))
    return Codebook.from_centres(centres.astype(np.float32))
