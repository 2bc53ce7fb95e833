"""From an encoder and frames to a codebook, and with it to a bundle.

Torch is not needed: both the trainer (``export.pipeline``) and ``aeseg calibrate`` come here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.drift import spread_of
from aeseg_edge.calibration.assemble import Assembled, Material, assemble
from aeseg_edge.calibration.clusters.clustering import Clustering, reordered
from aeseg_edge.calibration.clusters.count import Choice, choose_clusters
from aeseg_edge.calibration.clusters.kmeans import MANY
from aeseg_edge.calibration.clusters.latents import (
    Boxes,
    EncoderSession,
    Samples,
    cells_seen,
    draw_samples,
)
from aeseg_edge.calibration.clusters.match import (
    Matched,
    encoder_of,
    encoder_shift,
    match_codebooks,
)
from aeseg_edge.calibration.clusters.methods import (
    METHODS,
    cluster,
    codebook_from,
    listed,
    measure_of,
    with_shares,
)
from aeseg_edge.calibration.clusters.regions import collect_regions, fine_clusters
from aeseg_edge.calibration.clusters.stability import ENOUGH, LOW, Stability, between_halves
from aeseg_edge.calibration.graphs.deployed import centre_latents
from aeseg_edge.calibration.settings import FitSettings as FitSettings
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.progress import Progress

_log = logging.getLogger(__name__)

CHOOSING_RESTARTS = 8
"""For each K that is tried, and each half."""

ENOUGH_EACH = 10
"""Vectors a cluster, as a mixture needs them; with fewer it is said."""

MORE = 3
"""Times as many starts where the clusters are not stable."""


@dataclass(frozen=True)
class Fitted(Assembled):
    """A finished bundle and what was measured on the way.

    Attributes:
        clustering: The centres.
        stability: How much of them is chance.
        choice: How the number of clusters was chosen; None where it was given.
        matched: Which clusters kept an older bundle's names; None where names are fresh.
    """

    clustering: Clustering
    stability: Stability
    choice: Choice | None = None
    matched: Matched | None = None


def fit_bundle(
    material: Material,
    settings: FitSettings,
    *,
    centre: bool = True,
    names_from: Bundle | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit centres and ranges, make every graph, measure agreement, build the bundle.

    Args:
        material: What the bundle is made of.
        settings: See ``FitSettings``.
        centre: Subtract the mean latent from the encoder (once, when it is exported).
        names_from: Its names, colours, merges and void go to the clusters near its own; with
            ``centre`` the latents are then centred as its are. None for fresh names.
        progress: Called with a stage and its fraction.

    Raises:
        CalibrationError: If the frames are too few or too alike for what is asked, or
            ``names_from`` has another encoder.
        UsageError: If a convolution that is to be excluded is not there.
    """
    tell = progress or (lambda stage, fraction: None)
    frames, region, boxes = material.frames, material.region, material.boxes
    split = material.split(settings)
    session = EncoderSession(material.encoder, threads=settings.threads)
    shift = None
    if names_from is not None:
        shift = _shift(names_from, session, frames, centre, settings.threads)
    samples = draw_samples(
        session,
        frames,
        count=settings.samples,
        seed=settings.seed,
        region=region,
        boxes=boxes,
        tick=lambda fraction: tell("latents", fraction),
    )
    dim = material.spec.latent_dim
    mean, offset = np.zeros(dim), np.zeros((dim, 1, 1), np.float32)
    if centre:
        mean = samples.latents.mean(axis=0, dtype=np.float64) if shift is None else shift
        material = replace(material, encoder=centre_latents(material.encoder, mean))
        samples = samples.centred(mean)
        offset = mean.astype(np.float32)[:, None, None]
    found = find_codebook(
        session, frames, samples, settings, mean=mean, region=region, boxes=boxes, progress=tell
    )
    clustering, codebook, matched = found.clustering, found.codebook, None
    if names_from is not None:
        matched = match_codebooks(names_from.codebook, codebook)
        clustering, codebook = reordered(clustering, matched.order), matched.codebook
        _log.info("%d of %d clusters keep their names", matched.count, codebook.clusters)

    def seen(index: int) -> NDArray[np.float32]:
        """Latents of one frame that count when it is segmented, float32 [D, ...]."""
        latents: NDArray[np.float32] = session(frames[index]) - offset
        inside = cells_seen(index, frames[index].shape, latents.shape[1:], region, boxes)
        return latents if inside is None else latents[:, inside]

    made = assemble(
        material,
        codebook,
        samples.latents,
        settings,
        split=split,
        notes={
            **found.to_json(),
            "shares": [round(float(share), 5) for share in clustering.shares],
            **({} if matched is None else {"names": matched.to_json()}),
            "seed": settings.seed,
        },
        spread=spread_of(
            samples.latents, codebook, map(seen, split[0]), measure=measure_of(codebook.method)
        ),
        progress=progress,
    )
    return Fitted(
        made.bundle,
        made.agreements,
        made.below,
        clustering,
        found.stability,
        found.choice,
        matched,
    )


def _shift(
    names_from: Bundle,
    session: EncoderSession,
    frames: Sequence[NDArray[np.uint8]],
    centre: bool,
    threads: int | None,
) -> NDArray[np.float64]:
    """Give how far the latents lie from the older bundle's, before any work is lost."""
    if names_from.codebook.centres is None:
        raise CalibrationError(
            f"the old codebook ({names_from.codebook.method}) has no centres to compare with",
            fix=f"Names carry over between {listed()} codebooks; use --names-from none.",
        )
    shift = encoder_shift(EncoderSession(encoder_of(names_from), threads=threads), session, frames)
    if not centre and shift.any():
        raise CalibrationError(
            "the latents of the two bundles are centred differently, so that centres are not "
            "comparable",
            fix="Export both from the checkpoint: aeseg export NAME.train --names-from OLD.aeseg.",
        )
    return shift


@dataclass(frozen=True)
class Found:
    """A codebook with default names, and how it came about.

    ``choice`` is None where K was given, ``regions`` the number of vectors that were clustered with
    ``balance="regions"``, else None; shares of the clustering are those of ``samples``.
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
    """Cluster latents of frames, less ``mean``, and make a codebook of what is found.

    Frames are encoded again, one by one, to find regions; ``session`` is the encoder before
    ``mean`` was folded into it. CalibrationError if they cannot support what is asked.
    """
    tell = progress or (lambda stage, fraction: None)
    points = samples
    if settings.balance == "regions":
        points = _regions(session, frames, samples, settings, mean, region, boxes, tell)
        if len(points.latents) < settings.fewest_clusters:
            raise CalibrationError(
                f"{settings.fewest_clusters} clusters are more than the {len(points.latents)} "
                "connected regions of the footage",
                fix="Give more footage, ask for fewer clusters, or use --balance none.",
            )
    tell("clusters", 0.0)
    choice = _choose(points, settings, tell)
    count = settings.clusters if choice is None else choice.clusters
    if len(points.latents) < ENOUGH_EACH * count:
        _log.warning(
            "%d clusters of only %d %s: they tell these frames apart and say little of others; "
            "give more footage or ask for fewer clusters",
            count,
            len(points.latents),
            "latents" if points is samples else "regions",
        )
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
