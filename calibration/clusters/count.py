"""How many clusters: stability under resampling first, then silhouette.

For each K of a range the frames are split in two a few times, each half is clustered, and the
adjusted Rand index says whether both halves found the same (Ben-Hur, Elisseeff and Guyon, 2002;
von Luxburg, Clustering stability: an overview, 2010). Of the K that are stable the one whose
clusters lie farthest apart for their width is taken (Rousseeuw, Silhouettes, 1987). Labels play
no part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.calibration.clusters.clustering import Clustering
from aeseg_edge.calibration.clusters.curves import Curve
from aeseg_edge.calibration.clusters.latents import Samples
from aeseg_edge.calibration.clusters.methods import METHODS, PLAIN
from aeseg_edge.calibration.clusters.stability import LOW, between_halves
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.progress import Tick
from aeseg_edge.support.require import require

_log = logging.getLogger(__name__)

DEFAULT_RANGE = (4, 40)

STEPS = 16
"""Values of K that are tried: all of a short range, else at equal ratios."""

SPLITS = 3
"""Ways to split the frames in halves, for each K."""

EXAMINED = 12_000
"""Vectors that each K is tried on."""

SILHOUETTES = 2_000
"""Vectors that the silhouette is averaged over; it costs their square."""

CRITERION = (
    f"of the K whose clusters agree between halves of the frames (mean adjusted Rand index of "
    f"{SPLITS} splits) by at least {LOW}, the one with the highest mean silhouette; where none "
    "does, the K with the highest agreement"
)

_AGREEMENT = "agreement of halves of the frames (ARI)"

Fit = Callable[[NDArray[np.float32], int], Clustering]
"""(float32 [n, D], K) -> clusters."""


@dataclass(frozen=True)
class Candidate:
    """One K: agreement between halves, None where one is too small, and mean silhouette."""

    clusters: int
    stability: float | None
    silhouette: float


@dataclass(frozen=True)
class Choice:
    """A K that was looked for, with the whole curve; a ``steady`` one reaches the threshold."""

    clusters: int
    candidates: tuple[Candidate, ...]
    steady: bool

    def to_json(self) -> dict[str, Any]:
        """Return the curve as JSON types, figures rounded to four decimals."""
        return {
            "chosen": self.clusters,
            "stable": self.steady,
            "criterion": CRITERION,
            "candidates": [
                {
                    "clusters": item.clusters,
                    "stability_ari": None if item.stability is None else round(item.stability, 4),
                    "silhouette": round(item.silhouette, 4),
                }
                for item in self.candidates
            ],
        }

    def curve(self) -> Curve:
        """Give what can be drawn."""
        return Curve(
            name="clusters",
            title="Clusters chosen",
            axis="clusters",
            values=[item.clusters for item in self.candidates],
            lines={
                _AGREEMENT: [item.stability for item in self.candidates],
                "mean silhouette": [item.silhouette for item in self.candidates],
            },
            chosen=self.clusters,
            thresholds={_AGREEMENT: LOW},
            data=self.to_json(),
        )


def grid(lowest: int, highest: int) -> list[int]:
    """Give the K to try: every one of up to 16, else 16 at equal ratios, ends included."""
    if highest - lowest < STEPS:
        return list(range(lowest, highest + 1))
    values = np.geomspace(lowest, highest, STEPS).round().astype(int)
    return sorted({int(value) for value in values})


def choose_clusters(
    points: Samples,
    limits: tuple[int, int],
    fit: Fit,
    *,
    method: str = PLAIN,
    seed: int = 0,
    tick: Tick | None = None,
) -> Choice:
    """Choose K within limits; see ``CRITERION``.

    Silhouettes are measured between the points of ``method``. CalibrationError if no K can be
    fitted.
    """
    silhouette_score = require("sklearn.metrics").silhouette_score
    few = points.pick(EXAMINED, seed)
    shown = few.pick(SILHOUETTES, seed)
    space = METHODS[method].prepare(shown.latents)
    values = grid(*limits)
    candidates, refused = [], None
    for index, clusters in enumerate(values):

        def fit_some(latents: NDArray[np.float32], clusters: int = clusters) -> Clustering:
            return fit(latents, clusters)

        try:
            labels = fit_some(few.latents).assign(shown.latents)
        except CalibrationError as error:
            refused = error
            continue
        agreed = [between_halves(few, fit_some, seed=seed, split=split) for split in range(SPLITS)]
        known = [value for value in agreed if value is not None]
        distinct = len(np.unique(labels))
        candidates.append(
            Candidate(
                clusters,
                float(np.mean(known)) if len(known) == SPLITS else None,
                float(silhouette_score(space, labels)) if 1 < distinct < len(labels) else -1.0,
            )
        )
        if tick is not None:
            tick((index + 1) / len(values))
    if not candidates:
        raise CalibrationError(
            f"no number of clusters from {limits[0]} to {limits[1]} can be fitted: "
            f"{refused.problem if refused else 'the range is empty'}",
            fix="Give more footage, or a range of smaller numbers.",
        )
    return decide(candidates)


def decide(candidates: list[Candidate]) -> Choice:
    """Apply ``CRITERION``; of equals the smaller K."""
    steady = [c for c in candidates if c.stability is not None and c.stability >= LOW]
    if steady:
        best = max(steady, key=lambda c: (c.silhouette, -c.clusters))
    else:
        best = max(candidates, key=lambda c: -1 if c.stability is None else c.stability)
        _log.warning(
            "no number of clusters from %d to %d is stable (ARI between halves of the frames of "
            "at least %.2f); %d is the most stable one",
            candidates[0].clusters,
            candidates[-1].clusters,
            LOW,
            best.clusters,
        )
    return Choice(best.clusters, tuple(candidates), bool(steady))
