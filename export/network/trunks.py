"""The trunks of `edge` and `lite`: from a normalised image to features at stride 8.

Only even kernels and pooling windows change the resolution (`lite` alternates the side that
is padded), so features stay centred on the pixels that they describe.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from aeseg_edge.export.network.efficientnet import Features, start_from_imagenet

MEAN = 128 / 255
"""What is subtracted from an image in 0..1. A byte minus 128 is an int8, so the first
convolution of an INT8 graph reads the camera's own bytes, exactly."""

STD = 64 / 255
"""What the centred image is divided by: near the spread of natural images."""


def unit(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU; odd and even kernels are padded alike on all sides.

    Args:
        before: Input channels.
        after: Output channels.
        kernel: Odd with stride 1, even with an even stride.
        stride: float [N, before, H, W] becomes [N, after, H / stride, W / stride].
    """
    padding = (kernel - stride + 1) // 2
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


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
        middle = self.mix_deep(middle + _double(self.context(middle)))
        joined = self.lateral(fine) + _double(self.lateral_deep(middle))
        features: Tensor = self.mix(functional.relu(joined))
        return features


class LiteTrunk(nn.Module):
    """EfficientNet-Lite0 to 1/16, context at 1/32, a neck back to 1/8.

    Args:
        channels: Image channels C.
        pretrained: Start from the weights that were learned on ImageNet.
    """

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
        middle = self.mix_deep(self.middle(deep) + _double(self.context(deep)))
        joined = self.lateral(fine) + _double(self.lateral_deep(middle))
        features: Tensor = self.mix(functional.relu(joined))
        return features


def _double(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")
