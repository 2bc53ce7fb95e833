"""From latents to the codebook: what to cluster, into how many, and how sure that is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.calibration.clusters.clustering import Clustering
from aeseg_edge.calibration.clusters.count import Choice, choose_clusters
from aeseg_edge.calibration.clusters.kmeans import MANY
from aeseg_edge.calibration.clusters.latents import Boxes, EncoderSession, Samples
from aeseg_edge.calibration.clusters.methods import METHODS, cluster, codebook_from, with_shares
from aeseg_edge.calibration.clusters.regions import collect_regions, fine_clusters
from aeseg_edge.calibration.clusters.stability import ENOUGH, LOW, Stability, between_halves
from aeseg_edge.calibration.settings import FitSettings

_log = logging.getLogger(__name__)

CHOOSING_RESTARTS = 8
"""For each K that is tried, and each half."""

MORE = 3
"""Times as many starts where the clusters are not stable."""

Progress = Callable[[str, float], None]
"""(stage, fraction of that stage)."""


@dataclass(frozen=True)
class Found:
    """A codebook and how it came about.

    Attributes:
        codebook: With default names.
        clustering: The centres; its shares are those of ``samples``.
        settings: What was asked for.
        stability: How much of it is chance.
        choice: How K was chosen; None where it was given.
        samples: Latents that were drawn.
        regions: Vectors that were clustered, with ``balance="regions"``; else None.
    """

    codebook: Codebook
    clustering: Clustering
    settings: FitSettings
    stability: Stability
    choice: Choice | None
    samples: Samples
    regions: int | None

    def to_json(self) -> dict[str, Any]:
        """Give what the manifest says of it."""
        clustering = self.clustering
        told: dict[str, Any] = {
            "method": clustering.method,
            "balance": self.settings.balance,
            "clusters": self.codebook.clusters,
            "restarts": self.stability.tried,
            "latents": len(self.samples.latents),
        }
        if self.regions is not None:
            told["regions"] = self.regions
        if self.choice is not None:
            told["chosen"] = self.choice.to_json()
        return {
            **told,
            "stability_ari": self.stability.restarts,
            "stability": self.stability.to_json(),
            "mean_squared_distance": clustering.inertia,
            "converged": clustering.converged,
        }


def find_codebook(
    session: EncoderSession,
    frames: Sequence[NDArray[np.uint8]],
    samples: Samples,
    settings: FitSettings,
    *,
    mean: NDArray[np.floating],
    region: NDArray[np.uint8] | None = None,
    boxes: Boxes | None = None,
    progress: Progress | None = None,
) -> Found:
    """Cluster, and make a codebook of what is found.

    Args:
        session: The encoder, before ``mean`` was folded into it.
        frames: uint8 [H, W, C] each; encoded again, one by one, to find regions.
        samples: Latents of these frames, less ``mean``.
        settings: See ``FitSettings``.
        mean: float [D], subtracted from every latent.
        region: uint8 [H, W] region of interest.
        boxes: Of each frame's picture between its bars; None where there are no bars.
        progress: Called with a stage and its fraction.

    Raises:
        CalibrationError: If the frames cannot support what is asked.
    """
    tell = progress or (lambda stage, fraction: None)
    points = samples
    if settings.balance == "regions":
        points = _regions(session, frames, samples, settings, mean, region, boxes, tell)
    tell("clusters", 0.0)
    choice = _choose(points, settings, tell)
    count = settings.clusters if choice is None else choice.clusters
    clustering, stability = _stable_fit(points, settings, count, tell)
    if points is not samples:
        # A class is as large as what it covers of the frames, not as its number of regions.
        clustering = with_shares(clustering, samples.latents)
    tell("clusters", 1.0)
    return Found(
        codebook=codebook_from(clustering),
        clustering=clustering,
        settings=settings,
        stability=stability,
        choice=choice,
        samples=samples,
        regions=None if points is samples else len(points.latents),
    )


def _choose(points: Samples, settings: FitSettings, tell: Progress) -> Choice | None:
    if settings.cluster_range is None:
        return None

    def fit(latents: NDArray[np.float32], clusters: int) -> Clustering:
        return cluster(
            latents,
            clusters,
            method=settings.clustering,
            covariance=settings.covariance,
            restarts=min(settings.starts(clusters), CHOOSING_RESTARTS),
            seed=settings.seed,
        )

    choice = choose_clusters(
        points,
        settings.cluster_range,
        fit,
        method=settings.clustering,
        seed=settings.seed,
        tick=lambda fraction: tell("choosing clusters", fraction),
    )
    _log.info("%d clusters chosen from %d to %d", choice.clusters, *settings.cluster_range)
    return choice


def _stable_fit(
    points: Samples, settings: FitSettings, clusters: int, tell: Progress
) -> tuple[Clustering, Stability]:
    """Cluster, and once more from more starts where two halves of the frames disagree."""

    def attempt(restarts: int) -> tuple[Clustering, Stability]:
        def fit(latents: NDArray[np.float32]) -> Clustering:
            return cluster(
                latents,
                clusters,
                method=settings.clustering,
                covariance=settings.covariance,
                restarts=restarts,
                seed=settings.seed,
            )

        found = fit(points.latents)
        tell("clusters", 0.3)
        halves = between_halves(points, fit, seed=settings.seed)
        return found, Stability(found.stability, halves, restarts)

    starts = settings.starts(clusters)
    found, stability = attempt(starts)
    low = stability.halves is not None and stability.halves < ENOUGH
    # Hundreds of clusters never come out alike; they are there to be named or merged.
    if low and clusters <= MANY:
        more = MORE * starts
        _log.info(
            "clusters of two halves of the frames agree by %.2f (ARI): trying %d starts, not %d",
            stability.halves,
            more,
            starts,
        )
        found, stability = attempt(more)
    if stability.low and clusters <= MANY:
        _log.warning(
            "clusters of two halves of the frames agree by only %.2f (ARI; below %.2f is low): "
            "more footage or fewer clusters give steadier ones, --clusters auto looks for them",
            stability.halves,
            LOW,
        )
    return found, stability


def _regions(
    session: EncoderSession,
    frames: Sequence[NDArray[np.uint8]],
    samples: Samples,
    settings: FitSettings,
    mean: NDArray[np.floating],
    region: NDArray[np.uint8] | None,
    boxes: Boxes | None,
    tell: Progress,
) -> Samples:
    few = samples.pick(20_000 + 100 * settings.most_clusters, settings.seed)
    count = min(fine_clusters(settings.most_clusters), len(np.unique(few.latents, axis=0)))
    fine = cluster(
        few.latents,
        count,
        method=METHODS[settings.clustering].for_regions,
        restarts=2,
        seed=settings.seed,
    )
    return collect_regions(
        session,
        frames,
        codebook_from(fine),
        seed=settings.seed,
        mean=mean,
        region=region,
        boxes=boxes,
        tick=lambda fraction: tell("regions", fraction),
    )
