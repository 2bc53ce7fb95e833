"""Frames of any size in, label maps of the same size out."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aeseg_edge.backends.base import Backend, Outputs
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import VOID, ClassInfo, Codebook
from aeseg_edge.bundle.manifest import Entry
from aeseg_edge.errors import (
    AesegError,
    BackendError,
    BundleError,
    CodebookError,
    EngineNotBuilt,
    FrameError,
    MissingDependency,
    UsageError,
)
from aeseg_edge.segment.segmenter import Segmenter

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

SKY, GRASS = (200, 160, 110), (60, 120, 70)


def scene(height: int = 64, width: int = 96) -> np.ndarray:
    frame = np.empty((height, width, 3), np.uint8)
    frame[: height // 2] = SKY
    frame[height // 2 :] = GRASS
    return frame


@pytest.fixture
def segmenter(v1_bundle: Path) -> Segmenter:
    return Segmenter.load(v1_bundle, precision="fp32", backend="onnxruntime", threads=1)


@pytest.mark.parametrize("size", [(64, 96), (480, 640), (33, 50), (1, 1), (720, 90)])
def test_labels_have_the_frames_own_size(segmenter: Segmenter, size: tuple[int, int]) -> None:
    result = segmenter(scene(*size))
    assert result.labels.shape == size
    assert result.labels.dtype == np.uint8
    assert set(np.unique(result.labels)) <= {item.id for item in result.classes}


def test_sky_and_grass_are_different_classes(segmenter: Segmenter) -> None:
    labels = segmenter(scene(240, 360)).labels
    sky, grass = labels[:100], labels[140:]
    assert (sky == np.bincount(sky.ravel()).argmax()).mean() > 0.95
    assert (grass == np.bincount(grass.ravel()).argmax()).mean() > 0.95
    assert np.bincount(sky.ravel()).argmax() != np.bincount(grass.ravel()).argmax()


def test_shares_add_up_to_one(segmenter: Segmenter) -> None:
    assert sum(segmenter(scene()).shares.values()) == pytest.approx(1.0)


def test_stages_are_timed_and_frame_age_needs_a_capture_time(segmenter: Segmenter) -> None:
    result = segmenter(scene(), captured=time.monotonic() - 1.0)
    stages = ["preprocess", "copy_in", "inference", "copy_out", "postprocess", "total"]
    assert list(result.milliseconds) == stages
    parts = [result.milliseconds[stage] for stage in stages[:-1]]
    assert sum(parts) == pytest.approx(result.milliseconds["total"])
    assert result.frame_age is not None
    assert result.frame_age >= 1.0
    assert segmenter(scene()).frame_age is None


@pytest.mark.parametrize(("copies", "shown"), [((0.01, 0.02), (0.01, 0.02)), ((1e6, 5.0), None)])
def test_copies_that_a_device_measures_are_taken_out_of_the_inference(
    segmenter: Segmenter,
    monkeypatch: pytest.MonkeyPatch,
    copies: tuple[float, float],
    shown: tuple[float, float] | None,
) -> None:
    collect = segmenter.backend.collect

    def with_copies(*args: Any) -> Outputs:
        found = collect(*args)
        return replace(found, milliseconds=dict(zip(("copy_in", "copy_out"), copies, strict=True)))

    monkeypatch.setattr(segmenter.backend, "collect", with_copies)
    times = segmenter(scene()).milliseconds
    if shown is not None:
        assert (times["copy_in"], times["copy_out"]) == shown
    # Two clocks may disagree; no stage is below 0 and the sum stays the total.
    assert min(times.values()) >= 0
    assert sum(times.values()) == pytest.approx(2 * times["total"])


def test_latents_and_margin_come_only_on_request(segmenter: Segmenter) -> None:
    plain = segmenter(scene())
    assert plain.latents is None
    assert plain.margin is None
    full = segmenter(scene(), want=frozenset({"latents", "margin"}))
    assert full.latents is not None
    assert full.latents.shape == (8, 16, 24)
    scores = segmenter.codebook.scores(np.moveaxis(full.latents, 0, -1))
    ordered = np.sort(scores, axis=-1)
    np.testing.assert_allclose(full.margin, ordered[..., -1] - ordered[..., -2], atol=1e-4)
    with pytest.raises(BackendError, match="unknown"):
        segmenter(scene(), want=frozenset({"depth"}))


@pytest.mark.parametrize("error", [BackendError, KeyboardInterrupt])
def test_a_call_that_fails_leaves_the_next_one_alone(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    expected = segmenter(scene()).labels
    if error is BackendError:
        with pytest.raises(error, match=r"outputs \['latent'\] are unknown"):
            segmenter(scene(), want=frozenset({"latent"}))
    else:
        with monkeypatch.context() as patch:
            patch.setattr(segmenter.backend, "collect", interrupted)
            with pytest.raises(error):
                segmenter(scene())
            with pytest.raises(error):
                segmenter.clusters(scene())
    np.testing.assert_array_equal(segmenter(scene()).labels, expected)


def interrupted(*_: object) -> Outputs:
    raise KeyboardInterrupt


def test_a_call_beside_a_submitted_frame_fails_and_leaves_that_frame_alone(
    segmenter: Segmenter,
) -> None:
    expected = segmenter(scene()).labels
    submitted = segmenter.submit(scene())
    with pytest.raises(BackendError, match="not the oldest"):
        segmenter(scene(33, 50))
    np.testing.assert_array_equal(segmenter.collect(submitted).labels, expected)
    np.testing.assert_array_equal(segmenter(scene()).labels, expected)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((64, 96, 4), np.uint8),
        np.zeros((64, 96), np.uint8),
        np.zeros((64, 96, 3), np.float32),
        np.zeros((0, 96, 3), np.uint8),
    ],
)
def test_what_is_not_a_frame_is_refused(segmenter: Segmenter, frame: np.ndarray) -> None:
    with pytest.raises(FrameError):
        segmenter(frame)


def test_labels_outside_the_region_of_interest_are_void(v1_bundle: Path) -> None:
    roi = np.zeros((10, 10), np.uint8)
    roi[:, 5:] = 255
    with Segmenter.load(v1_bundle, roi=roi) as segmenter:
        for size in ((64, 96), (120, 200)):
            labels = segmenter(scene(*size)).labels
            assert (labels[:, : size[1] // 2] == VOID).all()
            assert (labels[:, size[1] // 2 :] != VOID).all()


def test_a_mask_of_bools_is_a_region_of_interest(v1_bundle: Path) -> None:
    inside = np.zeros((64, 96), bool)
    inside[:32] = True
    with Segmenter.load(v1_bundle, roi=inside) as segmenter:  # type: ignore[arg-type]
        labels = segmenter(scene()).labels
    assert (labels[32:] == VOID).all()
    assert (labels[:32] != VOID).all()


@pytest.mark.parametrize(
    "region",
    [
        np.ones((64, 96), np.uint8),  # 0 and 1: all of it would be outside
        np.ones((64, 96), np.float32),
        np.zeros((0, 96), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_a_region_that_would_make_all_void_is_refused(v1_bundle: Path, region: np.ndarray) -> None:
    with pytest.raises(UsageError, match="region of interest"):
        Segmenter.load(v1_bundle, roi=region)


def test_an_empty_region_is_said_to_make_all_void(
    v1_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Segmenter.load(v1_bundle, roi=np.zeros((64, 96), np.uint8)) as segmenter:
        assert (segmenter(scene()).labels == VOID).all()
    assert "every label is void" in caplog.text


def test_the_bundles_own_region_of_interest_is_used(v1_bundle: Path) -> None:
    plain = Bundle.open(v1_bundle)
    region = np.zeros((64, 96), np.uint8)
    region[32:] = 255
    bundle = Bundle.build(plain.manifest, plain.codebook, plain.graphs, region=region)
    with Segmenter.load(bundle) as segmenter:
        labels = segmenter(scene(200, 300)).labels
    assert (labels[:100] == VOID).all()
    assert (labels[100:] != VOID).all()


def test_a_new_codebook_needs_no_new_graph(segmenter: Segmenter) -> None:
    before = segmenter(scene()).labels
    one = (ClassInfo(7, "everything", (1, 2, 3)),)
    merged = Codebook.from_centres(
        segmenter.codebook.centres, classes=one, remap=[7] * segmenter.codebook.clusters
    )
    segmenter.set_codebook(merged)
    result = segmenter(scene())
    assert (result.labels == 7).all()
    assert result.palette[7].tolist() == [3, 2, 1]
    assert len(np.unique(before)) > 1
    with pytest.raises(CodebookError, match="4 latent channels"):
        segmenter.set_codebook(Codebook.from_centres(np.eye(2, 4)))
    assert (segmenter(scene()).labels == 7).all()


@pytest.mark.parametrize("clusters", [5, 256, 700])
def test_cluster_numbers_are_exact_beyond_eight_bits(segmenter: Segmenter, clusters: int) -> None:
    frame = scene()
    latents = segmenter(frame, want=frozenset({"latents"})).latents
    assert latents is not None
    points = latents.reshape(8, -1).T
    centres = points[np.random.default_rng(0).choice(len(points), clusters, replace=True)]
    centres = centres + np.random.default_rng(1).normal(0, 1e-3, centres.shape)
    book = Codebook.from_centres(
        centres, remap=np.zeros(clusters), classes=(ClassInfo(0, "all", (1, 1, 1)),)
    )
    segmenter.set_codebook(book)
    found = segmenter.clusters(frame)
    # The graph's output stride is half the latents', so compare where the border is far.
    own = book.assign(np.moveaxis(latents, 0, -1))
    grown = np.kron(own, np.ones((4, 4), np.int64))
    assert found.max() < clusters
    assert found.shape == (64, 96)
    if clusters > 256:
        assert found.max() > 255
    assert (found == grown).mean() > 0.5
    assert (segmenter(frame).labels == 0).all()


def test_the_margin_is_between_classes_and_not_between_clusters_of_one(
    segmenter: Segmenter,
) -> None:
    book = segmenter.codebook
    frame = scene()
    apart = segmenter(frame, want={"latents", "margin"})
    assert apart.latents is not None
    assert apart.margin is not None
    scores = np.sort(book.scores(apart.latents.transpose(1, 2, 0)), axis=-1)
    np.testing.assert_allclose(apart.margin, scores[..., -1] - scores[..., -2], atol=1e-4)
    # Every cluster twice, so that the two best always score alike, and all are of one class each.
    twice = Codebook(
        weights=np.repeat(book.weights, 2, axis=0),
        bias=np.repeat(book.bias, 2),
        remap=np.repeat(book.remap, 2),
        classes=book.classes,
    )
    segmenter.set_codebook(twice)
    merged = segmenter(frame, want="margin")
    assert merged.latents is None
    assert merged.margin is not None
    np.testing.assert_array_equal(merged.labels, apart.labels)
    np.testing.assert_allclose(merged.margin, apart.margin, atol=1e-4)
    assert merged.margin.max() > 0.01
    # One class alone is never in doubt.
    segmenter.set_codebook(replace(twice, remap=np.zeros_like(twice.remap)))
    alone = segmenter(frame, want="margin").margin
    assert alone is not None
    assert (alone == np.float32(1e30)).all()


def test_smoothing_out_of_range_is_refused(v1_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"smoothing 1\.0"):
        Segmenter.load(v1_bundle, smooth=1.0)


def test_smoothing_changes_labels_and_reset_forgets(v1_bundle: Path) -> None:
    frames = [scene(), np.ascontiguousarray(scene()[::-1])]
    with Segmenter.load(v1_bundle, smooth=0.9) as segmenter:
        alone = segmenter(frames[1]).labels
        segmenter.reset()
        segmenter(frames[0])
        mixed = segmenter(frames[1]).labels
        segmenter.reset()
        again = segmenter(frames[1]).labels
    assert (mixed != alone).mean() > 0.3
    np.testing.assert_array_equal(again, alone)


def test_smoothing_does_not_reach_from_one_recording_into_the_next(
    v1_bundle: Path, tmp_path: Path
) -> None:
    for name, image in (("a", scene()), ("b", np.ascontiguousarray(scene()[::-1]))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    with Segmenter.load(v1_bundle, smooth=0.9) as segmenter:
        (alone,) = segmenter.stream(tmp_path / "b.png")
        list(segmenter.stream(tmp_path / "a.png"))
        (after,) = segmenter.stream(tmp_path / "b.png")
    np.testing.assert_array_equal(after.labels, alone.labels)


def test_use_after_close_is_refused(segmenter: Segmenter) -> None:
    segmenter.close()
    segmenter.close()
    with pytest.raises(BackendError, match="closed"):
        segmenter(scene())


def test_auto_takes_int8_only_where_it_is_recommended(v1_bundle: Path) -> None:
    from dataclasses import replace

    bundle = Bundle.open(v1_bundle)
    assert Segmenter.load(bundle).entry.key == ("int8", "onnxruntime")
    entries = tuple(replace(e, recommended=e.precision != "int8") for e in bundle.manifest.entries)
    doubtful = Bundle.build(
        replace(bundle.manifest, entries=entries), bundle.codebook, bundle.graphs
    )
    assert Segmenter.load(doubtful).entry.key == ("fp32", "onnxruntime")


@pytest.mark.parametrize("key", [("fp16", "tensorrt"), ("int8", "tensorrt"), ("int8", None)])
def test_every_graph_runs_and_agrees(
    v1_bundle: Path, segmenter: Segmenter, key: tuple[str, str | None]
) -> None:
    with Segmenter.load(v1_bundle, precision=key[0], backend="onnxruntime", graph=key[1]) as other:
        frame = scene(128, 192)
        assert (other(frame).labels == segmenter(frame).labels).mean() > 0.97


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "int4"},
        {"backend": "cuda"},
        {"graph": "x"},
        {"threads": 0},
        {"threads": "2"},
        {"threads": 1.5},
        {"threads": 10**9},
        {"imgsz": (96,)},
        {"imgsz": "96x64"},
        {"imgsz": (96.0, 64.0)},
        {"imgsz": (1 << 20, 1 << 20)},
    ],
)
def test_unknown_options_are_refused(v1_bundle: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Segmenter.load(v1_bundle, **options)


@pytest.mark.parametrize("path", [None, 5, b"street.aeseg"])
def test_what_is_no_bundle_is_refused(path: object) -> None:
    with pytest.raises(UsageError, match="is no bundle"):
        Segmenter.load(path)  # type: ignore[arg-type]


@pytest.mark.parametrize("want", [None, 3, ["latents", 3], "margins"])
def test_what_is_no_output_is_refused(segmenter: Segmenter, want: object) -> None:
    with pytest.raises(BackendError, match="unknown"):
        segmenter(scene(), want=want)  # type: ignore[arg-type]


def test_a_precision_the_bundle_lacks_is_named(v1_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no fp16 graph for onnxruntime"):
        Segmenter.load(v1_bundle, precision="fp16", backend="onnxruntime")


def test_a_missing_onnxruntime_says_what_to_install(
    v1_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"\[cpu\]"):
        Segmenter.load(v1_bundle)


@pytest.mark.parametrize(
    "failure",
    [
        EngineNotBuilt("no engine", fix="Build one."),
        MissingDependency("libcuda is missing", fix="Install it."),
        BackendError("no device", fix="Look."),
        AttributeError("module 'pycuda.driver' has no attribute 'Stream'"),
        OSError("libnvinfer.so.10: file too short"),
    ],
)
def test_auto_falls_back_to_onnx_runtime_and_says_why(
    v1_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
) -> None:
    import aeseg_edge.backends.choose as module
    import aeseg_edge.backends.tensorrt as tensorrt

    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(module, "has_tensorrt", lambda: True)
    monkeypatch.setattr(tensorrt, "engine_key", fail)
    with Segmenter.load(v1_bundle) as segmenter:
        assert segmenter.backend.name == "onnxruntime"
    known = isinstance(failure, AesegError)
    told = failure.problem if isinstance(failure, AesegError) else str(failure)
    assert told in caplog.text
    with pytest.raises(type(failure) if known else BackendError, match=told):
        Segmenter.load(v1_bundle, backend="tensorrt")


def test_auto_takes_the_engine_that_is_built(
    v1_bundle: Path, monkeypatch: pytest.MonkeyPatch, segmenter: Segmenter
) -> None:
    import aeseg_edge.backends.choose as module
    import aeseg_edge.backends.tensorrt as tensorrt

    def only_half(bundle: Bundle, entry: Entry, **options: object) -> Backend:
        if entry.precision != "fp16":
            raise EngineNotBuilt("no int8 engine", fix="Build one.")
        return segmenter.backend

    monkeypatch.setattr(module, "has_tensorrt", lambda: True)
    monkeypatch.setattr(tensorrt, "open_backend", only_half)
    assert Segmenter.load(v1_bundle).entry.key == ("fp16", "tensorrt")
    with pytest.raises(EngineNotBuilt):
        Segmenter.load(v1_bundle, precision="int8", backend="tensorrt")
