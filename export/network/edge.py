"""Ours, the fast one: a dense 3x3 trunk with context, stride 8."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from aeseg_edge.export.network.appearance import AppearanceHead
from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.network.blocks import double, small_decoder, unit
from aeseg_edge.export.network.config import AutoencoderConfig


class EdgeTrunk(nn.Module):
    """Ours: a dense convolution trunk to 1/16, context at 1/32, features at 1/8.

    Only convolutions, ReLU, additions and nearest upsampling: each keeps its accuracy in
    int8, and none is depthwise, which int8 tensor cores and the int8 kernels of CPUs
    handle badly. Channels are multiples of 32.

    Args:
        channels: Image channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = unit(channels, 32, kernel=6, stride=4)
        self.quarter = unit(32, 32)
        self.eighth = nn.Sequential(unit(32, 64, 4, 2), unit(64, 64), unit(64, 64))
        self.sixteenth = nn.Sequential(unit(64, 96, 4, 2), unit(96, 96))
        self.context = nn.Sequential(unit(96, 96, 4, 2), unit(96, 96))
        self.lateral_deep = nn.Conv2d(96, 64, 1)
        self.lateral = nn.Conv2d(64, 64, 1)
        self.mix_deep = unit(96, 96)
        self.mix = unit(64, 64)

    def forward(self, images: Tensor) -> Tensor:
        """Turn normalised images [N, C, H, W] into features [N, 64, H/8, W/8]."""
        fine = self.eighth(self.quarter(self.stem(images)))
        middle = self.sixteenth(fine)
        middle = self.mix_deep(middle + double(self.context(middle)))
        joined = self.lateral(fine) + double(self.lateral_deep(middle))
        features: Tensor = self.mix(functional.relu(joined))
        return features


def build(config: AutoencoderConfig) -> Autoencoder:
    """Build it with fresh weights."""
    return Autoencoder(
        config,
        EdgeTrunk(config.channels),
        nn.Conv2d(64, config.latent_dim, 1),
        small_decoder(config.latent_dim, config.channels),
        stride=8,
        multiple=32,
        activation="identity",
        appearance=AppearanceHead(config.latent_dim, config.channels, 8),
    )
