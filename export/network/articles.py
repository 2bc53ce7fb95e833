"""The networks of two articles: plain convolutions with max-pooling, mirrored."""

from __future__ import annotations

from torch import nn

from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.network.config import AutoencoderConfig


def build_shallow(config: AutoencoderConfig) -> Autoencoder:
    """Article 1: two 3x3 convolutions with max-pooling, mirrored by transposed ones."""
    trunk = nn.Sequential(
        nn.Conv2d(config.channels, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
    decoder = nn.Sequential(
        nn.ConvTranspose2d(config.latent_dim, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.ConvTranspose2d(64, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.ConvTranspose2d(32, config.channels, 3, padding=1),
    )
    project = nn.Conv2d(64, config.latent_dim, 1)
    return Autoencoder(config, trunk, project, decoder, stride=4, multiple=4, activation="identity")


def build_deep(config: AutoencoderConfig) -> Autoencoder:
    """Article 2: three 3x3 convolutions with max-pooling, mirrored, sigmoid output."""
    widths = (64, 128, 256)
    down: list[nn.Module] = []
    before = config.channels
    for width in widths:
        down += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        before = width
    project = nn.Conv2d(before, config.latent_dim, 1)
    up: list[nn.Module] = []
    before = config.latent_dim
    for width in reversed(widths):
        up += [
            nn.Conv2d(before, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2, mode="nearest"),
        ]
        before = width
    up.append(nn.Conv2d(before, config.channels, 3, padding=1))
    return Autoencoder(
        config,
        nn.Sequential(*down),
        project,
        nn.Sequential(*up),
        stride=8,
        multiple=8,
        activation="sigmoid",
    )
