"""The codebook: what turns latents into clusters, and clusters into classes.

Every way of assigning a label is one affine map over ``phi(z) = [z, z * z]``:
``cluster(z) = argmax_k (W phi(z) + b)_k`` and ``class = remap[cluster]``. Nearest
centre is ``W = [c, 0]``, ``b = -|c|^2 / 2``, because ``-|z - c|^2 / 2`` and
``c.z - |c|^2 / 2`` differ only by a term that no centre changes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aeseg_edge.errors import CodebookError

VOID = 255
"""Class id of pixels outside the region of interest, or unknown."""

MAX_CLASSES = 255
"""Class ids are 0..254; 255 is void."""

PADDING_BIAS = -1e30
"""Bias of a padding row. Finite: ``-inf * 0`` is NaN in a bilinear resize."""

ONE_THREAD = 200_000
"""Multiplications of a product that BLAS does in one thread (OpenBLAS: up to 262,144)."""


@dataclass(frozen=True)
class ClassInfo:
    """What a person sees of one or more clusters.

    The id is the value in the label map, 0..254; the colour RGB, each 0..255.
    """

    id: int
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Codebook:
    """Weights, biases and the map from clusters to classes.

    Attributes:
        weights: float32 [K, 2D], for ``[z, z^2]``.
        bias: float32 [K].
        remap: uint8 [K], cluster -> class id (0..254, or 255 for void).
        classes: Every class that ``remap`` names (void apart), ids ascending.
        method: How the codebook was found: ``kmeans``, ``gmm-tied``, ``linear``, ...
        centres: float32 [K, D] where the method has centres, for drawing and matching.

    Raises:
        CodebookError: If shapes, values or ids do not fit together.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    remap: NDArray[np.uint8]
    classes: tuple[ClassInfo, ...]
    method: str = "kmeans"
    centres: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        fix = "Calibrate again, or read the codebook from an undamaged bundle."
        if self.weights.ndim != 2 or self.weights.shape[1] % 2 or not self.weights.size:
            raise CodebookError(
                f"codebook weights have shape {self.weights.shape}, not [K, 2D]", fix=fix
            )
        clusters = self.weights.shape[0]
        if self.bias.shape != (clusters,) or self.remap.shape != (clusters,):
            raise CodebookError(
                f"codebook has {clusters} rows of weights, but bias {self.bias.shape} "
                f"and remap {self.remap.shape}",
                fix=fix,
            )
        dtypes = [str(part.dtype) for part in (self.weights, self.bias, self.remap)]
        if dtypes != ["float32", "float32", "uint8"]:
            raise CodebookError(f"codebook arrays have dtypes {dtypes}", fix=fix)
        if not (np.isfinite(self.weights).all() and np.isfinite(self.bias).all()):
            raise CodebookError("codebook has values that are not finite", fix=fix)
        if self.centres is not None and self.centres.shape != (clusters, self.latent_dim):
            raise CodebookError(
                f"codebook centres have shape {self.centres.shape}, "
                f"not [{clusters}, {self.latent_dim}]",
                fix=fix,
            )
        ids = [c.id for c in self.classes]
        if ids != sorted(set(ids)) or any(not 0 <= i < MAX_CLASSES for i in ids):
            raise CodebookError("class ids are not distinct, ascending and within 0..254", fix=fix)
        missing = set(self.remap.tolist()) - set(ids) - {VOID}
        if missing:
            raise CodebookError(f"clusters map to classes {sorted(missing)} with no name", fix=fix)

    @property
    def clusters(self) -> int:
        """Number of clusters, K."""
        return int(self.weights.shape[0])

    @property
    def latent_dim(self) -> int:
        """Number of latent channels, D."""
        return int(self.weights.shape[1] // 2)

    @property
    def squares(self) -> bool:
        """Whether any score depends on squares of latents (some Gaussian mixtures)."""
        return bool(self.weights[:, self.latent_dim :].any())

    def columns(self, squares: bool) -> NDArray[np.float32]:
        """Give a graph's weights: float32, [K, 2D] with squares of latents, [K, D] without.

        CodebookError where the graph has none and the codebook needs them.
        """
        if squares:
            return np.ascontiguousarray(self.weights)
        if self.squares:
            raise CodebookError(
                f"the codebook ({self.method}) scores squares of latents, which the graph was "
                "exported without",
                fix="Export or calibrate again with this clustering: aeseg export NAME.train.",
            )
        return np.ascontiguousarray(self.weights[:, : self.latent_dim])

    @classmethod
    def from_centres(
        cls,
        centres: ArrayLike,
        *,
        classes: Sequence[ClassInfo] | None = None,
        remap: ArrayLike | None = None,
        method: str = "kmeans",
    ) -> Codebook:
        """Make a nearest-centre codebook.

        Args:
            centres: float [K, D], in the units of the latents.
            classes: One class a cluster when None.
            remap: int [K]; the identity when None.
            method: Recorded as given.

        Returns:
            ``W = [c, 0]``, ``b = -|c|^2 / 2`` (squared Euclidean distance, expanded).

        Raises:
            CodebookError: If there are more clusters than class ids and no remap, or if
                the parts do not fit.
        """
        points = np.asarray(centres, dtype=np.float32)
        if points.ndim != 2:
            raise CodebookError(
                f"centres have shape {points.shape}, not [K, D]", fix="Give one row a centre."
            )
        count = points.shape[0]
        if remap is None and count > MAX_CLASSES:
            raise CodebookError(
                f"{count} clusters do not fit into {MAX_CLASSES} class ids",
                fix="Give a remap that merges clusters into classes.",
            )
        mapping = np.arange(count) if remap is None else np.asarray(remap)
        norms = (points.astype(np.float64) ** 2).sum(axis=1)
        return cls(
            weights=np.concatenate([points, np.zeros_like(points)], axis=1),
            bias=(-0.5 * norms).astype(np.float32),
            remap=mapping.astype(np.uint8),
            classes=tuple(classes) if classes is not None else default_classes(count),
            method=method,
            centres=points,
        )

    def scores(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score every cluster, ``W [z, z^2] + b``: float32 [..., D] -> float32 [..., K]."""
        phi = np.concatenate([latents, latents * latents], axis=-1)
        scores: NDArray[np.float32] = phi @ self.weights.T + self.bias
        return scores

    def assign(self, latents: NDArray[np.float32]) -> NDArray[np.int64]:
        """Give the best-scoring cluster of each latent; the lowest index wins a tie.

        float32 [..., D] -> int64 [...], 0..K-1.
        """
        return np.asarray(self.scores(latents).argmax(axis=-1), dtype=np.int64)

    @property
    def merges(self) -> bool:
        """Whether some class is more than one cluster."""
        return len(np.unique(self.remap)) < self.clusters

    def class_margins(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the best score of a cluster less the best one of another class.

        Two clusters of one class may score alike, and the class is certain all the same.
        float32 [D, h, w] -> float32 [h, w]; 1e30 where there is one class only. In products that
        BLAS does in one thread, as ``drift.distances``.
        """
        points = latents.reshape(self.latent_dim, -1)
        if self.squares:
            points = np.concatenate([points, points * points])
        order = np.argsort(self.remap, kind="stable")
        starts = np.flatnonzero(np.diff(self.remap[order].astype(np.int64), prepend=-1))
        found = np.full(points.shape[1], -PADDING_BIAS, np.float32)
        if len(starts) < 2:
            return found.reshape(latents.shape[1:])
        weights, bias = self.columns(self.squares)[order], self.bias[order, None]
        columns = max(1, ONE_THREAD // weights.size)
        for first in range(0, len(found), columns):
            scores = weights @ points[:, first : first + columns] + bias
            best = np.partition(np.maximum.reduceat(scores, starts, axis=0), -2, axis=0)
            found[first : first + columns] = best[-1] - best[-2]
        return found.reshape(latents.shape[1:])

    def padded(self, clusters: int) -> Codebook:
        """Fill up to a number of clusters with rows that never win: W = 0, b = -1e30.

        CodebookError where ``clusters`` is smaller than the present K.
        """
        extra = clusters - self.clusters
        if extra < 0:
            raise CodebookError(
                f"{self.clusters} clusters do not fit into an engine built for {clusters}",
                fix="Build the engine again for this codebook.",
            )
        if extra == 0:
            return self
        zeros = np.zeros((extra, self.weights.shape[1]), np.float32)
        return Codebook(
            weights=np.concatenate([self.weights, zeros]),
            bias=np.concatenate([self.bias, np.full(extra, PADDING_BIAS, np.float32)]),
            remap=np.concatenate([self.remap, np.full(extra, VOID, np.uint8)]),
            classes=self.classes,
            method=self.method,
            centres=None,
        )

    def class_of(self, class_id: int) -> ClassInfo | None:
        """Look a class up by id; None for void and unknown ids."""
        return next((c for c in self.classes if c.id == class_id), None)


_COLORS = (
    "88CCEE CC6677 117733 DDCC77 332288 AA4499 44AA99 999933 "
    "882255 6C84E4 543C00 54FCCC B49CFC E4B4B4 F084C0 246CC0 "
    "6C3C9C 00546C 6CC06C 9C78A8 84606C D8A800 B4480C 6C8454 "
    "90F0FC C0F090 A87818 00B4D8 78480C 0C483C 60186C B4906C"
)


def default_classes(count: int) -> tuple[ClassInfo, ...]:
    """Name and colour 1..255 classes nobody has named yet: ``class 0`` .. ``class count-1``.

    The first nine colours are the scheme "muted" of Paul Tol (Colour Schemes, SRON/EPS/TN/
    09-002), made for colour-blind eyes. The next 23 follow by farthest-point choice: each is
    the one of the muted colours (OKLab chroma 0.045 to 0.155, lightness 0.36 to 0.90) that
    lies farthest in OKLab from those before it, as seen by normal, protanope and deuteranope
    eyes (Machado, Oliveira and Fernandes 2009, severity 1). After these, hues step by the
    golden ratio, which keeps neighbours apart for any count.
    """
    return tuple(ClassInfo(i, f"class {i}", _color(i)) for i in range(count))


def _color(index: int) -> tuple[int, int, int]:
    chosen = _COLORS.split()
    if index < len(chosen):
        red, green, blue = bytes.fromhex(chosen[index])
        return red, green, blue
    hue = (0.58 + index * 0.618033988749895) % 1.0
    lightness = (0.50, 0.66, 0.36)[index % 3]
    saturation = (0.45, 0.35, 0.55)[(index // 3) % 3]
    parts = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(parts[0] * 255), round(parts[1] * 255), round(parts[2] * 255)


def palette(classes: Sequence[ClassInfo]) -> NDArray[np.uint8]:
    """Build the table that colours a label map: uint8 [256, 3], BGR; ids of no class stay black."""
    table = np.zeros((256, 3), np.uint8)
    for item in classes:
        table[item.id] = item.color[::-1]
    return table
