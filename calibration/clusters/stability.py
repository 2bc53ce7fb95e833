"""How far two clusterings agree: between restarts, and between halves of the footage.

The adjusted Rand index (Hubert and Arabie, Comparing partitions, 1985) of two labellings of the
same latents is 1 where they are the same up to numbers and 0 on average for unrelated ones.
Restarts tell how much depends on where K-means begins; halves tell how much depends on which
frames were filmed (Ben-Hur, Elisseeff and Guyon, A stability based method for discovering
structure in clustered data, 2002).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.calibration.clusters.clustering import Clustering
from aeseg_edge.calibration.clusters.kmeans import rand_index
from aeseg_edge.calibration.clusters.latents import Samples
from aeseg_edge.errors import CalibrationError

_log = logging.getLogger(__name__)

LOW = 0.75
"""Below this, clusters would be others with other footage: said loudly."""

ENOUGH = 0.9
"""Below this, more restarts are tried, once."""

BLOCKS = 10
"""Stretches of consecutive frames; even ones are one half, odd ones the other. Frames next to
one another look alike, so taking every other frame would compare the same scenes."""

COMPARED = 10_000
"""Latents that two clusterings are compared on."""

Fit = Callable[[NDArray[np.float32]], Clustering]
"""float32 [n, D] -> clusters."""


@dataclass(frozen=True)
class Stability:
    """What a fit's clusters owe to chance, as adjusted Rand indices; None without a comparison.

    Between the chosen start and the others, and between fits on two halves of the frames.
    """

    restarts: float | None
    halves: float | None
    tried: int

    @property
    def low(self) -> bool:
        """Whether other footage of the same place would give other clusters."""
        return self.halves is not None and self.halves < LOW

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types, rounded to four decimals."""
        return {
            "restarts": None if self.restarts is None else round(self.restarts, 4),
            "halves": None if self.halves is None else round(self.halves, 4),
            "tried": self.tried,
            "low_below": LOW,
        }


def split_frames(frames: NDArray[np.int64], split: int = 0) -> NDArray[np.bool_]:
    """Split latents, by their frames, int64 [n], into two halves of stretches; True is the second.

    ``split`` 0 is for alternating stretches; other numbers deal them out in other ways.
    """
    distinct, position = np.unique(frames, return_inverse=True)
    blocks = min(BLOCKS, len(distinct))
    block = position.ravel() * blocks // len(distinct)
    order = np.arange(blocks)
    if split:
        order = np.random.default_rng(split).permutation(blocks)
    second: NDArray[np.bool_] = order[block] % 2 == 1
    return second


def between_halves(points: Samples, fit: Fit, *, seed: int = 0, split: int = 0) -> float | None:
    """Fit on two halves of the frames and compare what the fits say of all.

    Gives the adjusted Rand index; None where a half cannot support the fit, or all is one frame.
    """
    second = split_frames(points.frames, split)
    if not second.any():
        return None
    try:
        found = [fit(points.latents[half]) for half in (~second, second)]
    except CalibrationError as error:
        _log.info("half of the frames does not support the clusters: %s", error.problem)
        return None
    shown = points.pick(COMPARED, seed).latents
    return rand_index(found[0].assign(shown), found[1].assign(shown))
