"""A bundle and other models in turn; the models are made here, of a node or two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import helper  # noqa: E402

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.errors import BackendError, UsageError  # noqa: E402
from aeseg_edge.measure import against  # noqa: E402
from aeseg_edge.measure.against import format_table, inference_of, side_by_side, threads_held  # noqa: E402
from aeseg_edge.segment.segmenter import Segmenter  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402

FLOAT = onnx.TensorProto.FLOAT


def write_model(path: Path, shape: list[int | str], *, op: str = "Relu") -> Path:
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, ["x"] if op == "Relu" else ["x", "x"], ["y"])],
        "g",
        [tensor("x", FLOAT, shape)],
        [tensor("y", FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def bundle(v1_bundle: Path) -> Bundle:
    return Bundle.open(v1_bundle)


def test_the_bundle_is_timed_whole_and_bare_beside_every_model(
    bundle: Bundle, tmp_path: Path
) -> None:
    fixed = write_model(tmp_path / "fixed.onnx", [1, 3, 10, 20])
    free = write_model(tmp_path / "free.onnx", ["batch", 3, "height", "width"])
    frames = [draw_scene(index, 120, 80) for index in range(3)]
    found = side_by_side(
        bundle,
        [fixed, free],
        precision="int8",
        rounds=3,
        frames=4,
        source_frames=frames,
        source="street",
    )
    names = ["v1.aeseg int8, whole path", "v1.aeseg int8, inference", "fixed.onnx", "free.onnx"]
    assert list(found.comparison.milliseconds) == names
    assert all(len(times) == 3 for times in found.comparison.milliseconds.values())
    assert found.details["free.onnx"] == "x float32 [1, 3, 64, 96]"
    assert found.details["fixed.onnx"] == "x float32 [1, 3, 10, 20]"
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["threads"] == 1
    assert data["frame_sizes"] == ["120x80"]
    assert f"{names[0]} / {names[2]}" in data["ratios"]
    text = format_table(found)
    assert "1 thread, frames 120x80 (street), 3 rounds of 4 in turn" in text
    assert text.count("times as long as v1.aeseg int8, whole path") == 2


def test_another_bundle_is_timed_whole_and_bare_too(v1_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "v1.aeseg"
    other.write_bytes(v1_bundle.read_bytes())
    found = side_by_side(Bundle.open(v1_bundle), [other], precision="fp32", rounds=1, frames=1)
    assert found.others == (f"{other} fp32, whole path", f"{other} fp32, inference")


@pytest.mark.parametrize("channels", [1, 4])
def test_a_bundle_of_other_channels_is_given_its_own_and_pays_nothing_for_them(
    channels: int,
) -> None:
    taken: list[np.ndarray] = []
    frames = [draw_scene(index, 24, 16) for index in range(2)]
    candidate = against._with_channels(taken.append, channels)
    for frame in [*frames, *frames]:
        candidate(frame)
    assert [each.shape for each in taken] == [(16, 24, channels)] * 4
    assert taken[0] is taken[2]
    assert taken[1] is taken[3]


def test_other_candidates_join_in_turn(bundle: Bundle) -> None:
    seen = []
    found = side_by_side(
        bundle,
        more={"mine": lambda frame: seen.append(frame.shape)},
        details={"mine": "does nothing"},
        rounds=2,
        frames=3,
    )
    assert found.others == ("mine",)
    assert seen == [(64, 96, 3)] * 9  # a round to warm up, and two
    assert "mine (does nothing)" in format_table(found)


def test_inference_alone_gives_the_graphs_labels_and_resizes_each_frame_once(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aeseg_edge.measure import against

    fitted = []
    fit = against.fit_frame
    monkeypatch.setattr(
        against, "fit_frame", lambda *args: fitted.append(args[0].shape) or fit(*args)
    )
    frames = [draw_scene(index, 150, 100) for index in range(2)]
    with Segmenter.load(bundle, threads=1) as segmenter:
        run = inference_of(segmenter)
        results = [run(frame) for frame in (*frames, *frames)]
        assert results[0].shape == bundle.manifest.spec.label_shape  # type: ignore[attr-defined]
        np.testing.assert_array_equal(results[1], results[3])
        whole = segmenter(frames[1]).labels
    assert fitted == [(100, 150, 3)] * 2
    sized = cv2.resize(results[1], (150, 100), interpolation=cv2.INTER_NEAREST)
    assert np.mean(sized == whole) > 0.95


def test_opencv_is_held_to_the_threads_and_let_go() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        with threads_held(1):
            assert cv2.getNumThreads() == 1
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_models_that_cannot_be_timed_are_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    odd = write_model(tmp_path / "odd.onnx", [1, "tokens"])
    with pytest.raises(UsageError, match=r"odd\.onnx: dimension 1"):
        side_by_side(bundle, [odd], rounds=1, frames=1)
    with pytest.raises(UsageError, match=r"odd\.onnx is given twice"):
        side_by_side(bundle, [odd, odd], rounds=1, frames=1)
    fails = write_model(tmp_path / "fails.onnx", ["batch", 3, "height", "width"], op="MatMul")
    with pytest.raises(BackendError, match=r"fails\.onnx does not run"):
        side_by_side(bundle, [fails], rounds=1, frames=1)
    with pytest.raises(UsageError, match="0 rounds"):
        side_by_side(bundle, rounds=0)
