"""What the trunks of several architectures are made of.

Only even kernels and pooling windows change the resolution, so features stay centred on the
pixels that they describe.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

MEAN = 128 / 255
"""What is subtracted from an image in 0..1. A byte minus 128 is an int8, so the first
convolution of an INT8 graph reads the camera's own bytes, exactly."""

STD = 64 / 255
"""What the centred image is divided by: near the spread of natural images."""


def unit(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU; odd and even kernels are padded alike on all sides.

    A kernel is odd with stride 1, even with an even stride.
    """
    padding = (kernel - stride + 1) // 2
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def double(features: Tensor) -> Tensor:
    """Repeat each place of [N, C, H, W] four times: [N, C, 2H, 2W]."""
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")


def small_decoder(latent_dim: int, channels: int) -> nn.Sequential:
    """A decoder that only serves training: small, and working at stride 4."""
    return nn.Sequential(
        unit(latent_dim, 64),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.PixelShuffle(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 16 * channels, 3, padding=1),
        nn.PixelShuffle(4),
    )
