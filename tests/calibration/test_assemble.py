"""A decoder gets its mean latents and the scale of its errors from calibration frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.calibration.assemble import decoder_parts
from aeseg_edge.calibration.fit import FitSettings
from aeseg_edge.calibration.recalibrate import recalibrate
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.sources.scene import draw_scene
from tests.doubles import decoder as double

GRAPH = double.decoder(8, 4)
FRAMES = [draw_scene(7 * index, 96, 64) for index in range(12)]


def latents_of(bundle: Bundle) -> np.ndarray:
    """Every latent of every frame: [n, D]."""
    with Segmenter.load(bundle, precision="fp32", backend="onnxruntime", threads=1) as segmenter:
        found = [segmenter(frame, want=frozenset({"latents"})).latents for frame in FRAMES]
    return np.concatenate([each.reshape(8, -1).T for each in found if each is not None])


def test_a_cluster_is_drawn_from_the_mean_of_its_latents(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    latents = latents_of(bundle)
    clusters = bundle.codebook.assign(latents)
    parts = decoder_parts(bundle, GRAPH, FRAMES, threads=1)
    assert parts is not None
    assert parts.latents is not None
    assert parts.frames == 12
    seen = np.unique(clusters)
    assert len(seen) > 2
    for cluster in seen:
        wanted = latents[clusters == cluster].mean(axis=0)
        assert parts.latents[cluster] == pytest.approx(wanted, abs=1e-4)


def test_the_scale_is_the_distribution_of_the_frames_errors(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    drawn = [
        double.draw(each.reshape(16, 24, 8).transpose(2, 0, 1), 4, 3).astype(float)
        for each in latents_of(bundle).reshape(12, -1, 8)
    ]
    errors = np.stack(
        [
            np.abs(frame - picture).reshape(16, 4, 24, 4, 3).mean(axis=(1, 3, 4))
            for frame, picture in zip(FRAMES, drawn, strict=True)
        ]
    )
    parts = decoder_parts(bundle, GRAPH, FRAMES, threads=1)
    assert parts is not None
    assert (parts.median, parts.p99) == pytest.approx(np.percentile(errors, [50, 99]), abs=0.01)


def test_a_region_leaves_the_latents_outside_out(v1_bundle: Path) -> None:
    bundle = Bundle.open(v1_bundle)
    region = np.zeros((64, 96), np.uint8)
    region[:32] = 255
    masked = Bundle.build(bundle.manifest, bundle.codebook, bundle.graphs, region=region)
    latents = latents_of(bundle).reshape(12, 16, 24, 8)[:, :8].reshape(-1, 8)
    clusters = bundle.codebook.assign(latents)
    parts = decoder_parts(masked, GRAPH, FRAMES, threads=1)
    assert parts is not None
    assert parts.latents is not None
    cluster = int(np.bincount(clusters).argmax())
    wanted = latents[clusters == cluster].mean(axis=0)
    assert parts.latents[cluster] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("method", ["kmeans", "spherical"])
def test_a_cluster_that_never_occurs_is_drawn_from_its_centre(v1_bundle: Path, method: str) -> None:
    bundle = Bundle.open(v1_bundle)
    centres = np.zeros((2, 8), np.float32)
    centres[1, 0] = 1.0 if method == "spherical" else 1e4
    book = Codebook.from_centres(centres, method=method)
    if method == "spherical":
        book = replace(book, bias=np.array([0, -1e6], np.float32))
    parts = decoder_parts(bundle.with_codebook(book), GRAPH, FRAMES, threads=1)
    assert parts is not None
    assert parts.latents is not None
    # A direction alone says nothing of the length: it gets the usual one.
    norm = np.linalg.norm(latents_of(bundle), axis=1).mean() if method == "spherical" else 1e4
    assert parts.latents[1] == pytest.approx(centres[1] / centres[1].max() * norm, rel=1e-3)


def test_calibrating_again_keeps_the_decoder_and_finds_its_means_anew(v1_bundle: Path) -> None:
    old = Bundle.open(v1_bundle)
    before = old.with_decoder(decoder_parts(old, GRAPH, FRAMES, threads=1))
    settings = FitSettings(clusters=4, restarts=1, samples=2000, threads=1)
    parts = recalibrate(before, FRAMES, settings).bundle.decoder
    assert parts is not None
    assert parts.graph == GRAPH
    assert parts.latents is not None
    assert parts.latents.shape == (4, 8)
