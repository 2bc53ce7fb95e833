"""A bundle and other footage become a new bundle, and no torch is needed for it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.bundle.geometry import fit_frame  # noqa: E402
from aeseg_edge.calibration.fit import FitSettings, Fitted  # noqa: E402
from aeseg_edge.calibration.footage.varied import split_for_agreement  # noqa: E402
from aeseg_edge.calibration.recalibrate import recalibrate, settings_of  # noqa: E402
from aeseg_edge.cli import main  # noqa: E402
from aeseg_edge.errors import CalibrationError, UsageError  # noqa: E402
from aeseg_edge.segment.segmenter import Segmenter  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402

SETTINGS = FitSettings(clusters=4, restarts=2, samples=2000, threads=1)
KEYS = {("fp16", "tensorrt"), ("int8", "onnxruntime"), ("int8", "tensorrt")}


def scenes(count: int = 12) -> list[NDArray[np.uint8]]:
    return [draw_scene(7 * index, 96, 64) for index in range(count)]


def refit(bundle: Path, **changes: object) -> Fitted:
    return recalibrate(Bundle.open(bundle), scenes(), replace(SETTINGS, **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted(v1_bundle: Path) -> Fitted:
    return refit(v1_bundle)


def test_new_centres_and_graphs_take_the_place_of_the_old(fitted: Fitted, v1_bundle: Path) -> None:
    old = Bundle.open(v1_bundle)
    new = fitted.bundle
    assert new.manifest.clusters == new.codebook.clusters == 4
    assert new.codebook.latent_dim == old.codebook.latent_dim
    assert new.manifest.geometry == old.manifest.geometry
    assert {entry.key for entry in new.manifest.entries} == KEYS | {
        ("fp32", "onnxruntime"),
        ("fp32", "tensorrt"),
    }
    assert new.graph("int8", "onnxruntime") != old.graph("int8", "onnxruntime")


def test_the_encoder_itself_stays_as_it_was_trained(fitted: Fitted, v1_bundle: Path) -> None:
    frame = scenes(1)[0]
    latents = []
    for bundle in (Bundle.open(v1_bundle), fitted.bundle):
        with Segmenter.load(bundle, precision="fp32", backend="onnxruntime", threads=1) as seg:
            found = seg(frame, want=frozenset({"latents"})).latents
            assert found is not None
            latents.append(found)
    assert np.allclose(latents[0], latents[1], atol=1e-5)


def test_the_same_seed_gives_the_same_bytes(
    fitted: Fitted, v1_bundle: Path, tmp_path: Path
) -> None:
    fitted.bundle.write(tmp_path / "a.aeseg")
    refit(v1_bundle).bundle.write(tmp_path / "b.aeseg")
    assert (tmp_path / "a.aeseg").read_bytes() == (tmp_path / "b.aeseg").read_bytes()


def test_another_seed_gives_other_centres(fitted: Fitted, v1_bundle: Path) -> None:
    other = refit(v1_bundle, seed=5)
    assert not np.array_equal(other.bundle.codebook.weights, fitted.bundle.codebook.weights)


def test_the_manifest_states_agreement_and_how_it_was_calibrated(fitted: Fitted) -> None:
    manifest = fitted.bundle.manifest
    assert set(fitted.agreements) == KEYS
    for entry in manifest.entries:
        if entry.key not in KEYS:
            assert entry.agreement is None
            continue
        assert entry.agreement is not None
        assert entry.agreement["labels_equal"] >= 0.95
        assert entry.recommended
    for backend in ("fp16", "int8"):
        note = manifest.entry(backend, "tensorrt").note
        assert "emulated on a CPU" in note
    calibration = manifest.training["calibration"]
    # A third of the 12 frames checks, and never the frames of the ranges.
    assert (calibration["frames"], calibration["range_frames"]) == (12, 8)
    assert fitted.agreements["int8", "onnxruntime"].frames == 4
    assert calibration["clusters"] == 4
    stability = calibration["stability"]
    assert -0.5 <= stability["halves"] <= 1
    assert stability["restarts"] == pytest.approx(calibration["stability_ari"], abs=1e-4)
    assert stability["tried"] == calibration["restarts"] in (2, 6)
    assert stability["low_below"] == 0.75
    assert sum(calibration["shares"]) == pytest.approx(1, abs=1e-4)


def test_below_the_gate_an_entry_is_not_recommended_and_said_loudly(
    v1_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = refit(v1_bundle, minimum_agreement=1.0)
    assert ("int8", "onnxruntime") in found.below
    entry = found.bundle.manifest.entry("int8", "onnxruntime")
    assert not entry.recommended
    assert "gate 1.0" in entry.note
    assert "int8 for onnxruntime agrees with fp32 on only" in caplog.text
    with Segmenter.load(found.bundle, backend="onnxruntime", threads=1) as segmenter:
        assert segmenter.entry.precision == "fp32"


def test_without_a_failed_gate_nothing_is_below(fitted: Fitted) -> None:
    assert fitted.below == {}


def test_latents_outside_the_region_do_not_count(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    region = np.zeros((64, 96), np.uint8)
    region[32:] = 255
    held = Bundle.build(bundle.manifest, bundle.codebook, bundle.graphs, region=region)
    found = recalibrate(held, scenes(), SETTINGS)
    assert found.bundle.region is not None
    assert np.array_equal(found.bundle.region, region)
    # 8 of the 16 rows of cells of each frame.
    assert found.bundle.manifest.training["calibration"]["latents"] <= 12 * 8 * 24
    with Segmenter.load(found.bundle, backend="onnxruntime", threads=1) as segmenter:
        labels = segmenter(scenes(1)[0]).labels
    assert (labels[:32] == 255).all()
    assert (labels[32:] != 255).all()


@pytest.mark.parametrize("kind", ["plain", "region", "letterbox", "both"])
def test_what_is_usual_is_what_a_run_over_the_footage_finds(v1_bundle: Path, kind: str) -> None:
    bundle = Bundle.open(v1_bundle)
    geometry, region = bundle.manifest.geometry, None
    size = (160, 90)
    if kind in ("letterbox", "both"):
        geometry, size = replace(geometry, resize="letterbox"), (160, 60)
    if kind in ("region", "both"):
        region = np.zeros((64, 96), np.uint8)
        region[32:] = 255
    held = Bundle.build(
        replace(bundle.manifest, geometry=geometry), bundle.codebook, bundle.graphs, region=region
    )
    pictures = [draw_scene(7 * index, *size) for index in range(12)]
    fitted = [fit_frame(picture, geometry) for picture in pictures]
    sizes = np.array([picture.shape[:2] for picture in pictures])
    found = recalibrate(held, fitted, SETTINGS, sizes=sizes).bundle
    ranges_on, _ = split_for_agreement(
        fitted, SETTINGS.calibration_frames, SETTINGS.agreement_frames
    )
    with Segmenter.load(found, precision="fp32", backend="onnxruntime", threads=1) as segmenter:
        results = [segmenter(pictures[i], want=frozenset({"distance"})) for i in ranges_on]
    assert found.manifest.spread is not None
    assert found.manifest.spread.usual == pytest.approx(
        np.percentile([each.frame_drift for each in results], 90), abs=0.01
    )
    assert found.manifest.spread.usual < 0.4
    # Bars of 14 rows above and below: 9 of the 16 rows of latents, 4 of them in the lower half.
    rows = {"plain": 16, "region": 8, "letterbox": 9, "both": 4}[kind]
    drawn = found.manifest.training["calibration"]["latents"]
    assert drawn == min(SETTINGS.samples, 12 * 24 * rows)


def test_stretched_footage_gives_the_same_bytes_whatever_its_size(
    fitted: Fitted, v1_bundle: Path, tmp_path: Path
) -> None:
    fitted.bundle.write(tmp_path / "a.aeseg")
    sizes = np.full((12, 2), (90, 160))
    again = recalibrate(Bundle.open(v1_bundle), scenes(), SETTINGS, sizes=sizes)
    again.bundle.write(tmp_path / "b.aeseg")
    assert (tmp_path / "a.aeseg").read_bytes() == (tmp_path / "b.aeseg").read_bytes()


def test_a_region_without_a_single_latent_is_refused(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    empty = np.zeros((64, 96), np.uint8)
    held = Bundle.build(bundle.manifest, bundle.codebook, bundle.graphs, region=empty)
    with pytest.raises(CalibrationError, match="holds no latents"):
        recalibrate(held, scenes(), SETTINGS)


def test_more_clusters_than_distinct_latents_are_refused(v1_bundle: Path) -> None:
    flat = [np.full((64, 96, 3), level, np.uint8) for level in (50, 60)]
    with pytest.raises(CalibrationError, match="900 clusters are more than the"):
        recalibrate(Bundle.open(v1_bundle), flat, replace(SETTINGS, clusters=900))


def test_a_single_frame_is_refused(v1_bundle: Path) -> None:
    with pytest.raises(CalibrationError, match="1 frames are too few"):
        recalibrate(Bundle.open(v1_bundle), scenes(1), SETTINGS)


@pytest.mark.parametrize(
    "values",
    [
        {"clusters": 1},
        {"clusters": 1025},
        {"restarts": 0},
        {"samples": 0},
        {"calibration_frames": 0},
        {"agreement_frames": 0},
        {"minimum_agreement": 1.01},
        {"clustering": "ward"},
        {"balance": "classes"},
        {"cluster_range": (1, 5)},
        {"cluster_range": (9, 9)},
        {"cluster_range": (9, 2000)},
        {"covariance": "full"},
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_work(values: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        replace(SETTINGS, **values)  # type: ignore[arg-type]
    assert caught.value.fix


@pytest.mark.parametrize("covariance", ["tied", "diag"])
def test_a_mixture_runs_in_the_deployed_graph_and_is_fitted_so_again(
    v1_bundle: Path, covariance: str
) -> None:
    found = refit(v1_bundle, clustering="gmm", covariance=covariance)
    manifest = found.bundle.manifest
    assert manifest.method == f"gmm-{covariance}"
    assert manifest.training["calibration"]["method"] == f"gmm-{covariance}"
    assert manifest.training["calibration"]["converged"] is True
    told = settings_of(manifest)
    assert told == {
        "clusters": 4,
        "clustering": "gmm",
        "covariance": covariance,
        "balance": "none",
    }
    with Segmenter.load(found.bundle, precision="fp32", backend="onnxruntime", threads=1) as seg:
        result = seg(scenes(1)[0], want=frozenset({"latents", "margin"}))
        clusters = seg.clusters(scenes(1)[0])
    assert result.latents is not None
    assert result.margin is not None
    grid = np.moveaxis(result.latents.reshape(8, 16, 24), 0, -1)
    # Away from where interpolated scores meet, the graph decides as the codebook does.
    cells = cv2.resize(clusters.astype(np.uint8), (24, 16), interpolation=cv2.INTER_NEAREST)
    equal = cells == found.bundle.codebook.assign(grid)
    sure = result.margin.reshape(16, 24) > np.median(result.margin)
    assert equal[sure].mean() > 0.97


def test_the_number_of_clusters_can_be_left_to_the_footage(v1_bundle: Path) -> None:
    found = refit(v1_bundle, clusters=99, cluster_range=(3, 5))
    manifest = found.bundle.manifest
    assert found.choice is not None
    assert manifest.clusters == found.bundle.codebook.clusters == found.choice.clusters
    assert 3 <= manifest.clusters <= 5
    told = manifest.training["calibration"]["chosen"]
    assert [item["clusters"] for item in told["candidates"]] == [3, 4, 5]
    # Once chosen, it is a number like any other.
    assert settings_of(manifest)["clusters"] == manifest.clusters


def test_regions_can_be_balanced_and_are_again(v1_bundle: Path) -> None:
    plain, balanced = refit(v1_bundle), refit(v1_bundle, balance="regions")
    assert not np.array_equal(plain.bundle.codebook.weights, balanced.bundle.codebook.weights)
    calibration = balanced.bundle.manifest.training["calibration"]
    assert calibration["regions"] > 12
    assert settings_of(balanced.bundle.manifest)["balance"] == "regions"
    assert "regions" not in plain.bundle.manifest.training["calibration"]


def test_how_a_linear_codebook_was_fitted_is_not_taken_for_a_clustering(fitted: Fitted) -> None:
    manifest = fitted.bundle.manifest
    assert settings_of(replace(manifest, method="linear"))["clustering"] == "spherical"
    assert settings_of(replace(manifest, method="linear", training={})) == {"clusters": 4}


def test_a_full_folder_for_temporary_files_is_said(
    v1_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(CalibrationError, match="temporary files cannot be used") as caught:
        refit(v1_bundle)
    assert "TMPDIR" in caught.value.fix


NO_TORCH = '''
import sys

import importlib.machinery

found = importlib.machinery.PathFinder.find_spec

def without_torch(name, path=None, target=None):
    """Find nothing, as where the package is not installed: some libraries only ask."""
    return None if name.partition(".")[0] == "torch" else found(name, path, target)

importlib.machinery.PathFinder.find_spec = without_torch
from aeseg_edge.cli import main
sys.exit(main(sys.argv[1:]))
'''


def test_calibrate_works_where_torch_is_not_installed(
    v1_bundle: Path, tmp_path: Path, repository: Path
) -> None:
    footage = tmp_path / "night"
    footage.mkdir()
    for index, image in enumerate(scenes()):
        cv2.imwrite(str(footage / f"{index}.png"), image // 2)
    command = ["calibrate", str(v1_bundle), str(footage), "-o", str(tmp_path / "night.aeseg")]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *command, "--restarts", "1", "--json", "-"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # K and the way of clustering are the bundle's, where nothing else is asked for.
    before, after = Bundle.open(v1_bundle), Bundle.open(tmp_path / "night.aeseg")
    assert json.loads(done.stdout)["clusters"] == before.manifest.clusters == 5
    assert after.manifest.method == before.manifest.method
    assert after.manifest.provenance["calibration_footage"] == [str(footage)]
    assert after.manifest.training["arch"] == "shallow"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["night", "night.aeseg"]


def test_calibrate_looks_past_the_bars_of_its_footage(v1_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    geometry = replace(bundle.manifest.geometry, resize="letterbox")
    bundle.with_manifest(replace(bundle.manifest, geometry=geometry)).write(tmp_path / "a.aeseg")
    footage = tmp_path / "wide"
    footage.mkdir()
    for index in range(8):
        cv2.imwrite(str(footage / f"{index}.png"), draw_scene(9 * index, 160, 60))
    more = ["--restarts", "1", "--threads", "1", "-o", str(tmp_path / "b.aeseg")]
    assert main(["calibrate", str(tmp_path / "a.aeseg"), str(footage), *more]) == 0
    after = Bundle.open(tmp_path / "b.aeseg").manifest
    assert after.training["calibration"]["latents"] == 8 * 9 * 24


def test_few_latents_a_cluster_are_said(v1_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    refit(v1_bundle)
    assert "tell these frames apart" not in caplog.text
    refit(v1_bundle, clusters=40, samples=300)
    assert "40 clusters of only 300 latents" in caplog.text


def test_more_clusters_than_regions_are_refused_as_such(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    with pytest.raises(CalibrationError, match=r"900 clusters are more than the \d+ connected"):
        recalibrate(bundle, scenes(), replace(SETTINGS, clusters=900, balance="regions"))
