"""How unlike the footage a frame is: distances of latents to their centres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.codebook import Codebook

MEASURES = ("cosine", "euclidean")


@dataclass(frozen=True)
class Spread:
    """Distances of calibration's latents to their centres.

    Attributes:
        measure: ``cosine``: 1 minus the largest cosine with a centre, for spherical K-means,
            which looks at directions alone. ``euclidean``: to the nearest centre.
        p50: Median.
        p99: 99th percentile: what lies beyond is one latent of a hundred in known scenes.
    """

    measure: str
    p50: float
    p99: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spread:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: If it is no spread of distances.
        """
        spread = cls(str(data["measure"]), float(data["p50"]), float(data["p99"]))
        if spread.measure not in MEASURES or not 0 <= spread.p50 <= spread.p99 < float("inf"):
            raise ValueError(f"{spread} is not a spread of distances")
        return spread


def measure_for(method: str) -> str:
    """Which distance suits a codebook found by ``method``."""
    return "cosine" if method == "spherical" else "euclidean"


def distances(
    latents: NDArray[np.float32], centres: NDArray[np.float32], measure: str
) -> NDArray[np.float32]:
    """Distance of each latent to its centre.

    Args:
        latents: float32 [D, ...].
        centres: float32 [K, D].
        measure: One of ``MEASURES``.

    Returns:
        float32 [...], at least 0.
    """
    points = latents.reshape(latents.shape[0], -1)
    squares = np.einsum("dn,dn->n", points, points)
    if measure == "cosine":
        norms = np.linalg.norm(centres, axis=1, keepdims=True)
        best = (centres / np.maximum(norms, 1e-12) @ points).max(axis=0)
        found = 1 - best / np.maximum(np.sqrt(squares), 1e-12)
    else:
        offsets = 0.5 * np.einsum("kd,kd->k", centres, centres)
        best = (centres @ points - offsets[:, None]).max(axis=0)
        found = np.sqrt(np.maximum(squares - 2 * best, 0))
    result: NDArray[np.float32] = np.maximum(found, 0).astype(np.float32)
    return result.reshape(latents.shape[1:])


def spread_of(latents: NDArray[np.float32], codebook: Codebook) -> Spread | None:
    """Measure the spread of calibration's latents.

    Args:
        latents: float32 [n, D].
        codebook: Fitted on them.

    Returns:
        None where the codebook has no centres.
    """
    if codebook.centres is None or not len(latents):
        return None
    measure = measure_for(codebook.method)
    found = distances(np.ascontiguousarray(latents.T), codebook.centres, measure)
    p50, p99 = (round(float(value), 6) for value in np.percentile(found, [50, 99]))
    return Spread(measure, p50, p99)


class Drift:
    """One camera's share of latents beyond calibration's 99th percentile, smoothed.

    Args:
        weight: Of each new frame in the running mean.
    """

    def __init__(self, weight: float = 0.1) -> None:
        self._weight = weight
        self.value: float | None = None
        """0..1; about 0.01 in scenes like the footage. None before the first frame."""

    def add(self, share: float) -> None:
        """Take one frame's share."""
        last = share if self.value is None else self.value
        self.value = last + self._weight * (share - last)
