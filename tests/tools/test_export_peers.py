"""The peers are what they are called. Needs torchvision: make test-timm has it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torchvision")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from aeseg_edge.backends.session import open_session  # noqa: E402

pytestmark = [pytest.mark.timm, pytest.mark.slow]


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    path = repository / "tools" / "export_peers.py"
    spec = importlib.util.spec_from_file_location("export_peers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["export_peers"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peers(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", "--size", "96x64", "--frames", "2", "--out", str(folder)])
        tool.main()
    return folder


@pytest.mark.parametrize(("name", "stride"), [("fcn-resnet18", 32), ("lraspp-mobilenetv3", 8)])
def test_int8_computes_what_fp32_does_with_integer_convolutions_alone(
    name: str, stride: int, tool: ModuleType, peers: Path, tmp_path: Path
) -> None:
    image = tool.random_image((1, 3, 64, 96), 77)
    outputs = []
    for precision in ("fp32", "int8"):
        path = peers / f"{name}-{precision}.onnx"
        written = tmp_path / f"{precision}.onnx"
        session = open_session(path, threads=1, optimised=written)
        outputs.append(session.run(None, {"image": image})[0])
        ops = [node.op_type for node in onnx.load(written).graph.node]
        assert "BatchNormalization" not in ops
        assert ("QLinearConv" in ops, "Conv" in ops) == (precision == "int8", precision == "fp32")
    fp32, int8 = outputs
    assert fp32.shape == int8.shape == (1, 12, 64 // stride, 96 // stride)
    assert np.isfinite(fp32).all()
    assert np.corrcoef(fp32.ravel(), int8.ravel())[0, 1] > 0.9


def test_the_same_seed_makes_the_same_weights(tool: ModuleType) -> None:
    one, two = (tool.make_network(tool.FcnResnet18, 12, 0).state_dict() for _ in range(2))
    assert all(bool((one[name] == two[name]).all()) for name in one)
