"""Graphs that were made for TensorRT, run as TensorRT computes them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.backends.onnxruntime import OnnxRuntimeBackend, rounded
from aeseg_edge.backends.session import load_onnxruntime, open_session
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.sources.scene import draw_scene

pytest.importorskip("onnxruntime")


@pytest.fixture
def bundle(v1_bundle: Path) -> Bundle:
    return Bundle.open(v1_bundle)


def labels(bundle: Bundle, graph: bytes) -> np.ndarray:
    spec = bundle.manifest.spec
    backend = OnnxRuntimeBackend(graph, spec, bundle.codebook, threads=1, emulate=True)
    return backend.collect(backend.submit(draw_scene(7, spec.width, spec.height))).labels


@pytest.mark.parametrize("version", ["1.21.0", "1.23.2", "1.29.0"])
def test_half_values_are_cast_before_a_version_that_cuts_them_off_quantises_them(
    bundle: Bundle, version: str
) -> None:
    onnx = pytest.importorskip("onnx")
    given = bundle.graph("int8", "tensorrt")
    model = onnx.load_from_string(rounded(given, version))
    onnx.checker.check_model(model)
    types = {each.name: each.data_type for each in model.graph.initializer}
    casts = {node.output[0] for node in model.graph.node if node.op_type == "Cast"}
    found = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert found
    for node in found:
        assert node.input[0] in casts
        assert types[node.input[1]] == onnx.TensorProto.FLOAT
    # Where both are rounded they are the same, up to ties.
    assert (labels(bundle, rounded(given, version)) == labels(bundle, given)).mean() > 0.99


@pytest.mark.parametrize("version", ["1.30.0", "1.31.1", "2.0", "nightly"])
def test_a_version_that_rounds_runs_the_graph_as_it_is(bundle: Bundle, version: str) -> None:
    given = bundle.graph("int8", "tensorrt")
    assert rounded(given, version) is given


def test_without_onnx_it_is_said_that_int8_looks_worse(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    given = bundle.graph("int8", "tensorrt")
    assert rounded(given, "1.23.2") is given
    assert "1.23.2 cuts off where TensorRT rounds" in caplog.text


def test_half_values_are_rounded_whatever_version_is_installed() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])],
        "g",
        [tensor("x", onnx.TensorProto.FLOAT16, [6])],
        [tensor("y", onnx.TensorProto.INT8, [6])],
        [
            numpy_helper.from_array(np.array(0.5, np.float16), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    version = load_onnxruntime().__version__
    session = open_session(rounded(model.SerializeToString(), version), threads=1)
    values = np.array([0.2, 0.3, 0.9, -0.3, -0.9, 0.25], np.float16)
    # In halves: 0.4, 0.6, 1.8, -0.6, -1.8, and a tie, which goes to the even.
    assert session.run(None, {"x": values})[0].tolist() == [0, 1, 2, -1, -2, 0]
