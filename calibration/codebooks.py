"""From latents to the codebook: what to cluster, into how many, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.codebook import Codebook

from .balance import collect_regions, fine_clusters
from .clustering import Clustering, cluster, codebook_from, with_shares
from .latents import EncoderSession, Samples
from .settings import FitSettings

Progress = Callable[[str, float], None]
"""(stage, fraction of that stage)."""


@dataclass(frozen=True)
class Found:
    """A codebook and how it came about.

    Attributes:
        codebook: With default names.
        clustering: The centres; its shares are those of ``samples``.
        settings: What was asked for.
        samples: Latents that were drawn.
        regions: Vectors that were clustered, with ``balance="regions"``; else None.
    """

    codebook: Codebook
    clustering: Clustering
    settings: FitSettings
    samples: Samples
    regions: int | None

    def to_json(self) -> dict[str, Any]:
        """Give what the manifest says of it."""
        clustering = self.clustering
        told: dict[str, Any] = {
            "method": clustering.method,
            "balance": self.settings.balance,
            "clusters": self.codebook.clusters,
            "restarts": self.settings.restarts,
            "latents": len(self.samples.latents),
        }
        if self.regions is not None:
            told["regions"] = self.regions
        return {
            **told,
            "stability_ari": clustering.stability,
            "mean_squared_distance": clustering.inertia,
            "converged": clustering.converged,
            "shares": [round(float(share), 5) for share in clustering.shares],
        }


def find_codebook(
    session: EncoderSession,
    frames: Sequence[NDArray[np.uint8]],
    samples: Samples,
    settings: FitSettings,
    *,
    mean: NDArray[np.floating],
    region: NDArray[np.uint8] | None = None,
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
        progress: Called with a stage and its fraction.

    Raises:
        CalibrationError: If the frames cannot support what is asked.
    """
    tell = progress or (lambda stage, fraction: None)
    points = samples
    if settings.balance == "regions":
        points = _regions(session, frames, samples, settings, mean, region, tell)
    tell("clusters", 0.0)
    clustering = cluster(
        points.latents,
        settings.clusters,
        method=settings.clustering,
        covariance=settings.covariance,
        restarts=settings.restarts,
        seed=settings.seed,
    )
    if points is not samples:
        # A class is as large as what it covers of the frames, not as its number of regions.
        clustering = with_shares(clustering, samples.latents)
    tell("clusters", 1.0)
    return Found(
        codebook=codebook_from(clustering),
        clustering=clustering,
        settings=settings,
        samples=samples,
        regions=None if points is samples else len(points.latents),
    )


def _regions(
    session: EncoderSession,
    frames: Sequence[NDArray[np.uint8]],
    samples: Samples,
    settings: FitSettings,
    mean: NDArray[np.floating],
    region: NDArray[np.uint8] | None,
    tell: Progress,
) -> Samples:
    few = samples.pick(20_000 + 100 * settings.clusters, settings.seed)
    count = min(fine_clusters(settings.clusters), len(np.unique(few.latents, axis=0)))
    fine = cluster(
        few.latents,
        count,
        method="spherical" if settings.clustering == "spherical" else "kmeans",
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
        tick=lambda fraction: tell("regions", fraction),
    )
