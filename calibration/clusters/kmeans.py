"""K-means and spherical K-means: where they begin, and which of many beginnings is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.calibration.clusters.clustering import Clustering, Method, unit
from aeseg_edge.support.require import require

RESTARTS = 16

MANY = 32
"""Clusters beyond which starts are fewer: each costs more, and none stands out."""

POLISHED = 6
"""Of the starts, the best so many go on with all vectors."""


@dataclass(frozen=True)
class Start:
    """The start that was kept: centres float32 [K, D], and the nearest of each vector, int64 [n].

    ``agreement`` is the mean adjusted Rand index with the other starts; None with one.
    """

    centres: NDArray[np.float32]
    labels: NDArray[np.int64]
    inertia: float
    agreement: float | None
    tried: int

    def clustering(self, centres: NDArray[np.float32]) -> Clustering:
        """Give the clusters with these centres, float32 [K, D]; shares are still to be counted."""
        return Clustering(centres, np.zeros(len(centres)), self.inertia, self.agreement)


def best_start(
    points: NDArray[np.float32], clusters: int, *, restarts: int = RESTARTS, seed: int = 0
) -> Start:
    """Run K-means from many starts and keep the one with the lowest inertia.

    k-means++ starts (Arthur and Vassilvitskii, 2007) and Lloyd iterations find one of many local
    minima, and a mean over few starts differs from seed to seed. Most of the way is gone on a part
    of the vectors, which is cheap; the best few then settle on all of them.
    """
    cluster = require("sklearn.cluster")
    restarts = max(1, restarts)
    screen = points
    if restarts > 1 and len(points) > screened(clusters):
        chosen = np.random.default_rng(seed).choice(len(points), screened(clusters), replace=False)
        screen = points[np.sort(chosen)]
        if len(np.unique(screen, axis=0)) < clusters:
            screen = points
    fits = []
    for restart in range(restarts):
        fit = cluster.KMeans(
            clusters, init="k-means++", n_init=1, random_state=seed * 1000 + restart
        )
        fits.append(fit.fit(screen))
    fits.sort(key=lambda fit: float(fit.inertia_))
    others = [rand_index(fits[0].labels_, fit.labels_) for fit in fits[1:]]
    best = fits[0]
    if screen is not points:
        polished = [
            cluster.KMeans(clusters, init=fit.cluster_centers_, n_init=1).fit(points)
            for fit in fits[: min(POLISHED, 1 + restarts // 2)]
        ]
        best = min(polished, key=lambda fit: float(fit.inertia_))
    return Start(
        centres=np.asarray(best.cluster_centers_, np.float32),
        labels=np.asarray(best.labels_, np.int64),
        inertia=float(best.inertia_) / len(points),
        agreement=float(np.mean(others)) if others else None,
        tried=restarts,
    )


def screened(clusters: int) -> int:
    """Give how many vectors the first iterations see, for K clusters."""
    return 20_000 + 50 * clusters


def rand_index(first: NDArray[np.integer], second: NDArray[np.integer]) -> float:
    """Adjusted Rand index of two labellings of the same things, integers [n]."""
    return float(require("sklearn.metrics").adjusted_rand_score(first, second))


class KMeans(Method):
    """The centres of the best of many starts; the nearest one wins."""

    help = "by nearest centre"

    def fit(
        self,
        points: NDArray[np.float32],
        clusters: int,
        *,
        covariance: str,
        restarts: int,
        seed: int,
    ) -> tuple[Clustering, NDArray[np.int64]]:
        """See ``Method.fit``."""
        start = best_start(points, clusters, restarts=restarts, seed=seed)
        return start.clustering(start.centres), start.labels


class Spherical(Method):
    """K-means of directions (Dhillon and Modha, 2001).

    Latents are scaled to unit length, centres too, and the centre with the largest cosine wins.
    How strong a latent is, which follows contrast and lighting, then does not count.
    """

    help = "by nearest direction whatever the contrast"
    measure = "cosine"

    def prepare(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale float32 [n, D] to unit length."""
        return unit(latents)

    def fit(
        self,
        points: NDArray[np.float32],
        clusters: int,
        *,
        covariance: str,
        restarts: int,
        seed: int,
    ) -> tuple[Clustering, NDArray[np.int64]]:
        """See ``Method.fit``."""
        start = best_start(points, clusters, restarts=restarts, seed=seed)
        centres, labels = _to_sphere(points, start.centres)
        return start.clustering(centres), labels


def _to_sphere(
    points: NDArray[np.float32], centres: NDArray[np.float32], iterations: int = 10
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Move K-means centres of unit vectors onto the sphere and let them settle there."""
    centres = unit(centres)
    labels = (points @ centres.T).argmax(axis=1)
    for _ in range(iterations):
        sums = np.zeros_like(centres, dtype=np.float64)
        np.add.at(sums, labels, points)
        # A centre that lost all its points stays where it is.
        lost = np.bincount(labels, minlength=len(centres)) == 0
        centres = np.where(lost[:, None], centres, unit(sums.astype(np.float32)))
        moved = (points @ centres.T).argmax(axis=1)
        if (moved == labels).all():
            break
        labels = moved
    return centres, labels
