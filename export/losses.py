"""What training minimises: reconstruction losses, and the seam for others.

An objective turns one batch into one number. ``Reconstruction`` is the only one here;
a frozen teacher's features or labels enter as other objectives, which find what belongs
to each crop through ``Batch.indices`` (which frame) and ``Batch.windows`` (which part).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from aeseg_edge.errors import UsageError

from .augment import Windows
from .autoencoder import Autoencoder

PixelLoss = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target), both float32 [N, C, H, W] -> float32 []."""


@dataclass(frozen=True)
class Batch:
    """One step's images.

    Attributes:
        inputs: float32 [N, C, h, w] in 0..1: what the encoder sees, colour changed and noisy.
        targets: float32 [N, C, h, w] in 0..1: the same crops, clean.
        indices: int64 [N]: which training frame (or held-out frame) each image is from.
        windows: Which part of its frame each image shows, and whether it is mirrored;
            None where every image is a whole frame as it is.
        held_out: Whether ``indices`` count held-out frames, not training frames.
    """

    inputs: Tensor
    targets: Tensor
    indices: Tensor
    windows: Windows | None
    held_out: bool = False


class Objective(Protocol):
    """What training minimises."""

    def prepare(self, autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> None:
        """Look at the footage once, before the first step of a fresh training.

        Args:
            autoencoder: May be changed in place.
            frames: uint8 [N, H, W, C], the training frames.
        """
        ...

    def __call__(self, autoencoder: Autoencoder, batch: Batch) -> Tensor:
        """Return the loss of a batch, float32 [], with its gradient."""
        ...


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all values: the log-likelihood of Gaussian noise.

    Source: Hinton and Salakhutdinov, Reducing the Dimensionality of Data with Neural
    Networks, Science 313 (2006), for autoencoders.
    """
    return functional.mse_loss(prediction, target)


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over all values: sharper edges than squared error.

    Source: Zhao et al., Loss Functions for Image Restoration with Neural Networks,
    IEEE Transactions on Computational Imaging 3(1), 2017.
    """
    return functional.l1_loss(prediction, target)


def bce_with_logits(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy, with pixel values taken as probabilities.

    Even a perfect reconstruction keeps the entropy of the target (up to ln 2), so the
    curve flattens well above zero.

    Source: Vincent et al., Extracting and Composing Robust Features with Denoising
    Autoencoders, ICML 2008, equation 4.

    Args:
        prediction: float32 [N, C, H, W], before the sigmoid (logits).
        target: float32 [N, C, H, W] in 0..1.

    Returns:
        float32 [], nats a value.
    """
    return functional.binary_cross_entropy_with_logits(prediction, target)


LOSSES: dict[str, PixelLoss] = {"mse": mse, "l1": l1, "bce": bce_with_logits}
"""Names for ``--loss``. ``bce`` takes logits, the others pictures."""


@dataclass(frozen=True)
class Reconstruction:
    """Draw the clean crop from the changed one (a denoising autoencoder).

    Where the autoencoder has an appearance head, its loss is added.

    Attributes:
        loss: A key of ``LOSSES``.
    """

    loss: str = "l1"

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        if self.loss not in LOSSES:
            raise UsageError(
                f"loss {self.loss!r} is unknown", fix=f"Use one of {', '.join(LOSSES)}."
            )

    def check(self, autoencoder: Autoencoder) -> None:
        """Refuse a loss that the decoder's output does not suit.

        Raises:
            UsageError: For ``bce`` with a decoder that does not end in a sigmoid.
        """
        if self.loss == "bce" and autoencoder.decoder_activation != "sigmoid":
            raise UsageError(
                f"loss bce needs a decoder with sigmoid output, and that of "
                f"{autoencoder.config.arch} is {autoencoder.decoder_activation}",
                fix="Use --loss l1 or mse, or --arch deep.",
            )

    def prepare(self, autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> None:
        """Scale the appearance descriptors to the footage."""
        if autoencoder.appearance is not None:
            autoencoder.appearance.fit(frames)

    def __call__(self, autoencoder: Autoencoder, batch: Batch) -> Tensor:
        """Return the loss of a batch, float32 []."""
        latents = autoencoder.encode(batch.inputs)
        drawn = autoencoder.logits(latents) if self.loss == "bce" else autoencoder.decode(latents)
        loss = LOSSES[self.loss](drawn, batch.targets)
        if autoencoder.appearance is not None:
            loss = loss + autoencoder.appearance.loss(latents, batch.targets, batch.windows)
        return loss
