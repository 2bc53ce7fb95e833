"""Appearance: what a patch looks like, whatever its exact position. A target made of pixels.

Latents that only have to redraw pixels describe where within a cell each edge lies, and
clusters of them follow the phase of edges. So latents also have to tell, through one linear
layer, what the neighbourhood looks like: mean colours, and the strength and orientation of
gradients, each averaged over growing windows, and where in the frame the patch lies. No
label and no pretrained network is involved; the layer serves training only.

Sources: gradient histograms as a target of self-supervised learning are MaskFeat's (Wei et
al., CVPR 2022); orientation as cos and sin of the doubled angle is the structure tensor's
(Bigun and Granlund, ICCV 1987).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from aeseg_edge.export.network.windows import Windows
from aeseg_edge.support.evenly import evenly

WEIGHT = 0.5
"""Of the appearance loss beside the reconstruction loss."""

POSITION_WEIGHT = 0.1
"""Of the position loss. Position is known from the frame's own borders and content only."""

FIT_FRAMES = 48


def descriptor_count(channels: int) -> int:
    """Number of descriptors of images with so many channels."""
    return 2 * channels + 4 * _GRADIENTS


def describe(images: Tensor, stride: int) -> Tensor:
    """Describe the appearance around each latent: float32 [N, T, H/stride, W/stride].

    Of images, float32 [N, C, H, W] in 0..1 and at least 8 latents a side: mean colour of the cell
    and of 5x5 cells; gradients at full size (over 3x3 and 7x7 cells), half size (5x5) and quarter
    size (7x7).
    """
    grey = images.mean(dim=1, keepdim=True)
    cells = functional.avg_pool2d(images, stride)
    fine = _gradients(grey, stride)
    half = _gradients(functional.avg_pool2d(grey, 2), stride // 2)
    quarter = _gradients(functional.avg_pool2d(grey, 4), stride // 4)
    return torch.cat(
        (
            cells,
            _mean(cells, 5),
            _mean(fine, 3),
            _mean(fine, 7),
            _mean(half, 5),
            _mean(quarter, 7),
        ),
        dim=1,
    )


class AppearanceHead(nn.Module):
    """A linear layer from latents to standardised descriptors and position."""

    mean: Tensor
    std: Tensor

    def __init__(self, latent_dim: int, channels: int, stride: int) -> None:
        super().__init__()
        count = descriptor_count(channels)
        self.stride = stride
        self.predict = nn.Conv2d(latent_dim, count + 2, 1)
        self.register_buffer("mean", torch.zeros(1, count, 1, 1))
        self.register_buffer("std", torch.ones(1, count, 1, 1))

    @torch.no_grad()
    def fit(self, frames: NDArray[np.uint8]) -> None:
        """Learn the scale of each descriptor from uint8 [N, H, W, C], once, before training."""
        chosen = evenly(len(frames), FIT_FRAMES, rounded=False)
        images = torch.from_numpy(frames[chosen]).permute(0, 3, 1, 2).float() / 255
        found = describe(images, self.stride)
        self.mean.copy_(found.mean((0, 2, 3), keepdim=True))
        self.std.copy_(found.std((0, 2, 3), keepdim=True) + 1e-3)

    def loss(self, latents: Tensor, images: Tensor, windows: Windows | None) -> Tensor:
        """Compare what latents, float32 [N, D, h, w], tell with how clean images look: float32 [].

        ``windows`` say which part of the frame each image shows; None for whole frames.
        """
        told: Tensor = self.predict(latents)
        wanted = (describe(images, self.stride) - self.mean) / self.std
        count = wanted.shape[1]
        where = _positions(windows, told)
        appearance = functional.smooth_l1_loss(told[:, :count], wanted)
        position = functional.smooth_l1_loss(told[:, count:], where)
        return WEIGHT * appearance + POSITION_WEIGHT * position


_GRADIENTS = 5


def _gradients(grey: Tensor, cell: int) -> Tensor:
    """Magnitude, and magnitude times cos and sin of two and four times the angle, a cell."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    kernels = torch.stack((kernel, kernel.T))[:, None].to(grey)
    padded = functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    slopes = functional.conv2d(padded, kernels)
    along, down = slopes[:, :1], slopes[:, 1:]
    magnitude = (along * along + down * down + 1e-8).sqrt()
    cos, sin = along / magnitude, down / magnitude
    cos2, sin2 = cos * cos - sin * sin, 2 * cos * sin
    cos4, sin4 = cos2 * cos2 - sin2 * sin2, 2 * cos2 * sin2
    parts = torch.cat((torch.ones_like(cos), cos2, sin2, cos4, sin4), dim=1)
    return functional.avg_pool2d(parts * magnitude, cell)


def _mean(cells: Tensor, size: int) -> Tensor:
    return functional.avg_pool2d(cells, size, 1, size // 2, count_include_pad=False)


def _positions(windows: Windows | None, like: Tensor) -> Tensor:
    """Height in the frame and distance from its vertical axis, about -1.7..1.7 each."""
    count, _, rows, columns = like.shape
    y = (torch.arange(rows, device=like.device) + 0.5) / rows
    x = (torch.arange(columns, device=like.device) + 0.5) / columns
    if windows is None:
        down, along = y.expand(count, -1), x.expand(count, -1)
    else:
        top, left, height, width = windows.boxes.to(like.device).unbind(1)
        down = top[:, None] + y * height[:, None]
        # A mirrored window keeps its distance from the axis, counted from the other side.
        mirrored = torch.where(windows.mirrored.to(like.device)[:, None], 1 - x, x)
        along = left[:, None] + mirrored * width[:, None]
    vertical = 1.7 * (2 * down - 1)
    sideways = 3.0 * ((2 * along - 1).abs() - 0.5)
    return torch.stack(
        (
            vertical[:, :, None].expand(-1, -1, columns),
            sideways[:, None, :].expand(-1, rows, -1),
        ),
        dim=1,
    )
