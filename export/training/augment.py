"""Random changes to training images, vectorised over a batch and seeded.

Geometry (a scaled crop, a mirror) is drawn first and kept as ``Windows``, so that
whatever belongs to a frame (its clean picture, later a teacher's features or labels) can
be cut in exactly the same way. Colour and noise change only what the encoder sees; the
decoder must still draw the clean crop. That is the denoising autoencoder of Vincent et
al., ICML 2008, with the colour changes of SimCLR (Chen et al., ICML 2020, appendix A).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aeseg_edge.export.network.windows import Windows

LUMA_BGR = (0.114, 0.587, 0.299)
"""Weights of blue, green and red in grey (ITU-R BT.601-7, 2.5.1)."""


@dataclass(frozen=True)
class Augmentation:
    """How far each random change goes. All draws are uniform unless stated.

    Attributes:
        flip: Probability of a mirror image.
        zoom: The window is the crop size times a factor within these two, log-uniform;
            factors that do not fit into the frame are cut off.
        gain: Brightness factor is 1 +- this.
        contrast: Contrast factor about the image's mean is 1 +- this.
        saturation: Colour factor about grey is 1 +- this (three or four channels).
        channel_gain: Factor of each colour channel is 1 +- this.
        gamma: Exponent is within 1/(1 + this) .. 1 + this, log-uniform.
        noise: Standard deviation of added Gaussian noise is within 0 .. this, in 0..1
            units, one draw an image.
    """

    flip: float = 0.5
    zoom: tuple[float, float] = (0.7, 1.35)
    gain: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.6
    channel_gain: float = 0.1
    gamma: float = 0.4
    noise: float = 0.05


def draw_windows(
    count: int,
    frame: tuple[int, int],
    crop: tuple[int, int],
    generator: torch.Generator,
    augmentation: Augmentation | None,
) -> Windows:
    """Draw where to crop ``count`` images; ``frame`` and ``crop`` are height and width in pixels.

    Without an augmentation: random crops on whole pixels, neither scaled nor mirrored.
    """
    rows, columns = frame
    position = torch.rand((2, count), generator=generator)
    if augmentation is None:
        free = torch.tensor([[rows - crop[0]], [columns - crop[1]]], dtype=torch.float32)
        corner = torch.floor(position * (free + 1)).clamp(max=free)
        extent = torch.tensor([[float(crop[0])], [float(crop[1])]]).expand(2, count)
        mirrored = torch.zeros(count, dtype=torch.bool)
    else:
        low, high = augmentation.zoom
        high = min(high, rows / crop[0], columns / crop[1])
        zoom = _log_uniform(count, min(low, high), high, generator)
        extent = torch.stack((crop[0] * zoom, crop[1] * zoom))
        free = torch.tensor([[float(rows)], [float(columns)]]) - extent
        corner = position * free.clamp(min=0)
        mirrored = torch.rand(count, generator=generator) < augmentation.flip
    scale = torch.tensor([float(rows), float(columns), float(rows), float(columns)])
    return Windows(torch.cat((corner, extent)).T / scale, mirrored)


def disturb(
    images: Tensor,
    augmentation: Augmentation,
    generator: torch.Generator,
    *,
    among: tuple[int, int] | None = None,
) -> Tensor:
    """Change colours and add noise, differently for each image, float32 [N, C, H, W] in 0..1.

    The first three channels are taken as blue, green, red. A fourth (thermal) gets a gain of its
    own and noise. One channel gets gain, contrast, gamma and noise. ``among``: where these are part
    of a larger batch, the index of the first in it, and its size; they are changed as they would be
    with the others there.
    """
    count, channels = images.shape[:2]
    colours = min(channels, 3)
    start, total = among or (0, count)
    mine = slice(start, start + count)

    def factor(reach: float, width: int = 1) -> Tensor:
        draw = torch.rand((total, width, 1, 1), generator=generator)[mine]
        return 1 + reach * (2 * draw - 1)

    visible = images[:, :colours]
    if colours == 3:
        luma = images.new_tensor(LUMA_BGR).view(1, 3, 1, 1)
        grey = (visible * luma).sum(1, keepdim=True)
        visible = grey + factor(augmentation.saturation) * (visible - grey)
        visible = visible * factor(augmentation.channel_gain, 3)
    mean = visible.mean((1, 2, 3), keepdim=True)
    visible = mean + factor(augmentation.contrast) * (visible - mean)
    visible = (visible * factor(augmentation.gain)).clamp(0, 1)
    reach = 1 + augmentation.gamma
    exponent = _log_uniform(total, 1 / reach, reach, generator)[mine]
    visible = visible ** exponent.view(-1, 1, 1, 1)
    if channels > colours:
        rest = images[:, colours:] * factor(augmentation.gain, channels - colours)
        visible = torch.cat((visible, rest), 1)
    sigma = augmentation.noise * torch.rand((total, 1, 1, 1), generator=generator)[mine]
    noise = torch.randn((total, *visible.shape[1:]), generator=generator)[mine]
    return (visible + sigma * noise).clamp(0, 1)


def _log_uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    draw = torch.rand(count, generator=generator)
    return low * (high / low) ** draw
