"""The table of clusterings, and from latents to a codebook with one of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import MAX_CLASSES, Codebook, default_classes
from aeseg_edge.calibration.clusters.clustering import Clustering, Method, reordered
from aeseg_edge.calibration.clusters.clustering import unit as unit
from aeseg_edge.calibration.clusters.kmeans import RESTARTS, KMeans, Spherical
from aeseg_edge.calibration.clusters.mixture import DEFAULT_COVARIANCE, Mixture, check_covariance
from aeseg_edge.errors import CalibrationError

METHODS: dict[str, Method] = {"kmeans": KMeans(), "spherical": Spherical(), "gmm": Mixture()}
"""Every way of clustering by its name; a new one is a class and a row here."""

DEFAULT_METHOD, PLAIN = "spherical", "kmeans"
"""What is taken unasked: for footage, and for any vectors."""

BALANCES = ("none", "regions")
"""What is clustered: latents, or one vector a connected region."""

MAX_CLUSTERS = 65536 // 64
"""1024: far past use, and small enough for the head's score planes."""


def method_of(recorded: str) -> Method | None:
    """Find the clustering that a bundle records, such as ``gmm-tied``; None for other codebooks."""
    return METHODS.get(recorded.partition("-")[0])


def measure_of(recorded: str) -> str:
    """Say which distance the clustering that a bundle records goes by, see ``MEASURES``."""
    method = method_of(recorded)
    return Method.measure if method is None else method.measure


def listed() -> str:
    """Name all clusterings in a sentence."""
    *first, last = METHODS
    return f"{', '.join(first)} and {last}"


def cluster(
    latents: NDArray[np.float32],
    clusters: int,
    *,
    method: str | Method = PLAIN,
    covariance: str = DEFAULT_COVARIANCE,
    restarts: int = RESTARTS,
    seed: int = 0,
) -> Clustering:
    """Find K clusters of centred latents, float32 [n, D], ordered by share: most is class 0.

    ``method`` is a key of ``METHODS``, or a clustering itself. CalibrationError if K is not one for
    these latents (see ``check_clusters``), the method is unknown, or a mixture collapses.
    """
    kind = method if isinstance(method, Method) else METHODS.get(method)
    if kind is None:
        raise CalibrationError(
            f"clustering method {method!r} is unknown", fix=f"Use one of {', '.join(METHODS)}."
        )
    name = next((name for name, row in METHODS.items() if row is kind), "")
    if kind.covariances:
        check_covariance(covariance)
        name = f"{name}-{covariance}"
    check_directions(kind, latents.shape[1], clusters)
    points = kind.prepare(latents)
    check_clusters(points, clusters)
    found, labels = kind.fit(points, clusters, covariance=covariance, restarts=restarts, seed=seed)
    counts = np.bincount(labels, minlength=clusters)
    return _largest_first(replace(found, method=name), counts, len(points))


def with_shares(clustering: Clustering, latents: NDArray[np.float32]) -> Clustering:
    """Count shares on other latents, float32 [n, D], than were clustered; the largest first."""
    counts = np.bincount(clustering.assign(latents), minlength=len(clustering.centres))
    return _largest_first(clustering, counts, max(1, len(latents)))


def _largest_first(clustering: Clustering, counts: NDArray[np.int64], total: int) -> Clustering:
    order = np.argsort(-counts, kind="stable")
    return replace(reordered(clustering, order), shares=counts[order] / total)


def check_directions(kind: Method, channels: int, clusters: int) -> None:
    """Refuse more than two clusters of directions where there is one channel."""
    if kind.measure == "cosine" and channels == 1 and clusters > 2:
        raise CalibrationError(
            f"one latent channel has two directions, and {clusters} clusters of directions "
            "(spherical) are asked for",
            fix="Use --clustering kmeans, or keep two or more latent channels.",
        )


def check_clusters(latents: NDArray[np.float32], clusters: int) -> None:
    """Refuse a K below 2, above 1024, or above the number of distinct samples."""
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
    """Make a codebook: one class a cluster; beyond 255 clusters the nearest centres share one.

    By Ward linkage, until somebody names them. Unit centres of ``spherical`` all have the same
    norm, so nearest centre and largest cosine are the same decision.
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
