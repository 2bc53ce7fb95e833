"""Each int8 graph is what its runtime can fuse, and computes nearly the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import numpy_helper  # noqa: E402

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.calibration.clusters.latents import EncoderSession, sample_latents  # noqa: E402
from aeseg_edge.calibration.graphs.deployed import attach_head, detach_head  # noqa: E402
from aeseg_edge.calibration.graphs.int8 import (  # noqa: E402
    float_convolutions,
    quantize_for_cpu,
    quantize_for_tensorrt,
)
from aeseg_edge.errors import CalibrationError  # noqa: E402


@pytest.fixture(scope="module")
def encoder(v1_bundle: Path) -> onnx.ModelProto:
    return detach_head(onnx.load_from_string(Bundle.open(v1_bundle).graph("fp32", "onnxruntime")))


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (8, 8, 12, 3), dtype=np.uint8)
    return [np.kron(frame, np.ones((8, 8, 1), np.uint8)) for frame in coarse]


def relative_error(a: onnx.ModelProto, b: onnx.ModelProto, frame: np.ndarray) -> float:
    first, second = EncoderSession(a)(frame), EncoderSession(b)(frame)
    return float(np.abs(first - second).mean() / np.abs(first).mean())


def test_every_convolution_but_the_projection_is_int8_on_the_cpu(
    encoder: onnx.ModelProto, frames: list[np.ndarray], v1_bundle: Path, tmp_path: Path
) -> None:
    model = quantize_for_cpu(encoder, frames)
    assert len(float_convolutions(model)) == 1
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    deployed = attach_head(model, Bundle.open(v1_bundle).manifest.spec)
    ort.InferenceSession(deployed.SerializeToString(), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    convolutions = sum(node.op_type == "Conv" for node in encoder.graph.node)
    assert kinds.count("QLinearConv") == convolutions - 1
    assert "Relu" not in kinds, "a float island between two integer convolutions"
    assert "QuantizeLinear" not in kinds[: kinds.index("QLinearConv")], "bytes went through float"


def test_a_clipped_activation_becomes_the_range_of_its_convolution(
    frames: list[np.ndarray],
) -> None:
    """The range before a ReLU6 is ten times too wide: 77 % of labels instead of 96 %."""
    pytest.importorskip("torch")
    from aeseg_edge.export.network.autoencoder import build_autoencoder
    from aeseg_edge.export.network.config import AutoencoderConfig
    from aeseg_edge.export.onnx.encoder import export_encoder

    network = build_autoencoder(AutoencoderConfig("lite", 4), seed=0).eval()
    exported = export_encoder(network, height=64, width=96)
    assert "Clip" in {node.op_type for node in exported.graph.node}
    model = quantize_for_cpu(exported, frames)
    assert "Clip" not in {node.op_type for node in model.graph.node}
    assert len(float_convolutions(model)) == 1


def test_the_bytes_of_the_frame_lose_nothing(
    encoder: onnx.ModelProto, frames: list[np.ndarray]
) -> None:
    model = quantize_for_cpu(encoder, frames)
    planes = next(n.output[0] for n in model.graph.node if n.op_type == "Transpose")
    first = next(n for n in model.graph.node if planes in n.input)
    assert first.op_type == "DequantizeLinear"
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    normalise = {
        n.op_type: next(
            numpy_helper.to_array(i) for i in encoder.graph.initializer if i.name in n.input
        )
        for n in encoder.graph.node
        if n.op_type in ("Add", "Mul")
    }
    every_byte = np.arange(256, dtype=np.float64)
    scale, zero = weights[first.input[1]], weights[first.input[2]]
    assert zero == 128
    expected = (every_byte + normalise["Add"].ravel()[0]) * normalise["Mul"].ravel()[0]
    np.testing.assert_allclose((every_byte - float(zero)) * float(scale), expected, atol=1e-5)


def test_the_tensorrt_graph_is_symmetric_with_half_scales(
    encoder: onnx.ModelProto, frames: list[np.ndarray]
) -> None:
    model = quantize_for_tensorrt(encoder, frames)
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert weights[node.input[1]].dtype == np.float16
        assert weights[node.input[2]].dtype == np.int8
        assert not weights[node.input[2]].any()
    assert not any(w.dtype == np.int32 for w in weights.values()), "int32 biases"
    assert len(float_convolutions(model)) == 1
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            maker = makers.get(node.input[0])
            assert maker is None or maker.op_type != "Conv", "a convolution's output is quantised"


@pytest.mark.parametrize("quantize", [quantize_for_cpu, quantize_for_tensorrt])
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_int8_latents_stay_close(
    encoder: onnx.ModelProto, frames: list[np.ndarray], quantize: object, method: str
) -> None:
    model = quantize(encoder, frames[:6], method=method)  # type: ignore[operator]
    error = relative_error(encoder, model, frames[7])
    assert 0 < error < 0.15


def test_an_excluded_convolution_stays_float(
    encoder: onnx.ModelProto, frames: list[np.ndarray]
) -> None:
    name = next(n.name for n in encoder.graph.node if n.op_type == "Conv")
    model = quantize_for_tensorrt(encoder, frames, exclude=[name])
    assert name in float_convolutions(model)
    with pytest.raises(CalibrationError, match="no convolution named nothing"):
        quantize_for_cpu(encoder, frames, exclude=["nothing"])


def test_a_silent_channel_does_not_stop_the_tensorrt_graph(
    encoder: onnx.ModelProto, frames: list[np.ndarray]
) -> None:
    """Training leaves such channels behind; their scale would underflow in float16."""
    quiet = onnx.ModelProto()
    quiet.CopyFrom(encoder)
    name = [n for n in quiet.graph.node if n.op_type == "Conv"][1].input[1]
    weight = next(i for i in quiet.graph.initializer if i.name == name)
    values = numpy_helper.to_array(weight).copy()
    values[3] *= 1e-7
    weight.CopyFrom(numpy_helper.from_array(values, name))
    model = quantize_for_tensorrt(quiet, frames)
    scales = [
        numpy_helper.to_array(i)
        for i in model.graph.initializer
        if any(n.op_type == "DequantizeLinear" and i.name == n.input[1] for n in model.graph.node)
    ]
    assert min(float(scale.min()) for scale in scales) > 1e-6
    assert relative_error(quiet, model, frames[7]) < 0.15
    assert relative_error(quiet, quantize_for_cpu(quiet, frames), frames[7]) < 0.15


def test_no_frames_and_unknown_methods_are_refused(
    encoder: onnx.ModelProto, frames: list[np.ndarray]
) -> None:
    with pytest.raises(CalibrationError, match="no frames"):
        quantize_for_cpu(encoder, [])
    with pytest.raises(CalibrationError, match="'median'"):
        quantize_for_cpu(encoder, frames, method="median")


def test_latents_are_drawn_evenly_and_only_inside_the_region(
    encoder: onnx.ModelProto, frames: list[np.ndarray]
) -> None:
    session = EncoderSession(encoder)
    drawn = sample_latents(session, frames, count=80, seed=1)
    assert drawn.shape == (80, 8)
    np.testing.assert_array_equal(drawn, sample_latents(session, frames, count=80, seed=1))
    region = np.zeros((64, 96), np.uint8)
    region[:, :48] = 255
    inside = sample_latents(session, frames[:1], count=10_000, seed=1, region=region)
    full = session(frames[0])
    np.testing.assert_array_equal(inside, full[:, :, :12].reshape(8, -1).T)
    with pytest.raises(CalibrationError, match="holds no latents"):
        sample_latents(session, frames, count=8, seed=1, region=np.zeros((64, 96), np.uint8))
