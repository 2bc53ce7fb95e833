"""Regions of frames, and clusters in which a small thing counts as much as a large one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.calibration.clusters import regions as balance
from aeseg_edge.calibration.clusters.latents import Samples, draw_samples
from aeseg_edge.calibration.clusters.regions import average_regions, collect_regions
from aeseg_edge.calibration.fit import Found, find_codebook
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.errors import CalibrationError

DIM = 4


class Street:
    """Stands in for an encoder: the frame's bytes choose one of a few latents, plus noise."""

    def __init__(self, noise: float = 0.05) -> None:
        generator = np.random.default_rng(7)
        self.kinds = np.array(
            # Two shades of a road, near one another, and three small things, far from all.
            [[3, 0, 0, 0], [3, 1.2, 0, 0], [-3, 0, 3, 0], [-3, 0, -3, 0], [0, -3, 0, 3]],
            np.float32,
        )
        self.noise = generator.normal(0, noise, (64, DIM, 24, 32)).astype(np.float32)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        kinds = np.moveaxis(self.kinds[frame[..., 0]], -1, 0)
        return np.ascontiguousarray(kinds + self.noise[frame[0, 0, 1]])


def streets(count: int = 12) -> list[np.ndarray]:
    frames = []
    for index in range(count):
        frame = np.zeros((24, 32, 3), np.uint8)
        frame[..., 1] = index
        frame[:, 16:, 0] = 1
        for kind in (2, 3, 4):
            row = 2 + 6 * (kind - 2) + index % 3
            frame[row : row + 2, 4 : 4 + 3 * 3 : 3, 0] = kind
            frame[row : row + 2, 5 : 5 + 3 * 3 : 3, 0] = kind
        frames.append(frame)
    return frames


def find(**changes: object) -> tuple[Found, Samples]:
    session, frames = Street(), streets()
    samples = draw_samples(session, frames, count=6000, seed=0)  # type: ignore[arg-type]
    mean = samples.latents.mean(axis=0, dtype=np.float64)
    settings = FitSettings(**{"clusters": 4, "clustering": "kmeans", **changes})  # type: ignore[arg-type]
    centred = samples.centred(mean)
    return find_codebook(session, frames, centred, settings, mean=mean), centred  # type: ignore[arg-type]


def small_things_apart(found: Found) -> int:
    """Count the clusters that the three small things have to themselves, without the road."""
    mean = draw_samples(Street(), streets(), count=6000, seed=0).latents.mean(axis=0)  # type: ignore[arg-type]
    clusters = found.codebook.assign((Street().kinds - mean).astype(np.float32)).tolist()
    return len(set(clusters[2:]) - set(clusters[:2]))


def test_each_connected_region_has_the_mean_and_size_of_its_latents() -> None:
    clusters = np.array([[0, 0, 1], [2, 0, 1], [2, 1, -1]])
    latents = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    means, sizes = average_regions(latents, clusters)
    assert sorted(sizes.tolist()) == [1, 2, 2, 3]
    by_size = {int(size): mean for size, mean in zip(sizes, means, strict=True)}
    np.testing.assert_allclose(by_size[3], [(0 + 1 + 4) / 3, 9 + (0 + 1 + 4) / 3], rtol=1e-6)
    # A corner does not connect: the 1 below is a region of its own.
    np.testing.assert_allclose(by_size[1], [7, 16])


@pytest.mark.parametrize(("clustering", "clusters"), [("kmeans", 4), ("gmm", 4), ("spherical", 5)])
def test_small_things_get_clusters_of_their_own_when_regions_are_balanced(
    clustering: str, clusters: int
) -> None:
    plain, samples = find(clustering=clustering, balance="none", clusters=clusters)
    balanced, _ = find(clustering=clustering, balance="regions", clusters=clusters)
    assert plain.regions is None
    assert balanced.regions is not None
    # Two halves of road, and nine small things, three of each kind, in 12 frames.
    assert 12 * (2 + 6) <= balanced.regions <= 12 * 30
    assert balanced.to_json()["balance"] == "regions"
    assert small_things_apart(balanced) == 3
    if clustering == "kmeans":
        # There the second centre of the road is worth more than one of a small thing's.
        assert small_things_apart(plain) == 2
    counts = np.bincount(balanced.codebook.assign(samples.latents), minlength=clusters)
    np.testing.assert_allclose(balanced.clustering.shares, counts / counts.sum(), atol=1e-6)
    assert (np.diff(counts) <= 0).all()


def test_the_same_seed_gives_the_same_balanced_codebook() -> None:
    first, again = (find(balance="regions", seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first.codebook.weights, again.codebook.weights)


@pytest.mark.parametrize("bars", [False, True])
def test_regions_in_bars_and_outside_the_region_of_interest_do_not_count(bars: bool) -> None:
    fine = Codebook.from_centres(Street().kinds)
    where: dict[str, Any] = {"boxes": [(0, 16, 24, 16)] * 12}
    if not bars:
        inside = np.zeros((24, 32), np.uint8)
        inside[:, 16:] = 255
        where = {"region": inside}
    found = collect_regions(Street(), streets(), fine, seed=0, **where)  # type: ignore[arg-type]
    # Right of the middle there is one shade of road and nothing else.
    assert len(found.latents) == 12
    np.testing.assert_allclose(found.latents, np.tile(Street().kinds[1], (12, 1)), atol=0.05)
    np.testing.assert_array_equal(found.frames, np.arange(12))


def test_memory_is_bounded_by_drawing_from_each_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "MOST_REGIONS", 36)
    fine = Codebook.from_centres(Street().kinds)
    found = collect_regions(Street(), streets(), fine, seed=0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.bincount(found.frames), np.full(12, 3))


def test_frames_without_a_region_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "SMALLEST_REGION", 10_000)
    with pytest.raises(CalibrationError, match="no frame has a region of 10000 or more"):
        find(balance="regions")
