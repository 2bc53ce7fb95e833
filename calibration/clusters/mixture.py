"""Gaussian mixtures, and the affine scores in ``[z, z^2]`` that decide as they do.

The posterior of a component is largest where ``log weight + log density`` is. With
precisions ``p = 1 / variance`` and a mean ``c`` (Bishop, Pattern Recognition and Machine
Learning, 2006, 9.2):

- diagonal: ``W = [p * c, -p / 2]``, ``b = log weight + sum(log p) / 2 - sum(p * c^2) / 2``;
- spherical: the same with one ``p`` for all channels;
- tied: one matrix ``P`` for all components, so ``z' P z`` is the same for each and drops
  out: ``W = [P c, 0]``, ``b = log weight - c' P c / 2``.

A full covariance has ``z' P z`` with another ``P`` for each component, which ``[z, z^2]``
cannot hold.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.calibration.clusters.clustering import Clustering, Method, squared
from aeseg_edge.calibration.clusters.kmeans import KMeans
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.require import require

_log = logging.getLogger(__name__)

COVARIANCES = ("tied", "diag", "spherical")

DEFAULT_COVARIANCE = "tied"

REGULARISATION = 1e-4
"""Of the mean variance of a latent channel; added to every variance. It bounds the condition
number, so that float32 scores decide as float64 ones."""

SAMPLES_EACH = 10
"""Latents that each component must have on average."""

ITERATIONS = 300
_PATIENCE = 3


@dataclass(frozen=True)
class Scores:
    """A fitted mixture as scores of ``[z, z^2]``; scikit-learn's own object to compare with."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    centres: NDArray[np.float32]
    model: Any
    converged: bool


def check_covariance(covariance: str) -> None:
    """Refuse covariances that the deployed graph cannot hold, and unknown ones."""
    if covariance == "full":
        raise CalibrationError(
            "full covariances do not fit the deployed graph: its scores are W [z, z^2] + b, which "
            "has no products of two different channels that differ from cluster to cluster",
            fix="Use tied (products, the same for all clusters) or diag (a spread for each "
            "channel and cluster).",
        )
    if covariance not in COVARIANCES:
        raise CalibrationError(
            f"covariance {covariance!r} is unknown", fix=f"Use one of {', '.join(COVARIANCES)}."
        )


def fit_mixture(
    latents: NDArray[np.float32], start: NDArray[np.float32], covariance: str = "tied"
) -> Scores:
    """Fit a Gaussian mixture to float32 [n, D] from given centres; argmax is sklearn's ``predict``.

    Expectation-maximisation (scikit-learn's GaussianMixture) starts from the hard clusters of
    ``start``, so the result depends on nothing but the arguments. CalibrationError if the
    covariance cannot be deployed, there are too few latents, or components collapse whatever the
    regularisation.
    """
    check_covariance(covariance)
    count, dim = start.shape
    needed = max(SAMPLES_EACH * count, 2 * dim)
    if len(latents) < needed:
        raise CalibrationError(
            f"{len(latents)} latents are too few for a mixture of {count} Gaussians in {dim} "
            f"channels; {needed} are needed",
            fix="Give more footage, ask for fewer clusters, or use --clustering kmeans.",
        )
    points = latents.astype(np.float64)
    spread = float(points.var(axis=0).mean())
    if spread <= 0:
        raise CalibrationError("all latents are the same", fix="Give other footage.")
    for attempt in range(_PATIENCE):
        floor = spread * REGULARISATION * 10.0**attempt
        model, converged = _maximise(points, start, covariance, floor)
        # Scores have to be finite, and every component has to win somewhere.
        won = np.bincount(model.predict(points), minlength=count) if model is not None else None
        if won is not None and (won > 0).all():
            break
        reason = "cannot be fitted" if won is None else f"lost {int((won == 0).sum())} components"
        _log.info("mixture of %d %s; trying a regularisation of %g", count, reason, floor * 10)
    else:
        raise CalibrationError(
            f"components of the mixture of {count} collapse: fewer Gaussians explain these latents",
            fix="Ask for fewer clusters, use --covariance tied, or use --clustering kmeans.",
        )
    if not converged:
        _log.warning(
            "the mixture of %d had not come to rest after %d iterations", count, 2 * ITERATIONS
        )
    weights, bias = affine_scores(model)
    return Scores(weights, bias, np.asarray(model.means_, np.float32), model, converged)


