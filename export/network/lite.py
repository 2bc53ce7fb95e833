"""EfficientNet-Lite0 stages 1 to 5 with context, stride 8; best with its teacher.

The side that is padded alternates, so features stay centred on the pixels that they describe.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.network.blocks import MEAN, STD, double, small_decoder, unit
from aeseg_edge.export.network.config import AutoencoderConfig
from aeseg_edge.export.network.efficientnet import Features, start_from_imagenet


class LiteTrunk(nn.Module):
    """EfficientNet-Lite0 to 1/16, context at 1/32, a neck back to 1/8."""

    def __init__(self, channels: int, *, pretrained: bool) -> None:
        super().__init__()
        self.features = Features(5, channels=channels)
        if pretrained:
            start_from_imagenet(self.features, channels, mean=MEAN, std=STD)
            if channels == 3:
                # Edges and colours are the same everywhere, and most of a step's time would
                # go into changing them at the highest resolution.
                for module in (self.features.stem, *self.features.stages[:2]):
                    module.requires_grad_(False)
        self.context = nn.Sequential(unit(112, 96, 4, 2), unit(96, 96))
        self.middle = nn.Conv2d(112, 96, 1)
        self.mix_deep = unit(96, 96)
        self.lateral_deep = nn.Conv2d(96, 64, 1)
        self.lateral = nn.Conv2d(40, 64, 1)
        self.mix = unit(64, 64)

    def forward(self, images: Tensor) -> Tensor:
        """Turn normalised images [N, C, H, W] into features [N, 64, H/8, W/8]."""
        _, _, fine, _, deep = self.features(images)
        middle = self.mix_deep(self.middle(deep) + double(self.context(deep)))
        joined = self.lateral(fine) + double(self.lateral_deep(middle))
        features: Tensor = self.mix(functional.relu(joined))
        return features


def build(config: AutoencoderConfig, *, pretrained: bool) -> Autoencoder:
    """Build it, with ImageNet's weights in its trunk or fresh ones."""
    trunk = LiteTrunk(config.channels, pretrained=pretrained)
    return Autoencoder(
        config,
        trunk,
        nn.Conv2d(64, config.latent_dim, 1),
        small_decoder(config.latent_dim, config.channels),
        stride=8,
        multiple=32,
        activation="identity",
        pretrainable=trunk.features,
        pretrained=pretrained,
    )
