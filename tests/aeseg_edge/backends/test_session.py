"""Inputs made up for any model, from types and shapes alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aeseg_edge.backends import session as sessions
from aeseg_edge.backends.session import (
    TensorInfo,
    inputs_of,
    open_session,
    saturates,
    synthesise,
)
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.pretrained import pretrained_path
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


USES = """
import sys, time
import numpy as np
from aeseg_edge.backends.session import load_onnxruntime
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.support.require import optional
with Segmenter.load(sys.argv[1], backend="onnxruntime") as segmenter:
    geometry = segmenter.manifest.geometry
    segmenter(np.zeros((geometry.height, geometry.width, 3), np.uint8))
load_onnxruntime()
optional("onnxruntime.quantization")
time.sleep(float(sys.argv[2]))
"""


def test_onnx_runtime_opens_no_socket_and_keeps_no_identifier(
    v1_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    strace = shutil.which("strace")
    clean = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    clean |= {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    calls = tmp_path / "calls"
    # It sends ten seconds after its first session; without strace only its files are looked at.
    command = [sys.executable, "-c", USES, str(v1_bundle), "11" if strace else "0"]
    if strace:
        command = [strace, "-f", "-o", str(calls), "-e", "trace=socket,connect,sendto", *command]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    if strace and "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if "icrosoft" in path.name]
    if not strace:
        pytest.skip("strace is not installed: sockets were not looked at, files were")
    assert not re.findall(r"socket\(.*|connect\(.*|sendto\(.*", calls.read_text())


def test_the_product_is_what_it_says() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(sessions._PRODUCT)
    onnx.checker.check_model(model)
    (node,), (weights,) = model.graph.node, model.graph.initializer
    assert (node.op_type, list(node.input), list(node.output)) == (
        "MatMulInteger",
        ["x", "w"],
        ["y"],
    )
    np.testing.assert_array_equal(numpy_helper.to_array(weights), np.full((4, 1), 127, np.int8))
    tensor = helper.make_tensor_value_info
    assert list(model.graph.input) == [tensor("x", onnx.TensorProto.UINT8, [1, 4])]


def runtime(product: int | None) -> SimpleNamespace:
    """An ONNX Runtime whose products are this; one that opens nothing for None."""

    class Session:
        def __init__(self, *_: object, **__: object) -> None:
            if product is None:
                raise RuntimeError("no such operator")

        def run(self, *_: object) -> list[np.ndarray]:
            return [np.array([[product]], np.int32)]

    class Options:
        pass

    # Hashable, as a module is.
    return type("Runtime", (), {"InferenceSession": Session, "SessionOptions": Options})  # type: ignore[return-value]


@pytest.mark.parametrize(("product", "loses"), [(129540, False), (65534, True), (None, True)])
def test_a_cpu_that_loses_large_products_is_known(product: int | None, loses: bool) -> None:
    assert saturates(runtime(product)) is loses


@pytest.mark.parametrize("loses", [False, True])
def test_weights_are_widened_where_the_cpu_loses_products(
    loses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(sessions, "saturates", lambda _: loses)
    options = open_session(sessions._PRODUCT, threads=1).get_session_options()
    key = "session.x64quantprecision"
    if loses:
        assert options.get_session_config_entry(key) == "1"
    else:
        with pytest.raises(RuntimeError, match=key):
            options.get_session_config_entry(key)


EMULATED = """
import sys
import numpy as np
from aeseg_edge.backends.session import load_onnxruntime, saturates
from aeseg_edge.segment.segmenter import Segmenter
found = {}
for precision in ("fp32", "int8"):
    with Segmenter.load(sys.argv[1], precision, "onnxruntime", 1, imgsz=(256, 160)) as segmenter:
        found[precision] = segmenter(np.load(sys.argv[2])).labels
np.savez(sys.argv[3], saturates=saturates(load_onnxruntime()), **found)
"""


def test_int8_on_a_cpu_without_vnni_gives_the_labels_of_one_with_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    cv2 = pytest.importorskip("cv2")
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("qemu-x86_64 (Debian: qemu-user) is not installed")
    bundle = pretrained_path()
    agreed = Bundle.open(bundle).manifest.entry("int8", "onnxruntime").agreement
    assert agreed is not None
    coarse = np.random.default_rng(0).integers(0, 256, (10, 16, 3), np.uint8)
    np.save(tmp_path / "frame.npy", cv2.resize(coarse, (256, 160), interpolation=cv2.INTER_CUBIC))
    found = {}
    for name, before in {"here": [], "emulated": [emulator, "-cpu", "Haswell"]}.items():
        target = tmp_path / f"{name}.npz"
        given = [str(bundle), str(tmp_path / "frame.npy"), str(target)]
        done = subprocess.run(
            [*before, sys.executable, "-c", EMULATED, *given],
            capture_output=True,
            text=True,
            check=False,
        )
        if before and not target.exists():
            pytest.skip(f"the emulator does not run this Python: {done.stderr[-200:]}")
        assert done.returncode == 0, done.stderr
        found[name] = np.load(target)
    assert found["emulated"]["saturates"]
    # Saturated sums agree on 92.4 %, exact ones on 98.6 % of this coarse noise.
    for each in found.values():
        assert (each["int8"] == each["fp32"]).mean() > 0.98
    assert (found["here"]["int8"] == found["emulated"]["int8"]).mean() > 0.995
