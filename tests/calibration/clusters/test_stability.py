"""How sure clusters are: between starts, and between halves of the footage."""

from __future__ import annotations

import logging

import numpy as np
import pytest

pytest.importorskip("sklearn")

from aeseg_edge.calibration.clusters import kmeans
from aeseg_edge.calibration.clusters.kmeans import best_start, rand_index
from aeseg_edge.calibration.clusters.latents import Samples
from aeseg_edge.calibration.clusters.methods import Clustering, cluster
from aeseg_edge.calibration.clusters.stability import Stability, between_halves, split_frames
from aeseg_edge.calibration.fit import Found, find_codebook
from aeseg_edge.calibration.settings import FitSettings

FRAMES = 20


def blobs(
    frames: int = FRAMES, *, drift: float = 0.0, seed: int = 0, spread: float = 0.5
) -> Samples:
    """Six far blobs in every frame; with drift the second of every two stretches has others."""
    generator = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(0, 10, (6, 5))
    away = np.random.default_rng(98).normal(0, 10, (6, 5))
    parts = []
    for frame in range(frames):
        odd = frame * 10 // frames % 2
        centre = means * (1 - drift * odd) + drift * odd * away[[0, 0, 0, 1, 1, 2]]
        parts.append(np.repeat(centre, 20, axis=0) + generator.normal(0, spread, (120, 5)))
    origin = np.repeat(np.arange(frames), 120)
    return Samples(np.concatenate(parts).astype(np.float32), origin.astype(np.int64))


def flat(count: int = 4000, seed: int = 0) -> Samples:
    """No clusters at all: a round cloud, which every start cuts another way."""
    generator = np.random.default_rng(seed)
    latents = generator.normal(size=(count, 12)).astype(np.float32)
    return Samples(latents, np.sort(generator.integers(0, FRAMES, count)))


def find(samples: Samples, **changes: object) -> Found:
    settings = FitSettings(**{"clusters": 6, "clustering": "kmeans", "restarts": 6, **changes})  # type: ignore[arg-type]

    def never(frame: np.ndarray) -> np.ndarray:
        raise AssertionError("no frame is needed")

    return find_codebook(never, [], samples, settings, mean=np.zeros(5))  # type: ignore[arg-type]


def test_clear_clusters_are_stable_and_a_round_cloud_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        clear = find(blobs(), restarts=12).stability
        assert caplog.text == ""
        cloud = find(flat()).stability
    assert clear.halves == pytest.approx(1, abs=0.01)
    assert not clear.low
    assert cloud.restarts is not None
    assert cloud.restarts < 0.7
    assert cloud.halves is not None
    assert cloud.low
    assert "agree by only" in caplog.text
    # More starts were tried there, and there alone.
    assert (clear.tried, cloud.tried) == (12, 18)
    assert Stability(None, None, 1).low is False


def test_halves_that_show_other_things_do_not_agree() -> None:
    def fit(latents: np.ndarray) -> Clustering:
        return cluster(latents, 6, restarts=10)

    same = between_halves(blobs(), fit)
    other = between_halves(blobs(drift=1.0), fit)
    assert same == pytest.approx(1, abs=0.01)
    assert other is not None
    assert other < 0.75


def test_halves_are_alternating_stretches_of_frames_not_every_other_frame() -> None:
    second = split_frames(np.repeat(np.arange(40), 3))
    by_frame = second.reshape(40, 3)
    assert (by_frame.all(axis=1) == by_frame.any(axis=1)).all()
    changes = int(np.abs(np.diff(by_frame[:, 0].astype(int))).sum())
    assert changes == 9
    assert by_frame[:, 0].sum() == 20
    np.testing.assert_array_equal(split_frames(np.array([5, 5, 9])), [False, False, True])


def test_one_frame_or_too_few_latents_give_no_figure_rather_than_a_wrong_one() -> None:
    def fit(latents: np.ndarray) -> Clustering:
        return cluster(latents, 6, restarts=1)

    assert between_halves(blobs(frames=1), fit) is None
    few = blobs().where(np.arange(8) * 300)
    assert between_halves(few, fit) is None
    assert cluster(blobs().latents, 6, restarts=1).stability is None


def test_more_starts_find_a_lower_minimum_and_two_seeds_agree_better() -> None:
    generator = np.random.default_rng(3)
    means = generator.normal(0, 3, (14, 4))

    def drawn(seed: int) -> np.ndarray:
        other = np.random.default_rng(seed)
        which = other.integers(0, 14, 3000)
        return (means[which] + other.normal(0, 0.4, (3000, 4))).astype(np.float32)

    shown = drawn(1000)
    agreed = {}
    for restarts in (1, 24):
        # Two seeds: other samples and other starts.
        found = [cluster(drawn(seed), 14, restarts=restarts, seed=seed) for seed in range(4)]
        labels = [item.assign(shown) for item in found]
        agreed[restarts] = np.mean([rand_index(labels[0], other) for other in labels[1:]])
        assert restarts == 1 or max(item.inertia for item in found) < 0.75
    assert agreed[24] > 0.95
    assert agreed[24] > agreed[1]


def test_screening_on_a_part_settles_on_all_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    points = blobs().latents
    whole = best_start(points, 6, restarts=8, seed=1)
    monkeypatch.setattr(kmeans, "screened", lambda clusters: 300)
    part = best_start(points, 6, restarts=8, seed=1)
    assert part.labels.shape == (len(points),)
    assert part.inertia == pytest.approx(whole.inertia, rel=1e-4)
    assert part.tried == 8
    # Centres are means of all their vectors, not of the 300.
    means = np.stack([points[part.labels == k].mean(axis=0) for k in range(6)])
    np.testing.assert_allclose(part.centres, means, atol=1e-3)


def test_finer_clusterings_start_less_often_unless_told_otherwise() -> None:
    plain = FitSettings()
    assert [plain.starts(k) for k in (4, 27, 64, 256, 1024)] == [16, 16, 8, 2, 2]
    assert FitSettings(restarts=5).starts(1024) == 5
