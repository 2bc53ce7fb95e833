"""What leaving a convolution out of int8 buys is measured on the graph that would be deployed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

from onnx import numpy_helper  # noqa: E402

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.calibration.clusters.latents import EncoderSession  # noqa: E402
from aeseg_edge.calibration.fit import FitSettings  # noqa: E402
from aeseg_edge.calibration.graphs.deployed import detach_head  # noqa: E402
from aeseg_edge.calibration.graphs.exclude import (  # noqa: E402
    float_convolutions,
    quantised_convolutions,
    restored,
)
from aeseg_edge.calibration.graphs.int8 import quantize_for_cpu, quantize_for_tensorrt  # noqa: E402
from aeseg_edge.calibration.recalibrate import recalibrate, settings_of  # noqa: E402
from aeseg_edge.calibration.score import sensitivity  # noqa: E402
from aeseg_edge.calibration.score.sensitivity import choose_exclusion, measure_sensitivity  # noqa: E402
from aeseg_edge.cli.main import build_parser, main  # noqa: E402
from aeseg_edge.cli.options import fit_settings  # noqa: E402
from aeseg_edge.errors import CalibrationError, UsageError  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402

SETTINGS = FitSettings(clusters=4, restarts=2, samples=2000, threads=1)
INT8 = {"onnxruntime": quantize_for_cpu, "tensorrt": quantize_for_tensorrt}


def scenes(count: int = 12) -> list[NDArray[np.uint8]]:
    return [draw_scene(7 * index, 96, 64) for index in range(count)]


@pytest.fixture(scope="module")
def bundle(v1_bundle: Path) -> Bundle:
    return Bundle.open(v1_bundle)


@pytest.fixture(scope="module")
def encoder(bundle: Bundle) -> onnx.ModelProto:
    return detach_head(onnx.load_from_string(bundle.graph("fp32", "onnxruntime")))


def rough(bundle: Bundle, number: int, backend: str) -> tuple[Bundle, str]:
    """Make the int8 weights of one convolution so coarse that labels change."""
    graphs = bundle.graphs
    path = bundle.manifest.entry("int8", backend).graph
    model = onnx.load_from_string(graphs[path])
    name = quantised_convolutions(model)[number]
    node = next(n for n in model.graph.node if n.name == name)
    makers = {output: n for n in model.graph.node for output in n.output}
    stored = makers[node.input[1]].input[0]
    while stored in makers:
        stored = makers[stored].input[0]
    weight = next(item for item in model.graph.initializer if item.name == stored)
    values = numpy_helper.to_array(weight)
    worse = np.where(np.arange(values.size).reshape(values.shape) % 3 == 0, 0, values)
    weight.CopyFrom(numpy_helper.from_array(worse.astype(values.dtype), stored))
    graphs[path] = model.SerializeToString()
    return Bundle.build(bundle.manifest, bundle.codebook, graphs), name


# --- the graph ------------------------------------------------------------------------------------


def relative_error(model: onnx.ModelProto, exact: onnx.ModelProto) -> float:
    frame = scenes(9)[8]
    first, second = EncoderSession(model)(frame), EncoderSession(exact)(frame)
    return float(np.abs(first - second).mean() / np.abs(second).mean())


@pytest.mark.parametrize("backend", INT8)
@pytest.mark.parametrize("number", [0, 1])
def test_one_convolution_is_put_back_and_the_others_stay(
    encoder: onnx.ModelProto, backend: str, number: int
) -> None:
    whole = INT8[backend](encoder, scenes(4))
    names = quantised_convolutions(whole)
    found = INT8[backend](encoder, scenes(4), exclude=[names[number]])
    assert quantised_convolutions(found) == [name for name in names if name != names[number]]
    assert found == restored(whole, encoder, [names[number]])
    assert 0 < relative_error(found, encoder) < 1.2 * relative_error(whole, encoder)


@pytest.mark.parametrize("backend", INT8)
def test_with_all_put_back_nothing_is_quantised_and_relus_are_there_again(
    encoder: onnx.ModelProto, backend: str
) -> None:
    whole = INT8[backend](encoder, scenes(4))
    found = restored(whole, encoder, quantised_convolutions(whole))
    kinds = [node.op_type for node in found.graph.node]
    assert "QuantizeLinear" not in kinds
    # The bytes of the frame are the first convolution's input on a CPU, dequantised exactly.
    assert kinds.count("DequantizeLinear") == (backend == "onnxruntime")
    assert kinds.count("Relu") == 2
    assert relative_error(found, encoder) < (1e-5 if backend == "onnxruntime" else 3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", INT8)
def test_every_shape_of_the_network_can_be_put_back(backend: str) -> None:
    """`lite` has ReLU6, depthwise convolutions and sums; `edge` sums and resizes."""
    pytest.importorskip("torch")
    from aeseg_edge.export.network.autoencoder import build_autoencoder
    from aeseg_edge.export.network.config import AutoencoderConfig
    from aeseg_edge.export.onnx.encoder import export_encoder

    network = build_autoencoder(AutoencoderConfig("lite", 4), seed=0).eval()
    exported = export_encoder(network, height=64, width=96)
    whole = INT8[backend](exported, scenes(2))
    names = quantised_convolutions(whole)
    found = restored(whole, exported, names)
    assert not quantised_convolutions(found)
    assert "Clip" in {node.op_type for node in found.graph.node}
    # Sums stay quantised on a CPU: they are no convolutions.
    assert relative_error(found, exported) < (0.1 if backend == "onnxruntime" else 0.01)
    half = restored(whole, exported, names[::2])
    assert quantised_convolutions(half) == names[1::2]


def test_what_is_not_int8_cannot_be_put_back(encoder: onnx.ModelProto) -> None:
    whole = quantize_for_cpu(encoder, scenes(2))
    projection = float_convolutions(whole)[0]
    with pytest.raises(CalibrationError, match="no int8 convolution named"):
        restored(whole, encoder, [projection])


# --- measuring and choosing -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", INT8)
def test_the_layer_that_was_made_worse_is_the_one_that_buys_most(
    bundle: Bundle, backend: str
) -> None:
    worse, name = rough(bundle, 1, backend)
    told: list[float] = []
    found = measure_sensitivity(
        worse, scenes(), backend=backend, threads=1, most=4, progress=told.append
    )
    assert found.ranked()[0].name == name
    assert found.ranked()[0].gain > 0.01
    assert found.frames == 4
    assert told == sorted(told)
    assert told[-1] == 1.0
    layer = found.ranked()[0]
    assert layer.gain == pytest.approx(layer.labels_equal - found.labels_equal)
    assert layer.more_bytes > 0
    assert 0 < layer.operations < 1


def test_auto_leaves_out_what_the_target_needs_and_no_more(bundle: Bundle) -> None:
    worse, name = rough(bundle, 1, "onnxruntime")
    limits = {"threads": 1, "most": 4}
    low = choose_exclusion(worse, scenes(), 0.5, **limits)  # type: ignore[arg-type]
    assert low.names == ()
    assert low.before == low.after
    clean = choose_exclusion(bundle, scenes(), 0.5, **limits).before  # type: ignore[arg-type]
    assert low.before < clean
    target = (low.before + clean) / 2
    found = choose_exclusion(worse, scenes(), target, limit=1.0, **limits)  # type: ignore[arg-type]
    assert found.names == (name,)
    assert found.after >= target > found.before
    assert "was met" in found.why


def test_auto_stops_at_the_bound_on_cost_and_says_so(bundle: Bundle) -> None:
    worse, _ = rough(bundle, 1, "onnxruntime")
    found = choose_exclusion(worse, scenes(), 1.0, threads=1, most=4, limit=0.001)
    assert found.names == ()
    assert found.operations <= 0.001
    assert "is not met: what else would help is more than 0 %" in found.why
    free = choose_exclusion(worse, scenes(), 1.0, threads=1, most=4, limit=1.0)
    assert free.after > found.after


def test_no_frames_are_an_error(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError, match="no frames"):
        measure_sensitivity(bundle, [])


# --- through calibrate ----------------------------------------------------------------------------


def test_named_convolutions_stay_float_in_the_bundle_and_in_its_file(
    bundle: Bundle, encoder: onnx.ModelProto, tmp_path: Path
) -> None:
    name = quantised_convolutions(onnx.load_from_string(bundle.graph("int8", "onnxruntime")))[1]
    made = recalibrate(bundle, scenes(), replace(SETTINGS, int8_exclude=(name,))).bundle
    made.write(tmp_path / "made.aeseg")
    read = Bundle.open(tmp_path / "made.aeseg")
    for backend in INT8:
        graph = onnx.load_from_string(read.graph("int8", backend))
        assert name in float_convolutions(graph)
        assert f"not in int8: {name}" in read.manifest.entry("int8", backend).note
    record = read.manifest.training["calibration"]["int8_excluded"]
    assert record["onnxruntime"] == {"names": [name], "why": "named by the user"}
    # Calibrating again does it again.
    assert settings_of(read.manifest)["int8_exclude"] == (name,)


def test_auto_is_recorded_with_its_reason_for_each_graph(bundle: Bundle) -> None:
    settings = replace(SETTINGS, int8_exclude="auto", int8_target=1.0)
    made = recalibrate(bundle, scenes(), settings).bundle
    record = made.manifest.training["calibration"]["int8_excluded"]
    assert (record["asked"], record["target"]) == ("auto", 1.0)
    for backend in INT8:
        found = record[backend]
        assert found["operations"] <= sensitivity.MOST_EXCLUDED
        assert found["after"] >= found["before"]
        assert found["why"]
        graph = onnx.load_from_string(made.graph("int8", backend))
        assert set(found["names"]) <= set(float_convolutions(graph))
        assert len(float_convolutions(graph)) == 1 + len(found["names"])
    again = settings_of(made.manifest)
    assert (again["int8_exclude"], again["int8_target"]) == ("auto", 1.0)


def test_a_name_that_is_not_there_is_refused_with_those_that_are(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no int8 convolution is named nothing") as caught:
        recalibrate(bundle, scenes(), replace(SETTINGS, int8_exclude=("nothing",)))
    names = quantised_convolutions(onnx.load_from_string(bundle.graph("int8", "onnxruntime")))
    assert all(name in caught.value.fix for name in names)


# --- the options ----------------------------------------------------------------------------------


def parsed(*more: str, told: dict[str, object] | None = None) -> FitSettings:
    options = build_parser().parse_args(
        ["calibrate", "old.aeseg", "clip.mp4", "-o", "new.aeseg", *more]
    )
    return fit_settings(options, told)


def test_the_options_reach_the_fit() -> None:
    assert parsed().int8_exclude == ()
    assert parsed("--int8-exclude", "a,b").int8_exclude == ("a", "b")
    auto = parsed("--int8-exclude", "auto", "--int8-target", "0.99")
    assert (auto.int8_exclude, auto.int8_target) == ("auto", 0.99)


def test_what_was_asked_for_earlier_holds_until_something_else_is() -> None:
    told: dict[str, object] = {"int8_exclude": "auto", "int8_target": 0.99}
    assert (parsed(told=told).int8_exclude, parsed(told=told).int8_target) == ("auto", 0.99)
    assert parsed("--int8-target", "0.5", told=told).int8_target == 0.5
    none = parsed("--int8-exclude", "none", told=told)
    assert (none.int8_exclude, none.int8_target) == ((), None)


@pytest.mark.parametrize(
    "more", [["--int8-target", "0.9"], ["--int8-exclude", "a", "--int8-target", "0.9"]]
)
def test_a_target_without_auto_is_refused(more: list[str]) -> None:
    with pytest.raises(UsageError, match="does nothing unless"):
        parsed(*more)


def test_an_empty_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "a.aeseg", "x", "-o", "b.aeseg", "--int8-exclude", "a,,b"]) == 2
    assert "not a list of names" in capsys.readouterr().err


@pytest.mark.slow
def test_training_refuses_a_name_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    command = ["train", str(tmp_path / "none.mp4"), "-o", str(tmp_path / "a.aeseg")]
    assert main([*command, "--imgsz", "96x64", "--int8-exclude", "nothing"]) == 2
    said = capsys.readouterr().err
    assert "no int8 convolution is named nothing" in said
    assert "node_" in said
    assert list(tmp_path.iterdir()) == []
