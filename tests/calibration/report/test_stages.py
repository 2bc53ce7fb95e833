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

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.calibration.report.stages import SMOOTH_SPLIT, SPLIT, SplitPath, split_paths
from aeseg_edge.errors import MissingDependency, UsageError
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.sources.scene import draw_scene
from benchmarks.stand_ins import with_output_stride

NOISE = np.random.default_rng(0).integers(0, 60, (100, 150, 3), np.uint8)
FRAME = draw_scene(5, 150, 100) // 2 + NOISE


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
    coarse = with_output_stride(
        bundle.with_manifest(replace(bundle.manifest, geometry=geometry)), bundle.manifest.stride
    )
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
    assert list(split_paths(with_output_stride(bundle, bundle.manifest.stride))) == [SPLIT]


def test_without_scikit_learn_the_error_names_the_extra(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingDependency, match=r"\[calibrate\]"):
        SplitPath(bundle)
    assert importlib.util.find_spec("sklearn") is not None


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_another_output_stride_changes_the_size_of_the_labels_alone(
    bundle: Bundle, stride: int
) -> None:
    made = with_output_stride(bundle, stride)
    geometry = made.manifest.geometry
    assert made.manifest.output_stride == stride
    assert made.manifest.entries == bundle.manifest.entries
    frame = draw_scene(5, geometry.width, geometry.height)
    want = frozenset({"latents"})
    for entry in bundle.manifest.entries:
        if entry.backend != "onnxruntime":
            continue
        pair = []
        for each in (bundle, made):
            with Segmenter.load(
                each, threads=1, precision=entry.precision, backend="onnxruntime"
            ) as segmenter:
                pair.append(segmenter.backend.collect(segmenter.backend.submit(frame), want))
        assert pair[1].labels.shape == (geometry.height // stride, geometry.width // stride)
        np.testing.assert_array_equal(pair[0].latents, pair[1].latents)


def test_an_output_stride_that_does_not_divide_is_refused(bundle: Bundle) -> None:
    for stride in (0, 3, 8):
        with pytest.raises(UsageError, match="does not divide"):
            with_output_stride(bundle, stride)
