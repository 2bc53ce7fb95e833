"""Autoencoders: the interface that all architectures share, and building them.

An encoder turns an image into latents at stride r, a decoder draws the image from
them. Every encoder here keeps its latents centred on the pixels that they describe:
latent (i, j) lies at image position ``r * i + (r - 1) / 2``, which is what the
half-pixel upsampling of the deployed graph assumes. Pooling windows and even kernels
(2x2, 4x4, 6x6) do that; a 3x3 convolution of stride 2 with symmetric padding would
shift everything by half a pixel of its input at every stage.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aeseg_edge.errors import UsageError
from aeseg_edge.export.network.appearance import AppearanceHead
from aeseg_edge.export.network.blocks import MEAN as MEAN
from aeseg_edge.export.network.blocks import STD as STD
from aeseg_edge.export.network.blocks import unit
from aeseg_edge.export.network.catalogue import ARCHITECTURES
from aeseg_edge.export.network.config import AutoencoderConfig

Activation = Literal["sigmoid", "identity"]


class Autoencoder(nn.Module):
    """An encoder and a decoder behind one interface.

    Images are float32 [N, C, H, W] in 0..1, channels in the frame's own order (BGR).
    H and W must be multiples of ``multiple``.

    Args:
        config: Architecture and sizes.
        trunk: float32 [N, C, H, W], normalised -> features [N, F, H/r, W/r].
        project: 1x1 convolution from F features to D latents, with a bias; more of it where
            there is a supervised head.
        decoder: [N, D, H/r, W/r] -> [N, C, H, W], before the activation.
        stride: Encoder stride r.
        multiple: The deepest stride inside the encoder.
        activation: What turns the decoder's logits into an image.
        appearance: A second thing that latents have to tell in training; None for none.
        pretrainable: The part of the trunk whose weights can come from elsewhere.
        pretrained: Whether they do: it learns more slowly then, and its batch normalisation
            keeps its statistics.

    Attributes:
        arithmetic: float32, or bfloat16 for autocast while training. Images, latents and
            weights are float32 either way.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: AutoencoderConfig,
        trunk: nn.Module,
        project: nn.Conv2d | nn.Sequential,
        decoder: nn.Sequential,
        *,
        stride: int,
        multiple: int,
        activation: Activation,
        appearance: AppearanceHead | None = None,
        pretrainable: nn.Module | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        # A 1x1 convolution; with a supervised head behind it, a Sequential of both.
        self.project: Any = project
        self.decoder = decoder
        self.stride = stride
        self.multiple = multiple
        self.decoder_activation = activation
        self.appearance = appearance
        self.arithmetic = torch.float32
        # In a list, so that its weights are not saved a second time under another name.
        self._pretrainable = [] if pretrainable is None else [pretrainable]
        self._pretrained = self._pretrainable if pretrained else []
        # (x - 128) / 64 for bytes x: int8 holds it without any loss, see MEAN.
        self.register_buffer("mean", torch.full((1, config.channels, 1, 1), MEAN))
        self.register_buffer("std", torch.full((1, config.channels, 1, 1), STD))

    def pretrained_weights(self) -> list[nn.Parameter]:
        """Weights that were learned elsewhere, and that training changes more slowly."""
        return [weight for module in self._pretrained for weight in module.parameters()]

    def hold_back_trunk(self) -> None:
        """Let the pretrainable part of a trained trunk learn slowly, with its own statistics.

        Architectures without such a part stay as they are.
        """
        self._pretrained = self._pretrainable

    def _autocast(self, like: Tensor) -> torch.autocast:
        low = self.arithmetic != torch.float32
        return torch.autocast(like.device.type, dtype=torch.bfloat16, enabled=low)

    def train(self, mode: bool = True) -> Autoencoder:
        """Switch to training or evaluation; statistics learned elsewhere stay as they are."""
        super().train(mode)
        for module in self._pretrained:
            module.eval()
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Turn images into latents, float32 [N, D, H/r, W/r]."""
        with self._autocast(images):
            latents: Tensor = self.project(self.trunk((images - self.mean) / self.std))
        return latents.float()

    def logits(self, latents: Tensor) -> Tensor:
        """Run the decoder without its activation: what binary cross-entropy with logits takes."""
        with self._autocast(latents):
            drawn: Tensor = self.decoder(latents)
        return drawn.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Draw images, float32 [N, C, H, W] in about 0..1, from latents."""
        logits = self.logits(latents)
        return torch.sigmoid(logits) if self.decoder_activation == "sigmoid" else logits

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give the latents of images, and their reconstruction."""
        latents = self.encode(images)
        return latents, self.decode(latents)


def build_autoencoder(
    config: AutoencoderConfig, *, seed: int | None = None, pretrained: bool = False
) -> Autoencoder:
    """Build an autoencoder with fresh weights, in training mode.

    ``seed`` makes them repeatable; torch's global generator is left as it was. With ``pretrained``
    the trunk starts from the weights of its ``origin``; UsageError where it has none.
    """
    row = ARCHITECTURES[config.arch]
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if pretrained and not row.origin:
            others = " or ".join(name for name, each in ARCHITECTURES.items() if each.origin)
            raise UsageError(
                f"there are no pretrained weights for {config.arch}",
                fix=f"Use --arch {others}, or train from scratch.",
            )
        build = functools.partial(
            resolve(row.builder), **({"pretrained": pretrained} if row.origin else {})
        )
        plain = replace(config, classes=0, head=0)
        if config.trained_dim is None:
            built: Autoencoder = build(plain)
        else:
            wide = replace(plain, latent_dim=config.trained_dim, trained_dim=None)
            built = narrow(build(wide), config.latent_dim)
        return add_class_head(built, config.classes, config.head) if config.classes else built


def resolve(reference: str) -> Any:
    """Import what ``module:name`` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def origin_of(arch: str) -> dict[str, str]:
    """Give what is known of the weights that a trunk can start from."""
    return dict(resolve(ARCHITECTURES[arch].origin))


