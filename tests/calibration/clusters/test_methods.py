"""Centres found from latents, and the codebooks made of them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from aeseg_edge.bundle.codebook import MAX_CLASSES
from aeseg_edge.calibration.clusters.methods import (
    METHODS,
    cluster,
    codebook_from,
    measure_of,
    method_of,
    unit,
)
from aeseg_edge.errors import CalibrationError


def blobs(clusters: int, *, each: int = 80, dim: int = 6, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    means = generator.normal(0, 10, (clusters, dim))
    # Unequal sizes, so that the order by share is known.
    parts = [generator.normal(mean, 0.5, (each + 10 * i, dim)) for i, mean in enumerate(means)]
    return np.concatenate(parts).astype(np.float32)


def test_well_separated_blobs_are_found_largest_first() -> None:
    found = cluster(blobs(5), 5)
    assert found.centres.shape == (5, 6)
    np.testing.assert_allclose(found.shares, np.array([120, 110, 100, 90, 80]) / 500)
    assert found.stability == pytest.approx(1.0, abs=0.35)


@pytest.mark.parametrize("method", ["kmeans", "spherical"])
def test_the_same_seed_gives_the_same_centres(method: str) -> None:
    latents = np.random.default_rng(0).normal(size=(800, 4)).astype(np.float32)
    first, again = (cluster(latents, 7, method=method, seed=3) for _ in range(2))
    other = cluster(latents, 7, method=method, seed=4)
    np.testing.assert_array_equal(first.centres, again.centres)
    assert not np.array_equal(first.centres, other.centres)


def test_the_codebook_assigns_as_scikit_learn_predicts() -> None:
    from sklearn.cluster import KMeans

    latents = np.random.default_rng(1).normal(size=(2000, 8)).astype(np.float32)
    found = cluster(latents, 12, restarts=1)
    reference = KMeans(12, init=found.centres, n_init=1, max_iter=1).fit(latents)
    reference.cluster_centers_ = found.centres.astype(reference.cluster_centers_.dtype)
    own = codebook_from(found).assign(latents)
    assert (own == reference.predict(latents)).mean() >= 0.999


def test_spherical_clusters_do_not_depend_on_contrast() -> None:
    latents = np.random.default_rng(2).normal(size=(1500, 5)).astype(np.float32)
    strength = np.random.default_rng(3).uniform(0.1, 10, (1500, 1)).astype(np.float32)
    book = codebook_from(cluster(latents, 6, method="spherical"))
    assert book.centres is not None
    np.testing.assert_allclose(np.linalg.norm(book.centres, axis=1), 1, atol=1e-5)
    assert (book.assign(latents) == book.assign(latents * strength)).mean() >= 0.999
    cosine = unit(latents) @ book.centres.T
    assert (book.assign(latents) == cosine.argmax(axis=1)).mean() >= 0.999
    plain = codebook_from(cluster(latents, 6))
    assert (plain.assign(latents) == plain.assign(latents * strength)).mean() < 0.99


def test_more_clusters_than_samples_are_refused() -> None:
    with pytest.raises(CalibrationError, match="30 clusters are more than the 12 distinct"):
        cluster(blobs(1, each=12), 30)
    with pytest.raises(CalibrationError, match="1 distinct"):
        cluster(np.ones((500, 3), np.float32), 2)
    with pytest.raises(CalibrationError, match="1 clusters are not within"):
        cluster(blobs(2), 1)
    with pytest.raises(CalibrationError, match="'median'"):
        cluster(blobs(2), 2, method="median")


def test_one_channel_has_two_directions_and_no_more() -> None:
    latents = np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32)
    with pytest.raises(CalibrationError, match="one latent channel has two directions") as caught:
        cluster(latents, 3, method="spherical")
    assert "--clustering kmeans" in caught.value.fix
    assert len(cluster(latents, 2, method="spherical").centres) == 2
    assert len(cluster(latents, 3).centres) == 3


def test_beyond_255_clusters_the_nearest_share_a_class() -> None:
    generator = np.random.default_rng(5)
    latents = generator.normal(size=(3000, 3)).astype(np.float32)
    book = codebook_from(cluster(latents, 300, restarts=1))
    assert book.clusters == 300
    assert len(book.classes) <= MAX_CLASSES
    assert book.remap[0] == 0
    shared = [np.flatnonzero(book.remap == c) for c in np.unique(book.remap)]
    pairs = [rows for rows in shared if len(rows) == 2]
    assert pairs
    assert book.centres is not None
    gaps = [np.linalg.norm(book.centres[a] - book.centres[b]) for a, b in pairs]
    between = np.linalg.norm(book.centres[0] - book.centres[1:], axis=1).mean()
    assert np.mean(gaps) < 0.5 * between


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_gives_a_codebook_and_its_distance(name: str) -> None:
    latents = np.random.default_rng(6).normal(size=(900, 4)).astype(np.float32)
    book = codebook_from(cluster(latents, 5, method=name, restarts=2))
    assert method_of(book.method) is METHODS[name]
    assert measure_of(book.method) == METHODS[name].measure
    assert METHODS[name].help
    assert measure_of("linear") == "euclidean"
