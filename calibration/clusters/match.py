"""Stable ids: what people named in an old bundle keeps its name in a new one.

New clusters are matched to old ones by the Hungarian method (Kuhn, 1955; the solver is that of
Crouse, 2016, in scipy) on the distance of their centres. Distances mean something only in the
same coordinates, so both bundles must have the same encoder; a different mean, folded into its
last bias, is allowed for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import MAX_CLASSES, VOID, ClassInfo, Codebook, default_classes
from aeseg_edge.bundle.precisions import REFERENCE
from aeseg_edge.calibration.clusters.latents import EncoderSession
from aeseg_edge.calibration.clusters.methods import listed, measure_of, unit
from aeseg_edge.calibration.graphs.deployed import detach_head
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.evenly import evenly
from aeseg_edge.support.require import import_scipy

FARTHEST = 0.5
"""A new centre matches an old one only within this share of the distance from the old centre to
the nearest old centre of another class. Below a half, no centre of another class is nearer."""

SAME = 1e-3
"""Of the spread of latents: encoders that differ by less give the same centres."""

SHOWN = 4
"""Frames that two encoders are compared on."""


@dataclass(frozen=True)
class Matched:
    """New clusters with old names: cluster i was cluster ``order[i]`` before.

    ``partners``, int64 [K], has the old cluster of each, -1 where none is near; ``distances`` the
    way to it as a share of what is allowed (``FARTHEST``), NaN without one.
    """

    codebook: Codebook
    order: NDArray[np.int64]
    partners: NDArray[np.int64]
    distances: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Clusters that have a partner."""
        return int((self.partners >= 0).sum())

    def to_json(self) -> dict[str, Any]:
        """Return as JSON types: the old cluster of each new one, or None."""
        return {
            "matched": self.count,
            "of": len(self.partners),
            "farthest_share": FARTHEST,
            "partners": [None if p < 0 else int(p) for p in self.partners],
        }


def match_codebooks(old: Codebook, new: Codebook) -> Matched:
    """Give new clusters the names, colours, merges and void of the old ones near them.

    A matched cluster takes its partner's class, and its number where there is one of it. A cluster
    without a partner gets a class of its own with an id, a name and a colour that no old class has.
    Old classes without a cluster are gone. CalibrationError without centres in the same
    coordinates.
    """
    partners, shares = match_centres(old, new)
    taken = [int(p) for p in partners if 0 <= p < new.clusters]
    places = iter(sorted(set(range(new.clusters)) - set(taken)))
    place = [int(p) if 0 <= p < new.clusters else -1 for p in partners]
    place = [p if p >= 0 else next(places) for p in place]
    order = np.argsort(np.asarray(place)).astype(np.int64)
    partners, shares = partners[order], shares[order]
    remap, classes = _classes(old, new, partners, order)
    assert new.centres is not None
    book = replace(
        new,
        weights=new.weights[order],
        bias=new.bias[order],
        centres=new.centres[order],
        remap=remap,
        classes=classes,
    )
    return Matched(book, order, partners, shares)