def affine_scores(model: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Write a fitted mixture's decision as ``argmax(W [z, z^2] + b)``: [K, 2D] and [K].

    What all components have in common is taken out, which changes no decision and keeps the numbers
    small. CalibrationError if the covariance is full.
    """
    check_covariance(model.covariance_type)
    means = np.asarray(model.means_, np.float64)
    covariances = np.asarray(model.covariances_, np.float64)
    log_weights = np.log(np.maximum(np.asarray(model.weights_, np.float64), 1e-300))
    if model.covariance_type == "tied":
        linear = np.linalg.solve(covariances, means.T).T
        square = np.zeros_like(means)
        bias = log_weights - 0.5 * (means * linear).sum(axis=1)
    else:
        spread = covariances if covariances.ndim == 2 else covariances[:, None]
        precision = np.broadcast_to(1.0 / spread, means.shape)
        linear = means * precision
        square = -0.5 * precision
        bias = log_weights + 0.5 * np.log(precision).sum(axis=1) - 0.5 * (means * linear).sum(1)
    weights = np.concatenate([linear, square], axis=1)
    weights = weights - weights.mean(axis=0)
    bias = bias - bias.mean()
    return weights.astype(np.float32), bias.astype(np.float32)


def _maximise(
    points: NDArray[np.float64], start: NDArray[np.float32], covariance: str, floor: float
) -> tuple[Any, bool]:
    """Run expectation-maximisation; (None, False) where a covariance cannot be inverted."""
    mixture, exceptions = require("sklearn.mixture"), require("sklearn.exceptions")
    weights, means, precisions = _hard_start(points, start, covariance, floor)
    model = mixture.GaussianMixture(
        len(start),
        covariance_type=covariance,
        reg_covar=floor,
        max_iter=ITERATIONS,
        weights_init=weights,
        means_init=means,
        precisions_init=precisions,
        random_state=0,
        warm_start=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        try:
            model.fit(points)
            if not model.converged_:
                model.fit(points)
        except (ValueError, np.linalg.LinAlgError) as error:
            _log.debug("mixture: %s", error)
            return None, False
    if not np.isfinite(model.covariances_).all():
        return None, False
    return model, bool(model.converged_)


def _hard_start(
    points: NDArray[np.float64], start: NDArray[np.float32], covariance: str, floor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weights, means and precisions of the clusters by nearest centre."""
    centres = start.astype(np.float64)
    labels = (points @ centres.T - 0.5 * (centres**2).sum(axis=1)).argmax(axis=1)
    counts = np.bincount(labels, minlength=len(centres)).astype(np.float64)
    # One imagined latent at each centre keeps weights of empty clusters above zero.
    weights = (counts + 1.0) / (counts + 1.0).sum()
    off = points - centres[labels]
    if covariance == "tied":
        tied = off.T @ off / len(points) + floor * np.eye(points.shape[1])
        precision: NDArray[np.float64] = np.linalg.inv(tied)
        return weights, centres, (precision + precision.T) / 2
    sums = np.zeros_like(centres)
    np.add.at(sums, labels, off**2)
    overall = (off**2).mean(axis=0)
    variances = (sums + overall) / (counts + 1.0)[:, None] + floor
    if covariance == "spherical":
        return weights, centres, 1.0 / variances.mean(axis=1)
    return weights, centres, 1.0 / variances


class Mixture(Method):
    """Goes on from the K-means centres to a Gaussian mixture; the likeliest component wins."""

    help = "by a Gaussian mixture"
    covariances = COVARIANCES
    _start = KMeans()

    @property
    def for_regions(self) -> Method:
        """K-means: regions need no more."""
        return self._start

    def fit(
        self,
        points: NDArray[np.float32],
        clusters: int,
        *,
        covariance: str,
        restarts: int,
        seed: int,
    ) -> tuple[Clustering, NDArray[np.int64]]:
        """See ``Method.fit``."""
        start, _ = self._start.fit(
            points, clusters, covariance=covariance, restarts=restarts, seed=seed
        )
        found = fit_mixture(points, start.centres, covariance)
        labels = (squared(points) @ found.weights.T + found.bias).argmax(axis=1)
        clustering = replace(
            start,
            centres=found.centres,
            weights=found.weights,
            bias=found.bias,
            converged=found.converged,
        )
        return clustering, np.asarray(labels, np.int64)
