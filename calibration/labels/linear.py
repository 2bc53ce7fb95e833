"""A linear codebook from labelled frames: softmax regression on frozen latents.

Scores are ``W [z, z^2] + b``, the form of every codebook, so the graphs stay as they are and
only the codebook is fitted: seconds on a CPU. Multinomial logistic regression with a ridge
on standardised features (Bishop, Pattern Recognition and Machine Learning, 2006, 4.3.4),
minimised by L-BFGS (Liu and Nocedal, Mathematical Programming 45, 1989). The strength of
the ridge is chosen by cross-validation over frames: cells of one frame are too much alike
to check one another.

A latent's target is the share of each class in its cell of stride x stride pixels, which
needs no choice at edges. Scores are upsampled linearly, and so is a linear map of latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import VOID, ClassInfo, Codebook
from aeseg_edge.bundle.precisions import REFERENCE
from aeseg_edge.calibration.footage.masks import Pair, fit_mask, labelled_frames, reader_for
from aeseg_edge.calibration.labels.naming import class_weights
from aeseg_edge.calibration.score.counts import class_iou
from aeseg_edge.calibration.score.evaluation import Progress
from aeseg_edge.errors import CalibrationError
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.support.require import require

STRENGTHS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""Ridge strengths that cross-validation chooses from, strongest first."""

DEFAULT_STRENGTH = 1e-3
"""With a single frame there is nothing to choose by; best for 3 frames of CamVid."""

SAMPLES = 20_000
"""Cells that the codebook is fitted on; a third of them chooses the strength. On CamVid 8,000
cells of 10 frames gave as much as 25,000."""

