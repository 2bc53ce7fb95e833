"""Region-balanced clustering: one vector a region, so that large surfaces do not decide alone.

Road and sky fill most of a driving frame, and K-means spends its centres on their shades.
Here latents are clustered finely first, each frame falls into connected regions of one fine
cluster, and what is clustered for good are the means of these regions: a sign counts as much as
the sky. Only the centres change; the deployed graph is the same. The idea is that of clustering
superpixels rather than pixels (as in Ren and Malik, Learning a classification model for
segmentation, 2003); the recipe is this project's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.calibration.clusters.latents import Boxes, EncoderSession, Samples, cells_seen
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.progress import Tick
from aeseg_edge.support.require import import_scipy

FINE_CLUSTERS = 40
"""Clusters that regions are made of; 1.5 times K where that is more."""

SMALLEST_REGION = 3
"""Latents. Smaller regions lie on edges, where latents mix what is on both sides."""

MOST_REGIONS = 100_000
"""Kept in memory; an even part of each frame's beyond."""


def fine_clusters(clusters: int) -> int:
    """Give the number of clusters that regions are made of, for K clusters in the end."""
    return max(FINE_CLUSTERS, clusters + clusters // 2)


def collect_regions(
    session: EncoderSession,
    frames: Sequence[NDArray[np.uint8]],
    fine: Codebook,
    *,
    seed: int,
    mean: NDArray[np.floating] | None = None,
    region: NDArray[np.uint8] | None = None,
    boxes: Boxes | None = None,
    tick: Tick | None = None,
) -> Samples:
    """Average the latents of each connected region of each frame.

    Frames are encoded one at a time; what stays in memory is one vector (less ``mean``) a region of
    at least ``SMALLEST_REGION`` latents of one cluster of ``fine``. ``region`` and ``boxes`` as in
    ``draw_samples``. CalibrationError if no region is large enough.
    """
    generator = np.random.default_rng(seed)
    share = max(1, MOST_REGIONS // max(1, len(frames)))
    parts, origins = [], []
    for index, frame in enumerate(frames):
        latents = session(frame)
        if mean is not None:
            latents = latents - np.asarray(mean, np.float32)[:, None, None]
        clusters = fine.assign(np.moveaxis(latents, 0, -1))
        inside = cells_seen(index, frame.shape, clusters.shape, region, boxes)
        if inside is not None:
            clusters[~inside] = -1
        means, sizes = average_regions(latents, clusters)
        means = means[sizes >= SMALLEST_REGION]
        if len(means) > share:
            means = means[np.sort(generator.choice(len(means), share, replace=False))]
        parts.append(means)
        origins.append(np.full(len(means), index, np.int64))
        if tick is not None:
            tick((index + 1) / len(frames))
    regions = Samples(np.concatenate(parts), np.concatenate(origins))
    if not len(regions.latents):
        raise CalibrationError(
            f"no frame has a region of {SMALLEST_REGION} or more latents of one kind",
            fix="Use --balance none, or larger images.",
        )
    return regions


def average_regions(
    latents: NDArray[np.float32], clusters: NDArray[np.integer]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Average float32 [D, h, w] over 4-connected regions of one cluster, integers [h, w].

    Negative ones belong to no region. Gives mean, float32 [m, D], and size, int64 [m], of each.
    """
    ndimage = import_scipy("ndimage")
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    numbers = np.zeros(clusters.shape, np.int64)
    total = 0
    for cluster in np.unique(clusters[clusters >= 0]):
        found, count = ndimage.label(clusters == cluster)
        numbers[found > 0] = found[found > 0] + total
        total += count
    where = numbers.ravel()
    sizes = np.bincount(where, minlength=total + 1)[1:]
    sums = [np.bincount(where, channel, minlength=total + 1)[1:] for channel in flat]
    means = np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None]
    return means.astype(np.float32), sizes.astype(np.int64)
