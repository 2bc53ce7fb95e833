"""What should not change when a frame is seen another way, measured and evened out.

The same wall, larger, elsewhere in the frame, mirrored or darker, is the same wall. How much
features differ between two views of one frame, and in which directions, is their covariance
``N`` over pairs of views. K-means follows the directions of largest variance, and in features of
a network many of these only say where and how large a thing is seen. Multiplying by
``(N + e I)^(-1/2)`` makes all directions equally steady, so what differs from thing to thing
stands out. No label is used: two views of one frame are all it takes.

Source: within-class covariance normalisation (Hatch, Kajarekar and Stolcke, Interspeech 2006),
with the views of one place as the class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.network.reduce import fold
from aeseg_edge.export.training.augment import Augmentation, disturb, draw_windows
from aeseg_edge.support.evenly import evenly

VIEWS = Augmentation(zoom=(1 / 3, 1 / 1.2))
"""How another view differs: 1.2 to 3 times larger, elsewhere, other colours, mirrored or not."""

PLACES = Augmentation(
    zoom=(1 / 3, 1 / 1.2), gain=0, contrast=0, saturation=0, channel_gain=0, gamma=0, noise=0
)
"""The same in its own colours: without a teacher colour is most of what is known."""

FRAMES = 64
"""Frames that are looked at twice."""

RIDGE = 1.0
"""The least that a direction is taken to differ by, as a share of the mean over directions."""


@torch.no_grad()
def view_covariance(
    look: Callable[[Tensor], Tensor],
    frames: NDArray[np.uint8],
    *,
    views: Augmentation = VIEWS,
    seed: int = 0,
    batch: int = 4,
) -> Tensor:
    """Measure how features differ between two views of the same places: float64 [F, F].

    The mean outer product of differences of ``look(images)``, float32 [N, F, h, w], over at most
    ``FRAMES`` evenly chosen frames.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = frames[evenly(len(frames), FRAMES)]
    count = len(chosen)
    size = (chosen.shape[1], chosen.shape[2])
    total: Tensor | None = None
    places = 0
    for start in range(0, count, batch):
        part = torch.from_numpy(chosen[start : start + batch])
        images = part.permute(0, 3, 1, 2).float().div_(255)
        windows = draw_windows(len(images), size, size, generator, views)
        other = look(disturb(windows.cut(images, size), views, generator))
        usual = windows.cut(look(images), (other.shape[2], other.shape[3]))
        flat = (other - usual).permute(0, 2, 3, 1).flatten(0, 2).double()
        product = flat.T @ flat
        total = product if total is None else total + product
        places += len(flat)
    assert total is not None
    return total / places


def evened(covariance: Tensor, ridge: float = RIDGE) -> Tensor:
    """Give the matrix that makes all directions equally steady, float64 [F, F].

    Symmetric and positive definite, the mean of its eigenvalues one; the identity where nothing
    differs. A larger ``ridge``, a share of the mean variance, changes less.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    mean = values.mean()
    if not mean > 0:
        return torch.eye(len(values), dtype=torch.float64)
    scale = (values + ridge * mean) ** -0.5
    even: Tensor = (vectors * (scale / scale.mean())) @ vectors.T
    return even


@torch.no_grad()
def even_latents(autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> Autoencoder:
    """Make all directions of a trained network's latents equally steady; gives another network.

    The matrix goes into the projection and its inverse in front of the decoder, so nothing is
    slower and the decoder draws what it drew before.
    """
    autoencoder.eval()

    def directions(images: Tensor) -> Tensor:
        return functional.normalize(autoencoder.encode(images), dim=1)

    matrix = evened(view_covariance(directions, frames, views=PLACES)).numpy()
    return fold(autoencoder, np.zeros(len(matrix)), matrix, np.linalg.inv(matrix))
