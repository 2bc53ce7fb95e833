"""The path that one graph replaces gives the labels of that graph."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")
pytest.importorskip("onnx")

import onnx

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.calibration.graphs.assemble import attach_head, detach_head
from aeseg_edge.calibration.report.split import SMOOTH_SPLIT, SPLIT, SplitPath, split_paths
from aeseg_edge.errors import MissingDependency
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.sources.scene import draw_scene

NOISE = np.random.default_rng(0).integers(0, 60, (100, 150, 3), np.uint8)
FRAME = draw_scene(5, 150, 100) // 2 + NOISE


def at_own_stride(bundle: Bundle) -> Bundle:
    """The same encoders and codebook with labels at the encoder's stride."""
    manifest = bundle.manifest
    spec = replace(manifest.spec, output_stride=manifest.stride)
    graphs = {}
    for path, graph in bundle.graphs.items():
        encoder = detach_head(onnx.load_model_from_string(graph))
        graphs[path] = attach_head(encoder, spec, gate=manifest.gate).SerializeToString()
    changed = replace(manifest, output_stride=manifest.stride)
    return Bundle.build(changed, bundle.codebook, graphs, region=bundle.region)


def nearest_centre(bundle: Bundle, clusters: int, *, seed: int = 0) -> Bundle:
    """The bundle with a K-means codebook whose centres are latents of the frame."""
    with Segmenter.load(bundle, threads=1, precision="fp32") as segmenter:
        latents = segmenter(FRAME, want=frozenset({"latents"})).latents
    assert latents is not None
    vectors = np.unique(latents.reshape(len(latents), -1).T, axis=0)
    chosen = np.random.default_rng(seed).choice(len(vectors), clusters, replace=False)
    return bundle.with_codebook(Codebook.from_centres(vectors[chosen]))


@pytest.fixture(scope="module")
def bundle(v1_bundle: Path) -> Bundle:
    return nearest_centre(Bundle.open(v1_bundle), 7)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_at_the_encoders_stride_the_labels_are_the_fused_graphs(
    bundle: Bundle, precision: str, resize: str
) -> None:
    geometry = replace(bundle.manifest.geometry, resize=resize)
    coarse = at_own_stride(bundle.with_manifest(replace(bundle.manifest, geometry=geometry)))
    with Segmenter.load(coarse, threads=1, precision=precision, backend="onnxruntime") as fused:
        wanted = fused(FRAME).labels
    found = SplitPath(coarse, precision=precision)(FRAME)
    assert found.shape == (100, 150)
    assert found.dtype == np.uint8
    assert len(np.unique(found)) > 2
    assert np.mean(found == wanted) > 0.995  # ties and rounding of float32 apart


def test_upsampling_too_gives_the_labels_of_a_fused_graph_that_upsamples(bundle: Bundle) -> None:
    with Segmenter.load(bundle, threads=1, precision="fp32") as fused:
        wanted = fused(FRAME).labels
    plain, smooth = (
        np.mean(SplitPath(bundle, precision="fp32", upsample=each)(FRAME) == wanted)
        for each in (False, True)
    )
    assert plain < 0.97
    assert smooth > 0.995


def test_more_clusters_than_opencv_has_channels_are_resized_in_parts(bundle: Bundle) -> None:
    many = nearest_centre(bundle, 150)
    whole = SplitPath(many, precision="fp32", upsample=True)
    distances = np.random.default_rng(0).random((4, 6, 150), np.float32)
    found = whole._upsampled(distances)
    assert found.shape == (8, 12)
    one = np.stack(
        [whole._cv2.resize(np.ascontiguousarray(distances[..., k]), (12, 8)) for k in range(150)]
    )
    np.testing.assert_array_equal(found, one.argmin(axis=0))
    assert whole(FRAME).shape == (100, 150)


def test_scikit_learn_keeps_to_the_threads_it_is_given(bundle: Bundle) -> None:
    # Left to itself it takes every core, and waits for those that others use.
    assert SplitPath(bundle, threads=1)._means._n_threads == 1


def test_the_upsampling_one_is_left_out_where_the_graph_does_not_upsample(bundle: Bundle) -> None:
    assert list(split_paths(bundle)) == [SPLIT, SMOOTH_SPLIT]
    assert list(split_paths(at_own_stride(bundle))) == [SPLIT]


def test_without_scikit_learn_the_error_names_the_extra(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingDependency, match=r"aeseg_edge\[calibrate\]"):
        SplitPath(bundle)
    assert importlib.util.find_spec("sklearn") is not None