def narrow(autoencoder: Autoencoder, latent_dim: int) -> Autoencoder:
    """Give an autoencoder fewer latent channels; the weights between are still to be set.

    Of the parts of the old one: trunk, a new projection, and a decoder that starts with a 1x1
    convolution (with bias) back to as many channels as were trained. What else latents had to tell
    in training is left out.
    """
    config = autoencoder.config
    trained = config.trained_dim or config.latent_dim
    decoder = autoencoder.decoder if config.trained_dim is None else autoencoder.decoder[1]
    return Autoencoder(
        replace(config, latent_dim=latent_dim, trained_dim=trained),
        autoencoder.trunk,
        nn.Conv2d(autoencoder.project.in_channels, latent_dim, 1),
        nn.Sequential(nn.Conv2d(latent_dim, trained, 1), decoder),
        stride=autoencoder.stride,
        multiple=autoencoder.multiple,
        activation=autoencoder.decoder_activation,
        pretrainable=next(iter(autoencoder._pretrainable), None),
    )


def add_class_head(autoencoder: Autoencoder, classes: int, channels: int) -> Autoencoder:
    """Put a fresh supervised head behind the encoder, in the decoder's place.

    Encoder -> 3x3 convolution to ``channels``, batch normalisation, ReLU -> per-pixel fully
    connected layer (a 1x1 convolution). The first part joins the encoder, so ``encode`` gives its
    features; the last takes the decoder's place, so ``logits`` gives class scores [N, classes, h,
    w], and its weights are a codebook. A head that is there already is replaced.
    """
    config = autoencoder.config
    project = autoencoder.project[0] if config.classes else autoencoder.project
    joined = nn.Sequential(project, *unit(config.latent_dim, channels))
    return Autoencoder(
        replace(config, classes=classes, head=channels),
        autoencoder.trunk,
        joined,
        nn.Sequential(nn.Conv2d(channels, classes, 1)),
        stride=autoencoder.stride,
        multiple=autoencoder.multiple,
        activation="identity",
        pretrainable=next(iter(autoencoder._pretrainable), None),
        pretrained=bool(autoencoder._pretrained),
    )
