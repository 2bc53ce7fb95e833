"""What rebuilds a network. Torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass

from aeseg_edge.errors import UsageError
from aeseg_edge.export.network.catalogue import ARCHITECTURES, DEFAULT_ARCHITECTURE
from aeseg_edge.support.options import option, positive

CHANNELS = (1, 3, 4)
"""Channels of pictures that ``aeseg train`` takes by number."""

_USUAL = ARCHITECTURES[DEFAULT_ARCHITECTURE]


def dimension(text: str) -> int | str:
    """Parse a number of latent channels, or ``auto``."""
    return text if text == "auto" else positive(text)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Everything that rebuilds an autoencoder before its weights are loaded.

    Attributes:
        arch: A key of ``ARCHITECTURES``.
        latent_dim: Latent channels D, 1..1024: how fine the segmentation can be.
        channels: Image channels C, 1..16.
        trained_dim: Latent channels in training, where they were reduced to ``latent_dim``
            afterwards (see dimension.py); the decoder then starts with the way back.
        classes: Classes of a supervised head (see ``add_class_head``); 0 for none.
        head: Channels of that head's convolution.
    """

    arch: str = option(
        DEFAULT_ARCHITECTURE,
        choices=tuple(ARCHITECTURES),
        help="; ".join(f"{name}: {row.help}" for name, row in ARCHITECTURES.items())
        + " (default {default})",
    )
    latent_dim: int = option(
        _USUAL.latent_dim,
        parse=dimension,
        metavar="D|auto",
        help="latent channels: how fine the segmentation can be (default {default}); auto trains "
        "64 and keeps as many principal components as variance and clusters need",
        shown=f"{_USUAL.latent_dim}, or {_USUAL.taught_dim} with a teacher",
    )
    channels: int = option(
        3,
        choices=CHANNELS,
        parse=int,
        help="of the pictures (default {default})",
        shown="3, or those of --modalities",
    )
    trained_dim: int | None = None
    classes: int = 0
    head: int = 0

    def __post_init__(self) -> None:
        """Refuse values no network can be built from."""
        if self.arch not in ARCHITECTURES:
            raise UsageError(
                f"architecture {self.arch!r} is unknown",
                fix=f"Use one of {', '.join(sorted(ARCHITECTURES))}.",
            )
        if not 1 <= self.latent_dim <= 1024:
            raise UsageError(
                f"latent dimension {self.latent_dim} is not within 1..1024",
                fix="Use 16 to 64 for most footage.",
            )
        if not self.latent_dim <= (self.trained_dim or self.latent_dim) <= 1024:
            raise UsageError(
                f"{self.latent_dim} latent channels are no reduction of {self.trained_dim}",
                fix="Reduce to fewer channels than were trained.",
            )
        if not 1 <= self.channels <= 16:
            raise UsageError(
                f"{self.channels} image channels are not within 1..16",
                fix="Use 3 for colour, 1 for grey, 4 for colour and thermal.",
            )
        if (self.classes, self.head) != (0, 0) and not (
            2 <= self.classes <= 255 and 1 <= self.head <= 1024
        ):
            raise UsageError(
                f"a head of {self.head} channels cannot tell {self.classes} classes apart",
                fix="Use 2 to 255 classes and 1 to 1024 channels.",
            )

    @property
    def encoded_dim(self) -> int:
        """Channels that the deployed encoder gives: the head's, where there is one."""
        return self.head or self.latent_dim
