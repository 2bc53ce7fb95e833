"""The nodes of the head: smoothing, scores, upsampling, assignment, for each layout.

``assemble.py`` puts them behind an encoder; the contract is in bundle/contract.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from aeseg_edge.bundle.codebook import PADDING_BIAS
from aeseg_edge.bundle.contract import (
    BIAS,
    ENCODED,
    EXTRAS,
    HEAD,
    LABELS,
    LATENTS,
    MARGIN,
    MIX,
    PREVIOUS,
    REMAP,
    WEIGHTS,
    GraphSpec,
)
from aeseg_edge.bundle.precisions import TENSORRT, Layout

BRANCH = f"{HEAD}if_extras"


@dataclass(frozen=True)
class Projection:
    """The 1x1 convolution that ends an encoder: ``encoded = P x + p``, P float32 [D, F]."""

    node: onnx.NodeProto
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class Head:
    """Builds the nodes of one head, and the constants that they read; see ``attach_head``.

    A ``projection`` was taken out of the encoder, to be run only where latents are needed: for
    ``cpu`` and a codebook without squares.
    """

    def __init__(
        self,
        spec: GraphSpec,
        gate: float | None,
        layout: Layout,
        projection: Projection | None = None,
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._projection = projection
        self._spec, self._gate, self._layout = spec, gate, layout
        self._constants: dict[str, NDArray[Any]] = {}
        # Where the clusters are in the table of scores, and in the planes made of it.
        self._last = layout != TENSORRT
        self._axis, self._plane_axis = (1, 3) if self._last else (0, 1)

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """What the nodes read beside inputs and the encoder's output."""
        return [numpy_helper.from_array(value, name) for name, value in self._constants.items()]

    def build(self) -> None:
        """Add every node, from ``encoded`` to the outputs of the contract."""
        # Two dimensions, no batch: TensorRT then makes one kernel of the smoothing, and one of
        # bias and maxima.
        placed = ENCODED if self._projection is None else self._projection.node.input[0]
        grid = self._add("Shape", [placed], "head_grid", start=2, end=4)
        if self._layout == "cpu":
            scores = self._only_what_is_asked_for(grid)
        else:
            smoothed = self._smooth()
            scores = self._score(smoothed, "head_scores")
            self._extras(smoothed, scores, grid)
        self._assign(scores, grid)

    def _flat(self, output: str) -> str:
        """``encoded`` as float32 [D, hw]."""
        flat = self._const("flat", [self._spec.latent_dim, -1], np.int64)
        return self._add("Reshape", [ENCODED, flat], output)

    def _smooth(self) -> str:
        """``now + mix * exp(-d^2 / gate^2) * d``, d = previous - now: float32 [D, hw]."""
        now = self._flat("head_now")
        flat = self._const("flat", [self._spec.latent_dim, -1], np.int64)
        before = self._add("Reshape", [PREVIOUS, flat], "head_before")
        step = self._add("Sub", [before, now], "head_step")
        weight = MIX
        if self._gate is not None:
            narrow = self._const("narrow", -1 / self._gate**2)
            change = self._add("Mul", [step, step], "head_change")
            scaled = self._add("Mul", [change, narrow], "head_scaled")
            passed = self._add("Exp", [scaled], "head_gate")
            weight = self._add("Mul", [passed, MIX], "head_weight")
        mixed = self._add("Mul", [step, weight], "head_mixed")
        return self._add("Add", [now, mixed], "head_smoothed")

    def _score(self, latents: str, output: str) -> str:
        """``W [z, z^2] + b``: float32 [hw, K], or [K, hw] for TensorRT."""
        phi = latents
        if self._spec.squares:
            square = self._add("Mul", [latents, latents], f"{output}_square")
            phi = self._add("Concat", [latents, square], f"{output}_phi", axis=0)
        if self._last:
            row = self._const("row", [1, -1], np.int64)
            bias = self._add("Reshape", [BIAS, row], f"{output}_bias")
            return self._add("Gemm", [phi, WEIGHTS, bias], output, transA=1, transB=1)
        raw = self._add("MatMul", [WEIGHTS, phi], f"{output}_raw")
        return self._add("Add", [raw, BIAS], output)

    def _extras(self, latents: str, scores: str, grid: str, suffix: str = "") -> None:
        """The outputs ``latents`` and ``margin``.

        The margin is between clusters. Between classes it takes a third maximum, a kernel that
        every frame would pay on TensorRT; where clusters share a class and somebody asks, it is
        found from the latents instead (``segment``), for older bundles too.
        """
        whole = self._add("Shape", [ENCODED], "head_whole")
        self._add("Reshape", [latents, whole], f"{LATENTS}{suffix}")
        # Two maxima instead of a TopK: fewer kernels on TensorRT, faster on a CPU at K = 27.
        # Clusters that tie for the best count as one.
        axis = self._const("axis", [self._axis], np.int64)
        best = self._add("ReduceMax", [scores, axis], "head_best", keepdims=1)
        behind = self._add("Less", [scores, best], "head_behind")
        never = self._const("never", PADDING_BIAS)
        others = self._add("Where", [behind, scores, never], "head_others")
        second = self._add("ReduceMax", [others, axis], "head_second", keepdims=1)
        gap = self._add("Sub", [best, second], "head_gap")
        one = self._const("one", [1], np.int64)
        shape = self._add("Concat", [one, grid], "head_margin_shape", axis=0)
        self._add("Reshape", [gap, shape], f"{MARGIN}{suffix}")

    def _assign(self, scores: str, grid: str) -> None:
        """Upsample bilinearly at half-pixel centres (ONNX Resize-19), and take the best."""
        factor = self._spec.stride // self._spec.output_stride
        one, rest = self._const("one", [1], np.int64), self._const("rest", [-1], np.int64)
        order = [one, grid, rest] if self._last else [one, rest, grid]
        shape = self._add("Concat", order, "head_shape", axis=0)
        planes = self._add("Reshape", [scores, shape], "head_planes")
        if factor > 1:
            sizes = [1, factor, factor, 1] if self._last else [1, 1, factor, factor]
            scales = self._const("scales", sizes)
            planes = self._add(
                "Resize",
                [planes, "", scales],
                "head_upsampled",
                mode="linear",
                coordinate_transformation_mode="half_pixel",
            )
        cluster = self._add("ArgMax", [planes], "head_cluster", axis=self._plane_axis, keepdims=0)
        if self._layout == "cpu":
            ids = self._add("Cast", [REMAP], "head_ids", to=TensorProto.UINT8)
            self._add("Gather", [ids, cluster], LABELS, axis=0)
            return
        label = self._add("Gather", [REMAP, cluster], "head_class", axis=0)
        # TensorRT writes uint8 outputs only from a float cast, and only as graph outputs.
        half = self._add("Cast", [label], "head_half", to=TensorProto.FLOAT16)
        self._add("Cast", [half], LABELS, to=TensorProto.UINT8)

    def _score_unprojected(self, projection: Projection, output: str) -> str:
        """The same without squares, ``W (P x + p) + b = (W P) x + (W p + b)``: float32 [hw, K]."""
        width = projection.weight.shape[1]
        flat = self._const("flat_features", [width, -1], np.int64)
        features = self._add("Reshape", [projection.node.input[0], flat], "head_features")
        weight = self._const("projection", projection.weight)
        offset = self._const("offset", projection.bias[:, None])
        product = self._add("MatMul", [WEIGHTS, weight], "head_product")
        shifted = self._add("MatMul", [WEIGHTS, offset], "head_shifted")
        biases = self._add("Add", [shifted, BIAS], "head_biases")
        row = self._add("Reshape", [biases, self._const("row", [1, -1], np.int64)], "head_row")
        return self._add("Gemm", [features, product, row], output, transA=1, transB=1)

    def _only_what_is_asked_for(self, grid: str) -> str:
        """Smooth and give the extras only where ``extras`` is true; returns the scores."""
        outer, self.nodes = self.nodes, []
        if self._projection is not None:
            self.nodes.append(self._projection.node)
        smoothed = self._smooth()
        asked = self._score(smoothed, "head_scores_smoothed")
        self._extras(smoothed, asked, grid, "_asked")
        taken, self.nodes = self.nodes, []
        alone = (
            self._score(self._flat("head_alone"), "head_scores_alone")
            if self._projection is None
            else self._score_unprojected(self._projection, "head_scores_alone")
        )
        nothing = self._const("nothing", np.zeros(0))
        empty = [self._add("Identity", [nothing], f"{name}_left") for name in (LATENTS, MARGIN)]
        left, self.nodes = self.nodes, outer
        value = helper.make_tensor_value_info
        table = [None, None]
        self.nodes.append(
            helper.make_node(
                "If",
                [EXTRAS],
                ["head_scores", LATENTS, MARGIN],
                name=BRANCH,
                then_branch=helper.make_graph(
                    taken,
                    "asked",
                    [],
                    [
                        value(asked, TensorProto.FLOAT, table),
                        value(f"{LATENTS}_asked", TensorProto.FLOAT, [None] * 4),
                        value(f"{MARGIN}_asked", TensorProto.FLOAT, [None] * 3),
                    ],
                ),
                else_branch=helper.make_graph(
                    left,
                    "labels_alone",
                    [],
                    [
                        value(alone, TensorProto.FLOAT, table),
                        *(value(name, TensorProto.FLOAT, None) for name in empty),
                    ],
                ),
            )
        )
        return "head_scores"

    def _add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        name = f"{HEAD}{output}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def _const(self, name: str, value: Any, dtype: type[np.generic] = np.float32) -> str:
        self._constants[f"head.{name}"] = np.asarray(value, dtype)
        return f"head.{name}"