FOLDS = 5
_ITERATIONS = 200
_NEEDS = "a linear codebook"
_ITERATIONS_CHECK = 60
"""While the strength is chosen, each fit starts from that of the strength before."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """Latents with what the masks say of them.

    Attributes:
        latents: float32 [n, D].
        shares: float32 [n, C], share of each class in the latent's cell; rows sum to the
            labelled share of the cell, above 0.
        frames: int64 [n], which frame each is from.
    """

    latents: NDArray[np.float32]
    shares: NDArray[np.float32]
    frames: NDArray[np.int64]


@dataclass(frozen=True)
class LinearFit:
    """What was fitted.

    Attributes:
        codebook: Method ``linear``; one cluster a class that the masks have.
        strength: Of the ridge.
        scores: Strength -> mIoU (0..1) on cells of held-out frames; empty for one frame.
        cells: Latents used.
    """

    codebook: Codebook
    strength: float
    scores: dict[float, float]
    cells: int

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {
            "strength": self.strength,
            "scores": {f"{k:g}": round(v, 5) for k, v in self.scores.items()},
            "cells": self.cells,
        }


def labelled_cells(
    bundle: Bundle,
    pairs: Sequence[Pair],
    class_names: Sequence[str],
    *,
    ignore: int | None,
    samples: int = SAMPLES,
    mirrored: bool = True,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Cells:
    """Take the latents of labelled frames, with the fp32 graph on ONNX Runtime.

    Cells outside the bundle's region are left out. ``samples`` is the number wanted in all,
    an equal part from every frame; ``mirrored`` takes each frame's mirror image too.

    Raises:
        EvaluationError: A file is missing or faulty, or a mask holds a value that is no class.
        CalibrationError: No cell has a label.
    """
    manifest, region = bundle.manifest, bundle.region
    views = 2 if mirrored else 1
    part = max(1, samples // (views * len(pairs)))
    generator = np.random.default_rng(seed)
    latents, shares, origin = [], [], []
    want = frozenset({"latents"})
    with Segmenter.load(bundle, *REFERENCE, threads=threads) as segmenter:
        read = reader_for(manifest)
        frames = labelled_frames(pairs, class_names, ignore=ignore, read=read)
        for index, (_, frame, mask) in enumerate(frames):
            clean = fit_mask(mask, manifest.geometry, len(class_names), ignore)
            if region is not None:
                clean[region <= 127] = VOID
            for view in range(views):
                picture, labels = (frame[:, ::-1], clean[:, ::-1]) if view else (frame, clean)
                found = segmenter(np.ascontiguousarray(picture), want=want).latents
                assert found is not None  # asked for
                targets = class_shares(labels, manifest.stride, len(class_names))
                kept = np.flatnonzero(targets.sum(axis=1) > 0)
                if len(kept) > part:
                    kept = np.sort(generator.choice(kept, part, replace=False))
                latents.append(found.reshape(len(found), -1).T[kept])
                shares.append(targets[kept])
                origin.append(np.full(len(kept), index))
            if progress is not None:
                progress(index + 1, len(pairs))
    cells = Cells(np.concatenate(latents), np.concatenate(shares), np.concatenate(origin))
    if not len(cells.latents):
        raise CalibrationError(
            "no cell of the labelled frames has a label", fix="Check --ignore and the masks."
        )
    return cells


def class_shares(mask: NDArray[np.uint8], stride: int, classes: int) -> NDArray[np.float32]:
    """Count how much of each cell belongs to each class: float32 [H/stride * W/stride, C], 0..1.

    The mask is uint8 [H, W], H and W multiples of stride; 255 does not count.
    """
    rows, columns = mask.shape[0] // stride, mask.shape[1] // stride
    cells = mask.reshape(rows, stride, columns, stride).transpose(0, 2, 1, 3)
    flat = cells.reshape(rows * columns, stride * stride).astype(np.int64)
    places = np.arange(len(flat))[:, None] * (VOID + 1) + flat
    counts = np.bincount(places.ravel(), minlength=len(flat) * (VOID + 1))
    shares = counts.reshape(len(flat), VOID + 1)[:, :classes] / (stride * stride)
    return np.asarray(shares, np.float32)


def fit_linear(
    cells: Cells,
    classes: Sequence[ClassInfo],
    *,
    weighted: bool = True,
    square: bool = True,
    strength: float | None = None,
) -> LinearFit:
    """Fit a linear codebook to latents and their class shares.

    ``weighted`` weighs classes by frequency to the power -0.3; ``square`` uses ``[z, z^2]``,
    else only ``z``; ``strength`` of None is chosen by cross-validation over frames.

    Raises:
        CalibrationError: Fewer than two classes have labels.
        MissingDependency: scipy or threadpoolctl is not installed.
    """
    seen = np.flatnonzero(cells.shares.sum(axis=0) > 0).tolist()
    if len(seen) < 2:
        raise CalibrationError(
            f"the labelled frames show {len(seen)} class; a linear codebook needs two or more",
            fix="Give more labelled frames, or check --classes and --ignore.",
        )
    shares = cells.shares[:, seen]
    phi = np.concatenate([cells.latents, cells.latents**2], axis=1) if square else cells.latents
    mean = phi.mean(axis=0, dtype=np.float64)
    # A channel that never changes says nothing; its weight is 0 whatever it is divided by.
    spread = np.maximum(phi.std(axis=0, dtype=np.float64), 1e-8)
    features = ((phi - mean) / spread).astype(np.float32)
    weights = class_weights(shares.sum(axis=0)) if weighted else np.ones(len(seen))
    targets = (shares * weights).astype(np.float32)
    scores: dict[float, float] = {}
    with _one_thread():
        if strength is None:
            scores = _cross_validate(features, targets, shares, cells.frames)
            # The first, that is the strongest, of equals.
            strength = max(scores, key=lambda key: scores[key]) if scores else DEFAULT_STRENGTH
        start = np.zeros((len(seen), features.shape[1] + 1))
        found = _minimise(features, targets, strength, start)
    # Softmax sees differences only: take out what all classes have in common.
    found -= found.mean(axis=0)
    raw = found[:, :-1] / spread
    bias = found[:, -1] - raw @ mean
    dim = cells.latents.shape[1]
    whole = np.zeros((len(seen), 2 * dim), np.float32)
    whole[:, : raw.shape[1]] = raw
    codebook = Codebook(
        weights=whole,
        bias=bias.astype(np.float32),
        remap=np.array([classes[i].id for i in seen], np.uint8),
        classes=tuple(classes[i] for i in seen),
        method="linear",
    )
    return LinearFit(codebook, strength, scores, len(features))


def _cross_validate(
    features: NDArray[np.float32],
    targets: NDArray[np.float32],
    shares: NDArray[np.float32],
    frames: NDArray[np.int64],
) -> dict[float, float]:
    """Give the mIoU of each strength on held-out cells; folds are blocks of frames.

    The held-out cross-entropy would choose a ridge so strong that scores are timid: with 3
    frames of CamVid it cost 2 points of mIoU on other drives, while this chose the best.
    """
    count = int(frames.max()) + 1
    folds = min(FOLDS, count)
    if folds < 2:
        return {}
    # Neighbouring frames look alike, so they stay together. A third of the cells will do.
    fold = frames * folds // count
    thin = np.arange(len(features)) % 3 == 0
    classes = targets.shape[1]
    tables = {strength: np.zeros((classes, classes)) for strength in STRENGTHS}
    for number in range(folds):
        held = fold == number
        inside = thin & ~held
        start = np.zeros((classes, features.shape[1] + 1))
        for strength in STRENGTHS:  # from strong to weak: each starts near its solution
            start = _minimise(features[inside], targets[inside], strength, start, _ITERATIONS_CHECK)
            narrow = start.astype(np.float32)
            found = (features[held] @ narrow[:, :-1].T + narrow[:, -1]).argmax(axis=1)
            for cluster in range(classes):
                tables[strength][:, cluster] += shares[held][found == cluster].sum(axis=0)
    return {strength: float(np.nanmean(class_iou(table))) for strength, table in tables.items()}


def _minimise(
    features: NDArray[np.float32],
    targets: NDArray[np.float32],
    strength: float,
    start: Array,
    iterations: int = _ITERATIONS,
) -> Array:
    """Minimise weighted cross-entropy plus ridge; float64 [C, F + 1], the bias last."""
    optimize = require("scipy.optimize", for_=_NEEDS)
    total = float(targets.sum())

    def objective(flat: Array) -> tuple[float, Array]:
        found = flat.reshape(start.shape)
        loss, gradient = _loss(features, targets, found)
        slope = gradient / total
        slope[:, :-1] += strength * found[:, :-1]
        ridge = 0.5 * strength * float((found[:, :-1] ** 2).sum())
        return loss / total + ridge, slope.ravel()

    result = optimize.minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxcor": 20, "ftol": 1e-7, "gtol": 1e-6},
    )
    return np.asarray(result.x, np.float64).reshape(start.shape)


def _loss(
    features: NDArray[np.float32], targets: NDArray[np.float32], found: Array
) -> tuple[float, Array]:
    """Sum of cross-entropies with soft targets, and its gradient [C, F + 1]."""
    narrow = found.astype(np.float32)
    scores = features @ narrow[:, :-1].T + narrow[:, -1]
    scores -= scores.max(axis=1, keepdims=True)
    shares = np.exp(scores)
    sums = shares.sum(axis=1, keepdims=True)
    loss = -float((targets * (scores - np.log(sums))).sum(dtype=np.float64))
    slope = shares * (targets.sum(axis=1, keepdims=True) / sums) - targets
    gradient = np.empty(found.shape)
    gradient[:, :-1] = slope.T @ features
    gradient[:, -1] = slope.sum(axis=0, dtype=np.float64)
    return loss, gradient


def _one_thread() -> Any:
    """Hold BLAS to one thread: small matrices cost 20 times the CPU time with two, if busy."""
    # First scipy: it brings a BLAS of its own, and only what is loaded can be limited.
    require("scipy.optimize", for_=_NEEDS)
    # It comes with scikit-learn.
    return require("threadpoolctl", for_=_NEEDS).threadpool_limits(1, user_api="blas")
