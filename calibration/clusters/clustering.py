"""What a clustering is, and what every way of clustering has to answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Clustering:
    """What was found.

    Attributes:
        centres: float32 [K, D], the largest cluster first; the means of a mixture.
        shares: float64 [K], share of the samples in each cluster.
        inertia: Mean squared distance of a sample to its centre, in latent units.
        method: As a bundle records it: a key of ``METHODS``, with the covariance of a mixture.
        stability: Mean adjusted Rand index between the chosen start and the others: 1 means
            that every start finds the same clusters. None with one start.
        weights: float32 [K, 2D] of a mixture's scores; None where the nearest centre wins.
        bias: float32 [K] beside them.
        converged: False where a mixture had not come to rest.
    """

    centres: NDArray[np.float32]
    shares: NDArray[np.float64]
    inertia: float
    stability: float | None
    method: str = ""
    weights: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    converged: bool = True

    def assign(self, latents: NDArray[np.float32]) -> NDArray[np.int64]:
        """Give each latent's cluster, as the codebook does: float32 [n, D] -> int64 [n]."""
        if self.weights is None or self.bias is None:
            centres = self.centres
            scores = latents @ centres.T - 0.5 * (centres * centres).sum(axis=1)
        else:
            scores = squared(latents) @ self.weights.T + self.bias
        return np.asarray(scores.argmax(axis=1), np.int64)


class Method:
    """A way of clustering: one subclass, and one row of ``METHODS``.

    Attributes:
        help: One line for people.
        measure: Distance of a latent to its centre, see ``bundle.drift.MEASURES``; ``cosine``
            says that centres are directions.
        covariances: What it can be asked for; the one taken is part of the recorded name.
    """

    help = ""
    measure = "euclidean"
    covariances: tuple[str, ...] = ()

    @property
    def for_regions(self) -> Method:
        """What finds the fine clusters that regions are made of."""
        return self

    def prepare(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn latents, float32 [n, D], into the points that distances are taken between."""
        return latents

    def fit(
        self,
        points: NDArray[np.float32],
        clusters: int,
        *,
        covariance: str,
        restarts: int,
        seed: int,
    ) -> tuple[Clustering, NDArray[np.int64]]:
        """Find K clusters of prepared points, float32 [n, D], at least K of them distinct.

        The best of so many starts, in any order, with shares and name still to be filled in, and
        the cluster of each point.
        """
        raise NotImplementedError


def reordered(clustering: Clustering, order: NDArray[np.integer]) -> Clustering:
    """Give the clusters other numbers: cluster i becomes what was cluster ``order[i]``."""
    return replace(
        clustering,
        centres=clustering.centres[order],
        shares=clustering.shares[order],
        weights=None if clustering.weights is None else clustering.weights[order],
        bias=None if clustering.bias is None else clustering.bias[order],
    )


def unit(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale latents, float32 [n, D], to unit length; zeros stay zeros."""
    norms = np.linalg.norm(latents, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (latents / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled


def squared(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give ``phi(z) = [z, z * z]``, float32 [n, 2D], which a codebook's scores are affine in."""
    return np.concatenate([latents, latents * latents], axis=1)