def match_centres(old: Codebook, new: Codebook) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Match centres one to one, leaving out what is too far apart.

    Gives int64 [K], the old cluster of each new one or -1, and float64 [K], the distance to it as a
    share of the distance allowed, NaN for -1. By direction where one codebook is of directions.
    """
    optimize = import_scipy("optimize")
    if old.centres is None or new.centres is None:
        which = "old" if old.centres is None else "new"
        raise CalibrationError(
            f"the {which} codebook ({(old if old.centres is None else new).method}) has no centres",
            fix=f"Names carry over between {listed()} codebooks.",
        )
    if old.latent_dim != new.latent_dim:
        raise CalibrationError(
            f"the old codebook has {old.latent_dim} latent channels, the new one {new.latent_dim}",
            fix="Match bundles of the same encoder.",
        )
    before, after = old.centres, new.centres
    if "cosine" in (measure_of(old.method), measure_of(new.method)):
        before, after = unit(before), unit(after)
    allowed = FARTHEST * _isolation(before, old.remap)
    distance = _distances(after, before)
    share = distance / np.maximum(allowed, 1e-12)
    # What is too far costs as much as no match at all, so it never displaces a near one.
    rows, columns = optimize.linear_sum_assignment(np.minimum(share, 1.0 + 1e-9))
    partners = np.full(new.clusters, -1, np.int64)
    shares = np.full(new.clusters, np.nan)
    for row, column in zip(rows, columns, strict=True):
        if share[row, column] <= 1.0:
            partners[row], shares[row] = column, share[row, column]
    return partners, shares


def encoder_shift(
    old: EncoderSession, new: EncoderSession, frames: Sequence[NDArray[np.uint8]]
) -> NDArray[np.float64]:
    """Give ``new latents - old latents``, float64 [D], of an encoder with another mean folded in.

    Zeros where they differ by less than ``SAME`` of their spread. CalibrationError if the encoders
    differ in more than a constant: distances between their centres would mean nothing.
    """
    fix = (
        "Match bundles that were exported from one checkpoint with as many latent channels, or "
        "use --names-from none."
    )
    apart, latents = [], []
    for index in evenly(len(frames), SHOWN):
        try:
            first, second = old(frames[index]), new(frames[index])
        except Exception as error:  # onnxruntime's own classes are not importable by name
            raise CalibrationError(
                f"the old bundle's encoder does not run on these frames ({error})", fix=fix
            ) from error
        if first.shape != second.shape:
            raise CalibrationError(
                f"the old bundle's latents are {list(first.shape)}, the new ones "
                f"{list(second.shape)}",
                fix=fix,
            )
        apart.append((second - first).reshape(len(first), -1))
        latents.append(first.reshape(len(first), -1))
    differences = np.concatenate(apart, axis=1).astype(np.float64)
    spread = float(np.concatenate(latents, axis=1).std(axis=1).max()) or 1.0
    shift = differences.mean(axis=1)
    if np.abs(differences - shift[:, None]).max() > SAME * spread:
        raise CalibrationError(
            "the old bundle has another encoder, so its centres are not comparable", fix=fix
        )
    same = bool(np.abs(shift).max() <= SAME * spread)
    return np.asarray(np.zeros(len(shift)) if same else shift, np.float64)


def encoder_of(bundle: Bundle) -> onnx.ModelProto:
    """Give a bundle's float32 encoder; ExportError or BundleError if it has none of ours."""
    return detach_head(onnx.load_from_string(bundle.graph(*REFERENCE)))


def _distances(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distances, float64 [len(first), len(second)]."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def _isolation(centres: NDArray[np.float32], remap: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Distance from each centre to the nearest one of another class (void is one)."""
    distance = _distances(centres, centres)
    distance[remap[:, None] == remap[None, :]] = np.inf
    nearest = distance.min(axis=1)
    # One class in all: how far the centres spread says what is far.
    spread = float(np.sqrt(centres.astype(np.float64).var(axis=0).sum()))
    return np.where(np.isfinite(nearest), nearest, spread)


def _classes(
    old: Codebook, new: Codebook, partners: NDArray[np.int64], order: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], tuple[ClassInfo, ...]]:
    """Classes of the new clusters: those of the partners, and fresh ones."""
    remap: NDArray[np.uint8] = np.full(new.clusters, VOID, np.uint8)
    matched = partners >= 0
    remap[matched] = old.remap[partners[matched]]
    known = {item.id: item for item in old.classes}
    names = {item.name.casefold() for item in old.classes}
    free = [i for i in range(MAX_CLASSES) if i not in known]
    # New classes that are not one a cluster (more than 255 clusters) stay together.
    groups: dict[int, int] = {}
    used: dict[int, ClassInfo] = {i: known[i] for i in set(remap.tolist()) - {VOID}}
    for cluster in np.flatnonzero(~matched):
        group = int(new.remap[order[cluster]])
        if group not in groups:
            if not free:
                raise CalibrationError(
                    f"all {MAX_CLASSES} class ids are taken by old classes",
                    fix="Merge classes of the old bundle, or start with fresh names "
                    "(--names-from none).",
                )
            fresh = free.pop(0)
            name, number = f"class {fresh}", 1
            while name.casefold() in names:
                number += 1
                name = f"class {fresh} ({number})"
            names.add(name.casefold())
            used[fresh] = replace(default_classes(fresh + 1)[fresh], name=name)
            groups[group] = fresh
        remap[cluster] = groups[group]
    return remap, tuple(used[i] for i in sorted(used))
