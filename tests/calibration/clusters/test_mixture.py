"""Gaussian mixtures decide in the deployed form as scikit-learn does."""

from __future__ import annotations

import logging

import numpy as np
import pytest

pytest.importorskip("sklearn")

from aeseg_edge.calibration.clusters import mixture
from aeseg_edge.calibration.clusters.methods import cluster, codebook_from
from aeseg_edge.calibration.clusters.mixture import (
    COVARIANCES,
    affine_scores,
    check_covariance,
    fit_mixture,
)
from aeseg_edge.errors import CalibrationError


def drawn(count: int = 6000, *, clusters: int = 6, dim: int = 8, seed: int = 0) -> np.ndarray:
    """Overlapping Gaussians of very different spread, channels of very different scale."""
    generator = np.random.default_rng(seed)
    means = generator.normal(0, 2, (clusters, dim))
    spread = np.exp(generator.normal(0, 0.7, (clusters, dim)))
    which = generator.integers(0, clusters, count)
    points = means[which] + spread[which] * generator.normal(size=(count, dim))
    points *= np.geomspace(0.01, 10, dim)
    return (points - points.mean(axis=0)).astype(np.float32)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_codebook_decides_as_scikit_learn_predicts(covariance: str) -> None:
    latents = drawn()
    start = cluster(latents, 6, restarts=1).centres
    found = fit_mixture(latents, start, covariance)
    assert found.weights.dtype == found.bias.dtype == np.float32
    phi = np.concatenate([latents, latents * latents], axis=1)
    own = (phi @ found.weights.T + found.bias).argmax(axis=1)
    theirs = found.model.predict(latents.astype(np.float64))
    assert len(np.unique(theirs)) == 6
    assert (own == theirs).mean() >= 0.999
    # A mixture is not nearest centre under another name.
    nearest = ((latents[:, None] - found.centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (own == nearest).mean() < 0.99


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_clusters_of_a_mixture_come_largest_first_in_the_codebook(covariance: str) -> None:
    latents = drawn(seed=1)
    found = cluster(latents, 6, method="gmm", covariance=covariance, restarts=2)
    assert found.method == f"gmm-{covariance}"
    book = codebook_from(found)
    assert book.method == f"gmm-{covariance}"
    counts = np.bincount(book.assign(latents), minlength=6)
    assert (np.diff(counts) <= 0).all()
    np.testing.assert_allclose(found.shares, counts / len(latents), atol=1e-9)
    np.testing.assert_array_equal(book.centres, found.centres)
    assert (book.weights[:, 8:] != 0).any() == (covariance != "tied")


def test_silent_channels_leave_scores_small_and_finite() -> None:
    latents = drawn()
    latents[:, 3] = 0
    latents[:, 5] = 1e-9 * latents[:, 4]
    start = cluster(latents, 6, restarts=1).centres
    for covariance in COVARIANCES:
        found = fit_mixture(latents, start, covariance)
        phi = np.concatenate([latents, latents * latents], axis=1)
        scores = phi @ found.weights.T + found.bias
        assert np.isfinite(scores).all()
        own = scores.argmax(axis=1)
        assert (own == found.model.predict(latents.astype(np.float64))).mean() >= 0.999


def test_full_covariances_are_refused_with_the_reason() -> None:
    with pytest.raises(CalibrationError, match="products of two different channels") as caught:
        cluster(drawn(), 6, method="gmm", covariance="full")
    assert "tied" in caught.value.fix
    with pytest.raises(CalibrationError, match="'round' is unknown"):
        check_covariance("round")
    from sklearn.mixture import GaussianMixture

    with pytest.raises(CalibrationError, match="full covariances do not fit"):
        affine_scores(GaussianMixture(2, covariance_type="full").fit(drawn(200)))


def test_too_few_latents_are_refused() -> None:
    latents = drawn(50)
    with pytest.raises(
        CalibrationError, match="50 latents are too few for a mixture of 6"
    ) as found:
        fit_mixture(latents, latents[:6], "diag")
    assert "kmeans" in found.value.fix


def test_a_component_that_wins_nothing_is_an_error_and_not_a_silent_cluster() -> None:
    latents = drawn(clusters=2)
    start = np.concatenate([latents[:2], np.full((1, 8), 1e6, np.float32)])
    with pytest.raises(CalibrationError, match="of the mixture of 3 collapse"):
        fit_mixture(latents, start, "tied")


def test_a_mixture_that_does_not_come_to_rest_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mixture, "ITERATIONS", 1)
    with caplog.at_level(logging.WARNING):
        found = cluster(drawn(), 6, method="gmm", covariance="diag", restarts=1)
    assert not found.converged
    assert "had not come to rest after 2 iterations" in caplog.text
