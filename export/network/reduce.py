"""Fewer latent channels after training: principal components folded into the network.

The projection to latents is linear (a 1x1 convolution with a bias), so rotating latents onto
their principal axes and leaving out the last ones is another 1x1 convolution of the same kind,
without any further cost; the way back, ``z = V z' + mean``, is a 1x1 convolution with a bias in
front of the decoder. The best linear reconstruction of D numbers from fewer is that of principal
components (Jolliffe, Principal Component Analysis, 2002, chapter 3).
"""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from aeseg_edge.calibration.clusters.curves import Curve
from aeseg_edge.calibration.clusters.kmeans import best_start, rand_index
from aeseg_edge.calibration.clusters.methods import METHODS
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.errors import CalibrationError, UsageError
from aeseg_edge.export.network.autoencoder import Autoencoder, narrow

_log = logging.getLogger(__name__)

TRAINED = 64
"""Latent channels to train with where the number is chosen afterwards."""

EXPLAINED = 0.95
"""Share of the variance that the channels must keep."""

AGREEMENT = 0.9
"""Adjusted Rand index that clusters must reach with those of all channels."""

CRITERION = (
    f"the fewest principal components that keep {EXPLAINED} of the variance of the latents and "
    f"whose clusters agree with those of all channels (adjusted Rand index) by {AGREEMENT}; both "
    "clusterings begin at the same centres, so that chance plays no part"
)

SAMPLES = 20_000
"""Latents that axes and clusters are found on."""

Wanted = int | Literal["auto"]
"""A number of latent channels, or ``auto`` to choose one."""

_LADDER = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class DimensionChoice:
    """How many latent channels are left, with the whole curve.

    ``values`` is every D that was looked at, ascending, the last ``trained``; beside each the share
    of the variance ``explained``, and ``agreement``, the adjusted Rand index with K ``clusters`` of
    all channels. ``automatic``: by ``CRITERION``.
    """

    chosen: int
    trained: int
    values: tuple[int, ...]
    explained: tuple[float, ...]
    agreement: tuple[float, ...]
    clusters: int
    automatic: bool

    def to_json(self) -> dict[str, Any]:
        """Return the curve as JSON types, figures rounded to four decimals."""
        return {
            "chosen": self.chosen,
            "trained": self.trained,
            "criterion": CRITERION if self.automatic else "asked for",
            "clusters": self.clusters,
            "candidates": [
                {
                    "latent_dim": dim,
                    "explained_variance": round(share, 4),
                    "agreement_ari": round(ari, 4),
                }
                for dim, share, ari in zip(self.values, self.explained, self.agreement, strict=True)
            ],
        }

    def curve(self) -> Curve:
        """Give what can be drawn."""
        explained, agreement = "explained variance", "agreement with all channels (ARI)"
        return Curve(
            name="latents",
            title="Latent channels",
            axis="latent channels",
            values=self.values,
            lines={explained: self.explained, agreement: self.agreement},
            chosen=self.chosen,
            thresholds={explained: EXPLAINED, agreement: AGREEMENT} if self.automatic else {},
            data=self.to_json(),
        )


def reduce_latents(
    autoencoder: Autoencoder,
    frames: NDArray[np.uint8],
    wanted: Wanted,
    fit: FitSettings,
) -> tuple[Autoencoder, DimensionChoice]:
    """Leave the D (or ``auto``) principal components of the latents that matter.

    Frames: uint8 [N, H, W, C] at a multiple of the deepest stride. Gives another network, in
    evaluation mode, and how D was found. UsageError if D is not below the present number;
    CalibrationError if latents are too few for K, or not finite.
    """
    full = autoencoder.config.latent_dim
    if wanted != "auto" and not 1 <= wanted <= full:
        raise UsageError(
            f"{wanted} latent channels are not within 1..{full}, the number of the checkpoint",
            fix="Ask for fewer, or train again with --latent-dim.",
        )
    latents = _latents(autoencoder, frames, fit.seed)
    mean, axes, variance = principal_axes(latents)
    choice = _choose(latents - mean, axes, variance, wanted, fit)
    _log.info(
        "latent channels: %d of %d, %.1f %% of the variance",
        choice.chosen,
        full,
        100 * choice.explained[choice.values.index(choice.chosen)],
    )
    return fold(autoencoder, mean, axes[:, : choice.chosen]), choice


