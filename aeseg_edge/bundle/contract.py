"""The contract of a deployed graph: its tensors' names, shapes and types, and what feeds it.

Who makes graphs (calibration), runs them (backends) and builds engines of them (export) takes
names and shapes from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import Codebook

FRAME, WEIGHTS, BIAS, REMAP, PREVIOUS, MIX = INPUTS = (
    "frame",
    "weights",
    "bias",
    "remap",
    "previous",
    "mix",
)
EXTRAS = "extras"
"""One more input of graphs for a CPU: whether to smooth and to give latents and margin."""

LABELS, LATENTS, MARGIN = OUTPUTS = ("labels", "latents", "margin")

NORMALISED, ENCODED = "normalised", "encoded"
"""Tensors inside: the encoder's first and last."""

HEAD = "head/"
"""What the names of the head's nodes begin with."""

DECODED = "decoded"
"""Output of the decoder's graph, whose input is called as the deployed graph's ``LATENTS``."""

_TENSORS: dict[str, tuple[str, tuple[int | str, ...]]] = {
    FRAME: ("uint8", (1, "height", "width", "channels")),
    WEIGHTS: ("float32", ("clusters", "features")),
    BIAS: ("float32", ("clusters", 1)),
    REMAP: ("float32", ("clusters",)),
    PREVIOUS: ("float32", (1, "latent_dim", "latent_height", "latent_width")),
    MIX: ("float32", (1,)),
    EXTRAS: ("bool", (1,)),
    LABELS: ("uint8", (1, "label_height", "label_width")),
    LATENTS: ("float32", (1, "latent_dim", "latent_height", "latent_width")),
    MARGIN: ("float32", (1, "latent_height", "latent_width")),
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor with a static shape; dtype is NumPy's name: "uint8", "float32" or "bool"."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class GraphSpec:
    """Sizes that a deployed graph was exported with.

    Attributes:
        height: Frame rows, H.
        width: Frame columns, W.
        channels: Frame channels, C.
        latent_dim: Latent channels, D.
        stride: Encoder stride r; latents are [D, H/r, W/r].
        output_stride: Label stride s; labels are [H/s, W/s].
        squares: Whether scores are ``W [z, z^2] + b`` with weights [K, 2D]; without them they
            are ``W z + b`` with [K, D].
    """

    height: int
    width: int
    channels: int
    latent_dim: int
    stride: int
    output_stride: int
    squares: bool = True

    @property
    def features(self) -> int:
        """Columns of the codebook's weights: 2D with squares, D without."""
        return 2 * self.latent_dim if self.squares else self.latent_dim

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Shape of one frame: (H, W, C)."""
        return self.height, self.width, self.channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one frame's latents: (D, H/r, W/r)."""
        return self.latent_dim, self.height // self.stride, self.width // self.stride

    @property
    def label_shape(self) -> tuple[int, int]:
        """Shape of one frame's labels: (H/s, W/s)."""
        return self.height // self.output_stride, self.width // self.output_stride

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that stay open in a graph file, by name, but for ``clusters``."""
        return {
            "height": self.height,
            "width": self.width,
            "latent_height": self.latent_shape[1],
            "latent_width": self.latent_shape[2],
            "label_height": self.label_shape[0],
            "label_width": self.label_shape[1],
        }

    def written(self, name: str) -> tuple[str, list[int | str]]:
        """NumPy's type of a tensor and its shape in a graph file, where sizes stay open."""
        dtype, shape = _TENSORS[name]
        known: dict[int | str, int] = {
            "channels": self.channels,
            "features": self.features,
            "latent_dim": self.latent_dim,
        }
        return dtype, [known.get(size, size) for size in shape]

    def fixed(self, names: Iterable[str], clusters: int) -> dict[str, TensorSpec]:
        """Describe tensors of a graph whose sizes are all fixed, with so many rows of codebook."""
        sizes: dict[int | str, int] = {"clusters": clusters}
        sizes.update(self.sizes.items())
        made = {}
        for name in names:
            dtype, shape = self.written(name)
            made[name] = TensorSpec(tuple(sizes.get(size) or int(size) for size in shape), dtype)
        return made


def codebook_inputs(codebook: Codebook, spec: GraphSpec) -> dict[str, NDArray[np.float32]]:
    """Give the inputs that are the codebook's: weights [K, F], bias [K, 1] and remap [K]."""
    return {
        WEIGHTS: codebook.columns(spec.squares),
        BIAS: np.ascontiguousarray(codebook.bias[:, None]),
        REMAP: codebook.remap.astype(np.float32),
    }


def feed(
    codebook: dict[str, NDArray[np.float32]],
    frame: NDArray[np.uint8],
    previous: NDArray[np.float32],
    mix: float,
    extras: bool | None,
) -> dict[str, NDArray[Any]]:
    """Give every input of a deployed graph; the codebook's are from ``codebook_inputs``.

    `frame` is uint8 [H, W, C], `previous` float32 [1, D, H/r, W/r] with share `mix`, 0 to below 1;
    `extras` whether to smooth and give latents and margin, None where the graph does not ask.
    """
    given: dict[str, NDArray[Any]] = {
        FRAME: np.ascontiguousarray(frame)[None],
        **codebook,
        PREVIOUS: previous,
        MIX: np.array([mix], np.float32),
    }
    if extras is not None:
        given[EXTRAS] = np.array([extras])
    return given


@dataclass(frozen=True)
class DecoderParts:
    """What a bundle holds of a decoder.

    Attributes:
        graph: Serialised ONNX: ``latents`` float32 [1, D, h, w] -> ``decoded`` uint8
            [1, h r, w r, C].
        latents: float32 [K, D]: the mean of the latents that calibration assigned to each
            cluster; None where the codebook was changed since.
        median: Of the reconstruction error of calibration frames, one value a latent, in
            grey levels.
        p99: The 99th percentile of the same.
        frames: How many frames these are from.
    """

    graph: bytes
    latents: NDArray[np.float32] | None
    median: float
    p99: float
    frames: int
