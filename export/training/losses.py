"""What training minimises: reconstruction losses, and the seam for others.

An objective turns one batch into one number: ``Reconstruction`` of pixels, or ``Taught`` by a
frozen network's features. What belongs to each crop is found through ``Batch.indices`` (which
frame) and ``Batch.windows`` (which part).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from aeseg_edge.errors import UsageError
from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.network.windows import Windows
from aeseg_edge.export.training.augment import Augmentation
from aeseg_edge.export.training.teacher import Targets

PixelLoss = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target), both float32 [N, C, H, W] -> float32 []."""


@dataclass(frozen=True)
class Batch:
    """One step's images: what the encoder sees, changed and noisy, and clean ``targets``, 0..1.

    ``indices``, int64 [N], say which training (or held-out) frame each is from; ``windows`` which
    part of it, None where every image is a whole frame as it is.
    """

    inputs: Tensor
    targets: Tensor
    indices: Tensor
    windows: Windows | None
    held_out: bool = False


class Objective(Protocol):
    """What training minimises."""

    def prepare(self, autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> None:
        """Look at training frames, uint8 [N, H, W, C], before a fresh training's first step."""
        ...

    def __call__(self, autoencoder: Autoencoder, batch: Batch) -> Tensor:
        """Return the loss of a batch, float32 [], with its gradient."""
        ...


@runtime_checkable
class LabelledObjective(Objective, Protocol):
    """An objective that reads labels, which are part of what is trained."""

    @property
    def augmentation(self) -> Augmentation:
        """How far images and labels are changed together."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what must not change between the runs of one training, as JSON has it."""
        ...

    def take_miou(self) -> float | None:
        """Return the mIoU (0..1) over the held-out batches since the last call."""
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
    """Mean binary cross-entropy of logits, with pixel values taken as probabilities; nats a value.

    Even a perfect reconstruction keeps the entropy of the target (up to ln 2), so the curve
    flattens well above zero. Source: Vincent et al., Extracting and Composing Robust Features with
    Denoising Autoencoders, ICML 2008, equation 4.
    """
    return functional.binary_cross_entropy_with_logits(prediction, target)


LOSSES: dict[str, PixelLoss] = {"mse": mse, "l1": l1, "bce": bce_with_logits}
"""Names for ``--loss``. ``bce`` takes logits, the others pictures."""


def check_loss(loss: str, autoencoder: Autoencoder) -> None:
    """Refuse ``bce`` with a decoder that does not end in a sigmoid."""
    if loss == "bce" and autoencoder.decoder_activation != "sigmoid":
        raise UsageError(
            f"loss bce needs a decoder with sigmoid output, and that of "
            f"{autoencoder.config.arch} is {autoencoder.decoder_activation}",
            fix="Use --loss l1 or mse, or --arch deep.",
        )


def pixel_loss(loss: str, autoencoder: Autoencoder, latents: Tensor, target: Tensor) -> Tensor:
    """Compare what is drawn of latents with the clean picture, both float32 [N, ., H, W]."""
    drawn = autoencoder.logits(latents) if loss == "bce" else autoencoder.decode(latents)
    return LOSSES[loss](drawn, target)


@dataclass(frozen=True)
class Reconstruction:
    """Draw the clean crop from the changed one (a denoising autoencoder).

    Where the autoencoder has an appearance head, its loss is added.
    """

    loss: str = "l1"

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        if self.loss not in LOSSES:
            raise UsageError(
                f"loss {self.loss!r} is unknown", fix=f"Use one of {', '.join(LOSSES)}."
            )

    def check(self, autoencoder: Autoencoder) -> None:
        """Refuse a loss that the decoder's output does not suit; see ``check_loss``."""
        check_loss(self.loss, autoencoder)

    def prepare(self, autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> None:
        """Scale the appearance descriptors to the footage."""
        if autoencoder.appearance is not None:
            autoencoder.appearance.fit(frames)

    def __call__(self, autoencoder: Autoencoder, batch: Batch) -> Tensor:
        """Return the loss of a batch, float32 []."""
        latents = autoencoder.encode(batch.inputs)
        loss = pixel_loss(self.loss, autoencoder, latents, batch.targets)
        if autoencoder.appearance is not None:
            loss = loss + autoencoder.appearance.loss(latents, batch.targets, batch.windows)
        return loss


@dataclass(frozen=True)
class Taught:
    """Give back what a teacher saw, and draw the clean crop (a feature autoencoder).

    ``1 - cos(latents, target) + pixel_weight * pixel loss``, with latents averaged over the cells
    of the teacher's grid. Latents are compared directly, so their directions are the teacher's
    principal components, and clusters of directions are clusters of what it sees.
    """

    targets: Targets
    loss: str = "l1"
    pixel_weight: float = 0.5

    def check(self, autoencoder: Autoencoder) -> None:
        """Refuse a loss that the decoder's output does not suit; see ``check_loss``."""
        check_loss(self.loss, autoencoder)

    def prepare(self, autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> None:
        """Refuse targets of other frames or another latent dimension."""
        count, dim = self.targets.frames.shape[:2]
        if count != len(frames) or dim != autoencoder.config.latent_dim:
            raise UsageError(
                f"the teacher's targets are for {count} frames and {dim} latent channels, not "
                f"for {len(frames)} and {autoencoder.config.latent_dim}",
                fix="Make them again from these frames.",
            )

    def __call__(self, autoencoder: Autoencoder, batch: Batch) -> Tensor:
        """Return the loss of a batch, float32 []."""
        latents = autoencoder.encode(batch.inputs)
        pixels = pixel_loss(self.loss, autoencoder, latents, batch.targets)
        maps = self.targets.held_out if batch.held_out else self.targets.frames
        wanted = torch.from_numpy(maps[batch.indices.cpu().numpy()]).to(latents)
        cells = self.targets.grid // autoencoder.stride
        pooled = functional.avg_pool2d(latents, cells) if cells > 1 else latents
        size = (pooled.shape[2], pooled.shape[3])
        if batch.windows is not None:
            wanted = batch.windows.cut(wanted, size)
        elif wanted.shape[2:] != pooled.shape[2:]:
            wanted = functional.interpolate(wanted, size, mode="bilinear", align_corners=False)
        features = 1 - functional.cosine_similarity(pooled, wanted, dim=1).mean()
        return features + self.pixel_weight * pixels
