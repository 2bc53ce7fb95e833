"""Codebooks from latents: K-means, spherical K-means and Gaussian mixtures."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import MAX_CLASSES, Codebook, default_classes
from aeseg_edge.calibration.clusters.mixture import (
    DEFAULT_COVARIANCE,
    check_covariance,
    fit_mixture,
)
from aeseg_edge.calibration.clusters.starts import RESTARTS, best_start
from aeseg_edge.errors import CalibrationError

_log = logging.getLogger(__name__)

METHODS = ("kmeans", "spherical", "gmm")

MAX_CLUSTERS = 65536 // 64
"""1024: far past use, and small enough for the head's score planes."""


@dataclass(frozen=True)
class Clustering:
    """What was found.

    Attributes:
        centres: float32 [K, D], the largest cluster first; the means of a mixture.
        shares: float64 [K], share of the samples in each cluster.
        inertia: Mean squared distance of a sample to its centre, in latent units.
        method: ``kmeans``, ``spherical``, ``gmm-tied``, ``gmm-diag`` or ``gmm-spherical``.
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
    method: str = "kmeans"
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


def cluster(
    latents: NDArray[np.float32],
    clusters: int,
    *,
    method: str = "kmeans",
    covariance: str = DEFAULT_COVARIANCE,
    restarts: int = RESTARTS,
    seed: int = 0,
) -> Clustering:
    """Fit centres: K-means from many starts (see starts.py).

    ``spherical`` (Dhillon and Modha, 2001) clusters directions: latents are scaled to unit
    length, centres too, and the centre with the largest cosine wins. How strong a latent is,
    which follows contrast and lighting, then does not count. ``gmm`` goes on from the K-means
    centres to a Gaussian mixture (see mixture.py).

    Args:
        latents: float32 [n, D], centred.
        clusters: K, at least 2.
        method: ``kmeans``, ``spherical`` or ``gmm``.
        covariance: With ``gmm``: ``tied``, ``diag`` or ``spherical``.
        restarts: Starts; the one with the lowest inertia is kept.
        seed: Makes the result repeatable.

    Returns:
        Centres ordered by share, so that class 0 is what there is most of.

    Raises:
        CalibrationError: If K is below 2, above 1024, or above the number of distinct
            samples, the method is unknown, or a mixture collapses.
        MissingDependency: If scikit-learn is not installed.
    """
    if method not in METHODS:
        raise CalibrationError(
            f"clustering method {method!r} is unknown", fix=f"Use one of {', '.join(METHODS)}."
        )
    if method == "gmm":
        check_covariance(covariance)
    points = unit(latents) if method == "spherical" else latents
    check_clusters(points, clusters)
    start = best_start(points, clusters, restarts=restarts, seed=seed)
    centres, labels = start.centres, start.labels
    if method == "spherical":
        centres, labels = _to_sphere(points, centres)
    mixture = fit_mixture(latents, centres, covariance) if method == "gmm" else None
    if mixture is not None:
        centres = mixture.centres
        scores = squared(latents) @ mixture.weights.T + mixture.bias
        labels = np.asarray(scores.argmax(axis=1), np.int64)
    counts = np.bincount(labels, minlength=clusters)
    order = np.argsort(-counts, kind="stable")
    return Clustering(
        centres=centres[order],
        shares=counts[order] / len(points),
        inertia=start.inertia,
        stability=start.agreement,
        method=method if mixture is None else f"gmm-{covariance}",
        weights=None if mixture is None else mixture.weights[order],
        bias=None if mixture is None else mixture.bias[order],
        converged=mixture is None or mixture.converged,
    )


def with_shares(clustering: Clustering, latents: NDArray[np.float32]) -> Clustering:
    """Count shares on other latents than those that were clustered, and order by them.

    Args:
        clustering: Found on some vectors.
        latents: float32 [n, D]; what the shares are to be of.

    Returns:
        The same clusters, the largest first.
    """
    counts = np.bincount(clustering.assign(latents), minlength=len(clustering.centres))
    order = np.argsort(-counts, kind="stable")
    return replace(reordered(clustering, order), shares=(counts[order] / max(1, len(latents))))


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
    """Scale latents to unit length; zeros stay zeros.

    Args:
        latents: float32 [n, D].

    Returns:
        float32 [n, D].
    """
    norms = np.linalg.norm(latents, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (latents / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled


def squared(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give ``phi(z) = [z, z * z]``, which a codebook's scores are affine in.

    Args:
        latents: float32 [n, D].

    Returns:
        float32 [n, 2D].
    """
    return np.concatenate([latents, latents * latents], axis=1)


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


def check_clusters(latents: NDArray[np.float32], clusters: int) -> None:
    """Refuse a K that the samples cannot support.

    Raises:
        CalibrationError: If K is below 2, above 1024, or above the number of distinct
            samples.
    """
    if not 2 <= clusters <= MAX_CLUSTERS:
        raise CalibrationError(
            f"{clusters} clusters are not within 2..{MAX_CLUSTERS}", fix="Use 8 to 256."
        )
    distinct = len(np.unique(latents[: 64 * clusters], axis=0))
    if distinct < clusters:
        distinct = len(np.unique(latents, axis=0))
    if distinct < clusters:
        raise CalibrationError(
            f"{clusters} clusters are more than the {distinct} distinct latents of the footage",
            fix="Give more footage or larger images, or ask for fewer clusters.",
        )


def codebook_from(clustering: Clustering) -> Codebook:
    """Make a codebook; with more clusters than class ids the nearest centres share one.

    Args:
        clustering: Centres to assign by, or a mixture's scores. Unit centres of ``spherical``
            all have the same norm, so nearest centre and largest cosine are the same decision.

    Returns:
        One class a cluster up to 255 clusters; 255 classes beyond (Ward linkage of the
        centres), until somebody names them.
    """
    count = len(clustering.centres)
    remap: NDArray[np.int64] | None = None
    classes = None
    if count > MAX_CLASSES:
        from scipy.cluster.hierarchy import fcluster, linkage

        groups = fcluster(linkage(clustering.centres, "ward"), MAX_CLASSES, criterion="maxclust")
        # Number groups by their first, that is their largest, cluster.
        _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        remap, classes = rank[inverse.ravel()], default_classes(len(first))
    book = Codebook.from_centres(
        clustering.centres, classes=classes, remap=remap, method=clustering.method
    )
    if clustering.weights is None or clustering.bias is None:
        return book
    return replace(book, weights=clustering.weights, bias=clustering.bias)
