"""Distances of latents to their centres, and the drift figure made of them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.drift import LEVELS, RunningDrift, Spread, distances, spread_of
from aeseg_edge.bundle.manifest import Manifest
from aeseg_edge.calibration.clusters.methods import measure_of
from aeseg_edge.errors import BundleError
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.sources.scene import draw_scene

WANT = frozenset({"distance"})
CHANCE = np.random.default_rng(0)
CENTRES = CHANCE.normal(0, 1, (4, 6)).astype(np.float32)
LATENTS = CHANCE.normal(0, 1, (6, 5, 7)).astype(np.float32)

SPREAD = Spread("cosine", tuple(0.01 * level for level in LEVELS), 0.2)


def test_a_distance_is_the_one_to_the_nearest_centre() -> None:
    flat = LATENTS.reshape(6, -1).T
    wanted = np.linalg.norm(flat[:, None] - CENTRES, axis=2).min(axis=1)
    found = distances(LATENTS, CENTRES, "euclidean")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), wanted, rtol=1e-4)


def test_a_cosine_distance_looks_at_directions_alone() -> None:
    flat = LATENTS.reshape(6, -1).T
    cosines = flat @ CENTRES.T
    cosines /= np.linalg.norm(flat, axis=1)[:, None] * np.linalg.norm(CENTRES, axis=1)
    found = distances(LATENTS, CENTRES, "cosine")
    np.testing.assert_allclose(found.ravel(), 1 - cosines.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(distances(3 * LATENTS, CENTRES, "cosine"), found, atol=1e-5)
    assert distances(np.zeros((6, 1), np.float32), CENTRES, "cosine") == 1


@pytest.mark.parametrize("method", ["kmeans", "spherical", "gmm-diag"])
def test_the_spread_is_that_of_the_codebook_in_use(method: str) -> None:
    points = CHANCE.normal(0, 1, (4000, 6)).astype(np.float32)
    book = Codebook.from_centres(CENTRES, method=method)
    spread = spread_of(points, book, measure=measure_of(method))
    assert spread is not None
    assert spread.measure == ("cosine" if method == "spherical" else "euclidean")
    found = distances(points.T, CENTRES, spread.measure)
    assert (found > spread.p99).mean() == pytest.approx(0.01, abs=0.001)
    assert spread.drift(found) == pytest.approx(0, abs=0.001)
    # Closer than calibration's is as unlike as farther.
    assert spread.drift(found[found < np.median(found)]) == pytest.approx(0.5, abs=0.01)
    assert spread.drift(found[found > np.median(found)]) == pytest.approx(0.5, abs=0.01)
    assert spread.drift(np.full(3, np.nan, np.float32)) is None
    assert spread_of(points, replace(book, centres=None), measure=measure_of(method)) is None


def changed(bundle: Bundle, **fields: object) -> Bundle:
    manifest = replace(bundle.manifest, **fields)  # type: ignore[arg-type]
    return Bundle.build(manifest, bundle.codebook, bundle.graphs)


def with_spread(path: Path, spread: Spread | None) -> Bundle:
    bundle = Bundle.open(path)
    return changed(bundle, spread=spread)


def measured(path: Path) -> Bundle:
    """The test bundle with the spread of drawn scenes."""
    with Segmenter.load(path, backend="onnxruntime", threads=1) as segmenter:
        found = [
            segmenter(draw_scene(5 * i, 96, 64), want=frozenset({"latents"})).latents
            for i in range(10)
        ]
        frames = [each for each in found if each is not None]
        latents = np.concatenate([each.reshape(8, -1).T for each in frames])
        return with_spread(
            path, spread_of(latents, segmenter.codebook, frames, measure="euclidean")
        )


def unlike(bundle: Bundle, frame: NDArray[np.uint8]) -> float:
    with Segmenter.load(bundle, backend="onnxruntime", threads=1) as segmenter:
        result = segmenter(frame, want=WANT)
        assert result.latents is None
        assert result.frame_drift is not None
        return result.frame_drift


def test_a_scene_that_the_footage_did_not_have_is_far_from_it(v1_bundle: Path) -> None:
    bundle = measured(v1_bundle)
    known = draw_scene(12, 96, 64)
    assert bundle.manifest.spread is not None
    usual = bundle.manifest.spread.usual
    assert unlike(bundle, known) <= usual
    assert unlike(bundle, np.full_like(known, 128)) > 1.5 * usual
    assert unlike(bundle, CHANCE.integers(0, 256, known.shape, np.uint8)) > 1.5 * usual


def test_an_older_bundle_says_that_it_does_not_know(v1_bundle: Path) -> None:
    with Segmenter.load(v1_bundle, backend="onnxruntime", threads=1) as segmenter:
        assert not segmenter.measures_distance
        result = segmenter(draw_scene(0, 96, 64), want=WANT | {"margin"})
        assert result.distance is None
        assert result.frame_drift is None
        assert result.margin is not None


def test_bars_and_what_is_outside_the_region_do_not_count(v1_bundle: Path) -> None:
    bundle = measured(v1_bundle)
    geometry = replace(bundle.manifest.geometry, resize="letterbox")
    bundle = changed(bundle, geometry=geometry)
    left = np.zeros((64, 64), np.uint8)
    left[:, :32] = 255
    with Segmenter.load(bundle, backend="onnxruntime", threads=1, roi=left) as segmenter:
        distance = segmenter(draw_scene(0, 64, 64), want=WANT).distance
    assert distance is not None
    assert distance.shape == (16, 24)
    # Bars of 16 pixels left and right; of the 64 between, 32 are inside: 8 latents.
    inside = np.isfinite(distance)
    assert inside[:, 4:12].all()
    assert inside.sum() == 16 * 8


def test_drift_is_a_running_mean() -> None:
    drift = RunningDrift(weight=0.5)
    assert drift.value is None
    for share in (0.2, 0.4, 0.0):
        drift.add(share)
    assert drift.value == pytest.approx(0.15)


def test_the_manifest_keeps_gate_and_spread_and_refuses_nonsense(v1_bundle: Path) -> None:
    manifest = replace(Bundle.open(v1_bundle).manifest, gate=0.25, spread=SPREAD)
    again = Manifest.from_json(manifest.to_json())
    assert (again.gate, again.spread) == (0.25, SPREAD)
    for name, wrong in (
        ("gate", 0),
        ("gate", "wide"),
        ("spread", asdict(SPREAD) | {"measure": "miles"}),
        ("spread", asdict(SPREAD) | {"percentiles": [1.0] * 3}),
        ("spread", asdict(SPREAD) | {"percentiles": list(range(20, 0, -1))}),
        ("spread", asdict(SPREAD) | {"usual": 2}),
        ("spread", {"measure": "cosine"}),
    ):
        data = json.loads(manifest.to_json())
        data[name] = wrong
        with pytest.raises(BundleError, match="not valid"):
            Manifest.from_json(json.dumps(data))
