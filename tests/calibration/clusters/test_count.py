"""The number of clusters that footage itself suggests, and the curve that shows why."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("sklearn")

from aeseg_edge.calibration.clusters import count as choose  # noqa: E402
from aeseg_edge.calibration.clusters.count import Candidate, Choice, choose_clusters, decide, grid  # noqa: E402
from aeseg_edge.calibration.clusters.curves import draw_curve, write_curve  # noqa: E402
from aeseg_edge.calibration.clusters.latents import Samples  # noqa: E402
from aeseg_edge.calibration.clusters.methods import Clustering, cluster  # noqa: E402
from aeseg_edge.errors import CalibrationError  # noqa: E402


def blobs(clusters: int, *, spread: float = 0.5, seed: int = 0) -> Samples:
    means = np.random.default_rng(4).normal(0, 6, (clusters, 5))
    generator = np.random.default_rng(seed)
    which = generator.integers(0, clusters, 600)
    points = means[which] + generator.normal(0, spread, (600, 5))
    return Samples(points.astype(np.float32), np.arange(600) // 30)


def fit(latents: np.ndarray, clusters: int) -> Clustering:
    return cluster(latents, clusters, restarts=3)


def fit_directions(latents: np.ndarray, clusters: int) -> Clustering:
    return cluster(latents, clusters, method="spherical", restarts=3)


@pytest.mark.parametrize("clusters", [5, 8])
def test_the_number_of_clear_clusters_is_found(clusters: int) -> None:
    found = choose_clusters(blobs(clusters), (clusters - 2, clusters + 2), fit)
    assert found.clusters == clusters
    assert found.steady
    assert [item.clusters for item in found.candidates] == list(range(clusters - 2, clusters + 3))


def test_directions_are_counted_where_directions_are_clustered() -> None:
    points = blobs(5)
    strength = np.random.default_rng(1).uniform(0.2, 5, (len(points.latents), 1))
    stretched = Samples((points.latents * strength).astype(np.float32), points.frames)
    assert choose_clusters(stretched, (4, 7), fit_directions, method="spherical").clusters == 5


def test_the_choice_is_the_same_under_the_same_seed() -> None:
    first, again = (choose_clusters(blobs(4, spread=2.5), (2, 4), fit, seed=2) for _ in range(2))
    other = choose_clusters(blobs(4, spread=2.5, seed=1), (2, 4), fit, seed=3)
    assert first == again
    assert first.candidates != other.candidates


def test_stability_comes_first_and_silhouette_decides_among_the_stable() -> None:
    lines = [
        Candidate(4, 0.98, 0.30),
        Candidate(5, 0.80, 0.35),
        Candidate(6, 0.50, 0.60),
        Candidate(7, None, 0.90),
    ]
    assert (decide(lines).clusters, decide(lines).steady) == (5, True)


def test_where_nothing_is_stable_the_most_stable_is_taken_and_it_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = [Candidate(4, 0.3, 0.3), Candidate(5, 0.6, 0.1), Candidate(6, None, 0.9)]
    with caplog.at_level(logging.WARNING):
        found = decide(lines)
    assert (found.clusters, found.steady) == (5, False)
    assert "no number of clusters from 4 to 6 is stable" in caplog.text


def test_a_long_range_is_walked_at_equal_ratios() -> None:
    assert grid(4, 9) == [4, 5, 6, 7, 8, 9]
    values = grid(4, 256)
    assert (values[0], values[-1], len(values)) == (4, 256, 16)
    ratios = np.diff(np.log(values))
    assert ratios.max() < 0.4


def test_a_range_that_no_number_of_fits_is_refused() -> None:
    few = blobs(3).where(np.arange(4))
    with pytest.raises(CalibrationError, match="from 8 to 12 can be fitted: 12 clusters"):
        choose_clusters(few, (8, 12), fit)


# --- the curve ------------------------------------------------------------------------------------

CHOICE = Choice(
    6,
    (Candidate(4, 0.9, 0.2), Candidate(6, 0.8, 0.4), Candidate(8, None, 0.1)),
    steady=True,
)


def test_the_curve_is_written_beside_the_bundle_as_json_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write_curve(CHOICE.curve(), tmp_path / "street.aeseg")
    names = ["street.clusters.json", "street.clusters.png"]
    assert [path.name for path in written] == names
    data = json.loads(written[0].read_text())
    assert data["chosen"] == 6
    assert data["criterion"] == choose.CRITERION
    assert data["candidates"][2] == {"clusters": 8, "stability_ari": None, "silhouette": 0.1}
    picture = cv2.imread(str(written[1]))
    assert picture.shape == (500, 800, 3)
    # Both lines are drawn in their colours.
    for red, green, blue in ((0x33, 0x22, 0x88), (0xCC, 0x66, 0x77)):
        near = np.abs(picture.astype(int) - (blue, green, red)).max(axis=2) < 8
        assert near.sum() > 100
    assert draw_curve(CHOICE.curve()) == written[1].read_bytes()


def test_without_matplotlib_there_is_the_json_and_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level(logging.INFO):
        written = write_curve(CHOICE.curve(), tmp_path / "street.aeseg")
    assert [path.name for path in tmp_path.iterdir()] == ["street.clusters.json"]
    assert [path.name for path in written] == ["street.clusters.json"]
    assert "matplotlib is not installed" in caplog.text