def principal_axes(
    latents: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Find the mean [D] of latents [n, D], orthonormal axes [D, D], and the variance along each.

    Axes are columns, the largest variance first; the largest entry of each is positive.
    """
    mean = latents.mean(axis=0, dtype=np.float64)
    variance, axes = np.linalg.eigh(np.cov((latents - mean).astype(np.float64), rowvar=False))
    variance, axes = np.atleast_1d(variance)[::-1], np.atleast_2d(axes)[:, ::-1]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(axes.shape[1])])
    return mean, axes, np.maximum(variance, 0.0)


@torch.no_grad()
def fold(
    autoencoder: Autoencoder,
    mean: NDArray[np.float64],
    axes: NDArray[np.float64],
    back: NDArray[np.float64] | None = None,
) -> Autoencoder:
    """Build other axes of the latents into encoder and decoder of a new network.

    ``axes``, float64 [D, d], has new axes as columns; ``back`` is the way back, ``axes`` itself
    when None, for orthonormal columns. Latents become ``axes' (z - mean)``; what is decoded is
    ``back axes' (z - mean) + mean``: with an exact way back, what was decoded before.
    """
    source = copy.deepcopy(autoencoder).eval()
    weight = source.project.weight.double()[:, :, 0, 0]
    bias = source.project.bias
    offset = torch.zeros(len(weight)) if bias is None else bias
    turn, centre = torch.from_numpy(axes.copy()), torch.from_numpy(mean)
    returned = turn if back is None else torch.from_numpy(back.copy())
    back_weight, back_bias = returned, centre
    if source.config.trained_dim is not None:
        # Reduced before: the way back goes through the latents of that time.
        earlier = source.decoder[0]
        assert isinstance(earlier, nn.Conv2d)
        assert earlier.bias is not None
        there = earlier.weight.double()[:, :, 0, 0]
        back_weight, back_bias = there @ returned, there @ centre + earlier.bias.double()
    narrowed = narrow(source, axes.shape[1])
    expand = narrowed.decoder[0]
    assert isinstance(expand, nn.Conv2d)
    assert expand.bias is not None
    assert narrowed.project.bias is not None
    narrowed.project.weight.copy_((turn.T @ weight).float()[:, :, None, None])
    narrowed.project.bias.copy_((turn.T @ (offset.double() - centre)).float())
    expand.weight.copy_(back_weight.float()[:, :, None, None])
    expand.bias.copy_(back_bias.float())
    return narrowed.eval()


def _choose(
    centred: NDArray[np.float64],
    axes: NDArray[np.float64],
    variance: NDArray[np.float64],
    wanted: Wanted,
    fit: FitSettings,
) -> DimensionChoice:
    full = axes.shape[1]
    values = sorted({dim for dim in (*_LADDER, full) if dim <= full} | {full})
    if wanted != "auto":
        values = sorted({*values, wanted})
    total = float(variance.sum())
    if total <= 0:
        raise CalibrationError("all latents are the same", fix="Train longer, or on other footage.")
    explained = [float(variance[:dim].sum()) / total for dim in values]
    turned = (centred @ axes).astype(np.float32)
    agreement = _agreements(turned, values, fit)
    chosen = full if wanted == "auto" else wanted
    if wanted == "auto":
        good = (
            dim
            for dim, share, ari in zip(values, explained, agreement, strict=True)
            if share >= EXPLAINED and ari >= AGREEMENT
        )
        chosen = next(good, full)
    return DimensionChoice(
        chosen,
        full,
        tuple(values),
        tuple(explained),
        tuple(agreement),
        fit.most_clusters,
        wanted == "auto",
    )


def _agreements(turned: NDArray[np.float32], values: list[int], fit: FitSettings) -> list[float]:
    """Compare the clusters of the first d components with those of all, for each d."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    prepare = METHODS[fit.clustering].prepare
    count = fit.most_clusters
    if len(np.unique(turned, axis=0)) < count:
        raise CalibrationError(
            f"{count} clusters are more than the distinct latents of the footage",
            fix="Give more footage or larger images, or ask for fewer clusters.",
        )
    points = prepare(turned)
    start = best_start(points, count, restarts=min(fit.starts(count), 8), seed=fit.seed)
    # Means of the raw latents of each cluster begin the clustering of what is left of them.
    sums = np.zeros((count, turned.shape[1]))
    np.add.at(sums, start.labels, points)
    counts = np.bincount(start.labels, minlength=count)
    centres = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    found = []
    for dim in values:
        left = prepare(turned[:, :dim])
        begin = prepare(centres[:, :dim])
        with warnings.catch_warnings():
            # One direction has two unit vectors only, fewer than there are clusters.
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels = KMeans(count, init=begin, n_init=1, max_iter=100).fit(left).labels_
        found.append(rand_index(start.labels, labels))
    return found


@torch.no_grad()
def _latents(autoencoder: Autoencoder, frames: NDArray[np.uint8], seed: int) -> NDArray[np.float32]:
    """Draw latents evenly from frames: float32 [n, D]."""
    generator = np.random.default_rng(seed)
    share = -(-SAMPLES // len(frames))
    autoencoder.eval()
    parts = []
    for frame in frames:
        image = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
        flat = autoencoder.encode(image)[0].flatten(1).T.numpy()
        if len(flat) > share:
            flat = flat[np.sort(generator.choice(len(flat), share, replace=False))]
        parts.append(flat)
    latents: NDArray[np.float32] = np.concatenate(parts)
    if not np.isfinite(latents).all():
        raise CalibrationError(
            "the encoder gives latents that are not finite",
            fix="Train again with a lower learning rate.",
        )
    return latents
