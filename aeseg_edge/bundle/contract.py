"""The contract of a deployed graph: its sizes, and the names of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass


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
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one frame's latents: (D, H/r, W/r)."""
        return self.latent_dim, self.height // self.stride, self.width // self.stride

    @property
    def label_shape(self) -> tuple[int, int]:
        """Shape of one frame's labels: (H/s, W/s)."""
        return self.height // self.output_stride, self.width // self.output_stride


INPUT = "latents"


OUTPUT = "decoded"


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
