"""Inputs made up for any model, from types and shapes alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.backends.session import TensorInfo, inputs_of, open_session, synthesise
from aeseg_edge.errors import BackendError, UsageError

FLOAT = "tensor(float)"


def shape_of(*shape: int | str | None, kind: str = FLOAT) -> list[int]:
    made = synthesise([TensorInfo("x", kind, shape)], "m.onnx", width=48, height=32)
    return list(made["x"].shape)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((1, 3, 360, 480), [1, 3, 360, 480]),
        (("batch", 3, "height", "width"), [1, 3, 32, 48]),
        (("N", 3, None, None), [1, 3, 32, 48]),
        ((None, "h1", "w1", 3), [1, 32, 48, 3]),
        (("batch_size", "C", "H", "W"), None),
        ((1, "H", "W", 4), [1, 32, 48, 4]),
        ((3, "dim1", "dim2"), [3, 32, 48]),
        (("rows", "columns", 1), [32, 48, 1]),
        ((None, 1000), [1, 1000]),
        (("batch", "sequence"), None),
        (("unknown",), None),
        ((), []),
    ],
)
def test_symbolic_sides_become_the_bundles_size(
    shape: tuple[int | str | None, ...], wanted: list[int] | None
) -> None:
    if wanted is None:
        with pytest.raises(UsageError, match=r"m\.onnx: dimension \d of input x \[.*\] is not"):
            shape_of(*shape)
    else:
        assert shape_of(*shape) == wanted


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("tensor(uint8)", np.uint8),
        ("tensor(float16)", np.float16),
        (FLOAT, np.float32),
        ("tensor(int64)", np.int64),
    ],
)
def test_every_type_is_made_up_alike_each_time(kind: str, dtype: type) -> None:
    one, two = (
        synthesise([TensorInfo("x", kind, (1, 3, 8, 8))], "m.onnx", width=48, height=32)["x"]
        for _ in range(2)
    )
    assert one.dtype == dtype
    np.testing.assert_array_equal(one, two)
    # An index into anything is valid; pictures are not flat.
    assert len(np.unique(one)) == 1 if dtype is np.int64 else len(np.unique(one)) > 50


def test_a_type_that_cannot_be_made_up_is_named() -> None:
    with pytest.raises(UsageError, match=r"input text is tensor\(string\)"):
        synthesise([TensorInfo("text", "tensor(string)", (1,))], "m.onnx", width=4, height=4)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(BackendError, match=r"bad\.onnx"):
        open_session(tmp_path / "bad.onnx", threads=1)
    with pytest.raises(BackendError, match=r"there is no file .*none\.onnx"):
        open_session(tmp_path / "none.onnx", threads=1)


def test_no_pool_spins_and_every_session_has_the_threads_it_is_given(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [tensor("x", onnx.TensorProto.FLOAT, [1, 3, "height", "width"])],
        [tensor("y", onnx.TensorProto.FLOAT, [1, 3, "height", "width"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    written = tmp_path / "m.onnx"
    session = open_session(
        model.SerializeToString(), threads=2, sizes={"height": 8}, optimised=written
    )
    options = session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert inputs_of(session) == [TensorInfo("x", FLOAT, (1, 3, 8, "width"))]
    assert written.is_file()


def test_one_file_opens_sessions_and_imports_onnx_runtime(repository: Path) -> None:
    found = {
        path.relative_to(repository).as_posix()
        for folder in ("aeseg_edge", "calibration", "export")
        for path in (repository / folder).rglob("*.py")
        if re.search(r"\.InferenceSession\(|^\s*(import|from) onnxruntime", path.read_text(), re.M)
    }
    assert found == {"aeseg_edge/backends/session.py"}


def test_onnx_runtime_is_told_to_tell_nobody() -> None:
    program = (
        "import os; from aeseg_edge.backends.session import load_onnxruntime; "
        "load_onnxruntime(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    clean = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    for given, seen in ((clean, "1"), ({**clean, "ORT_DISABLE_TELEMETRY": "0"}, "0")):
        done = subprocess.run(
            [sys.executable, "-c", program], env=given, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == seen
