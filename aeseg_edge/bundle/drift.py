"""How unlike the footage a frame is: distances of latents to their centres."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import ONE_THREAD, Codebook

MEASURES = ("cosine", "euclidean")


LEVELS = (*range(5, 100, 5), 99)
"""Percentiles that a bundle keeps."""


@dataclass(frozen=True)
class Spread:
    """Distances of calibration's latents to their centres.

    Attributes:
        measure: ``cosine``: 1 minus the largest cosine with a centre, where these are
            directions. ``euclidean``: to the nearest centre.
        percentiles: At ``LEVELS``.
        usual: ``drift`` of nine tenths of calibration's own frames is at most this.
    """

    measure: str
    percentiles: tuple[float, ...]
    usual: float = 1.0

    @property
    def p99(self) -> float:
        """What one latent of a hundred in known scenes lies beyond."""
        return self.percentiles[-1]

    def drift(self, found: NDArray[np.float32]) -> float | None:
        """Say how unlike calibration's the distances of a frame are: 0..1; None if all are NaN.

        The largest difference between the two cumulative distributions, at ``LEVELS``: the
        statistic of Kolmogorov and Smirnov. Scenes of another kind may lie farther from the
        centres or, dark and flat ones, closer; it sees both, where a share of outliers does not.
        """
        known = np.sort(found[np.isfinite(found)])
        if not len(known):
            return None
        here = np.searchsorted(known, self.percentiles, side="right") / len(known)
        return float(np.abs(here - np.array(LEVELS) / 100).max())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spread:
        """Read it from a manifest; ValueError where it is no spread of distances."""
        values = np.array([0.0, *data["percentiles"]], float)
        spread = cls(str(data["measure"]), tuple(values[1:].tolist()), float(data["usual"]))
        steps = np.diff(values)
        if (
            spread.measure not in MEASURES
            or len(steps) != len(LEVELS)
            or not (np.isfinite(steps).all() and (steps >= 0).all() and 0 <= spread.usual <= 1)
        ):
            raise ValueError(f"{data!r} is not a spread of distances")
        return spread


def distances(
    latents: NDArray[np.float32], centres: NDArray[np.float32], measure: str
) -> NDArray[np.float32]:
    """Distance of latents, float32 [D, ...], to their centres, float32 [K, D]: float32 [...]."""
    points = latents.reshape(latents.shape[0], -1)
    squares = np.einsum("dn,dn->n", points, points)
    if measure == "cosine":
        norms = np.linalg.norm(centres, axis=1, keepdims=True)
        best = _largest(centres / np.maximum(norms, 1e-12), points)
        found = 1 - best / np.maximum(np.sqrt(squares), 1e-12)
    else:
        offsets = 0.5 * np.einsum("kd,kd->k", centres, centres)
        best = _largest(centres, points, offsets)
        found = np.sqrt(np.maximum(squares - 2 * best, 0))
    result: NDArray[np.float32] = np.maximum(found, 0).astype(np.float32)
    return result.reshape(latents.shape[1:])


def _largest(
    centres: NDArray[np.float32],
    points: NDArray[np.float32],
    offsets: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Largest product with a centre, less the centre's offset: [K, D], [D, n] -> [n].

    In products so small that BLAS keeps to one thread: measured, its threads otherwise wait
    for more work in a loop, and the next frame's inference took 20 % longer beside them.
    """
    columns = max(1, ONE_THREAD // centres.size)
    found = np.empty(points.shape[1], np.float32)
    for start in range(0, len(found), columns):
        part = centres @ points[:, start : start + columns]
        if offsets is not None:
            part -= offsets[:, None]
        found[start : start + columns] = part.max(axis=0)
    return found


def spread_of(
    latents: NDArray[np.float32],
    codebook: Codebook,
    frames: Iterable[NDArray[np.float32]] = (),
    *,
    measure: str,
) -> Spread | None:
    """Measure the spread of calibration's latents, float32 [n, D]; None without centres.

    `frames` are latents of whole frames, float32 [D, ...], for what is usual; `measure` is the one
    that the codebook's clustering goes by.
    """
    centres = codebook.centres
    if centres is None or not len(latents):
        return None
    found = distances(np.ascontiguousarray(latents.T), centres, measure)
    spread = Spread(measure, tuple(np.percentile(found, LEVELS).round(6).tolist()))
    own = [spread.drift(distances(each, centres, measure)) for each in frames]
    known = [each for each in own if each is not None]
    return replace(spread, usual=round(float(np.percentile(known, 90)), 4)) if known else spread


class RunningDrift:
    """How unlike the footage one camera's scene is: a running mean, `weight` for each new frame."""

    def __init__(self, weight: float = 0.1) -> None:
        self._weight = weight
        self.value: float | None = None
        """0..1, see ``Spread.drift``. None before the first frame."""

    def add(self, drift: float) -> None:
        """Take one frame's figure."""
        last = drift if self.value is None else self.value
        self.value = last + self._weight * (drift - last)
