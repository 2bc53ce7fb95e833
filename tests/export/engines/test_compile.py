"""What the engine builder does around TensorRT; TensorRT itself is in test_engine_rtx.py."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.errors import EngineError, MissingDependency
from aeseg_edge.export.engines import child as engine_child
from aeseg_edge.export.engines import compile as engine
from aeseg_edge.export.engines.child import build_engine
from aeseg_edge.export.engines.compile import (
    BUILDER_NEEDS,
    MEBIBYTE,
    BuildOptions,
    ProgressTree,
    advice,
    available_memory,
    check_memory,
    compile_plan,
)
from aeseg_edge.export.engines.log import ConvolutionReport, explain, parse_kernels
from aeseg_edge.export.engines.rtx import aim

SPEC = GraphSpec(height=32, width=48, channels=3, latent_dim=4, stride=4, output_stride=2)


# Memory ----------------------------------------------------------------------------------------


def test_available_memory_is_what_linux_says(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  7990000 kB\nMemFree:  100 kB\nMemAvailable:    5000 kB\n")
    assert available_memory(path) == 5000 * 1024
    path.write_text("MemTotal:  7990000 kB\n")
    assert available_memory(path) is None
    assert available_memory(tmp_path / "absent") is None


def test_a_build_that_would_run_out_of_memory_is_refused_with_both_figures() -> None:
    options = BuildOptions(workspace=256 * MEBIBYTE)
    needed = BUILDER_NEEDS + options.workspace
    check_memory(options, needed)
    check_memory(options, None)
    with pytest.raises(EngineError, match=r"300 MiB of memory are available, .* about 1280 MiB"):
        check_memory(options, 300 * MEBIBYTE)
    with pytest.raises(EngineError, match=r"Close other programs.*--workspace"):
        check_memory(options, needed - 1)


def test_a_workspace_that_is_none_is_refused() -> None:
    with pytest.raises(EngineError, match=r"a workspace of 512 bytes.*--workspace 512"):
        check_memory(BuildOptions(workspace=512), None)


def test_the_memory_is_checked_before_a_child_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_child, "available_memory", lambda: 1)
    monkeypatch.setattr(engine_child, "_run", lambda *_: pytest.fail("a child was started"))
    with pytest.raises(EngineError, match="0 MiB of memory are available"):
        build_engine(b"", SPEC, 32)


# Progress --------------------------------------------------------------------------------------


def test_nested_phases_become_one_fraction_that_never_falls() -> None:
    told: list[tuple[str, float]] = []
    tree = ProgressTree(lambda stage, fraction: told.append((stage, round(fraction, 3))))
    tree.start("build", "", 4)
    tree.start("fuse", "build", 2)
    tree.step("fuse", 0)
    tree.step("fuse", 1)
    tree.finish("fuse")
    tree.step("build", 0)
    tree.start("time kernels", "build", 10)
    tree.step("time kernels", 4)
    tree.step("gone", 1)
    tree.finish("time kernels")
    tree.step("build", 3)
    assert told == [
        ("build", 0.0),
        ("fuse", 0.0),
        ("fuse", 0.125),
        ("fuse", 0.25),
        ("build", 0.25),
        ("time kernels", 0.25),
        ("time kernels", 0.375),
        ("build", 1.0),
    ]


def test_a_phase_without_steps_divides_by_nothing() -> None:
    told: list[float] = []
    tree = ProgressTree(lambda _, fraction: told.append(fraction))
    tree.start("empty", "", 0)
    tree.step("empty", 0)
    assert told == [0.0, 1.0]


# The build log ---------------------------------------------------------------------------------

# Lines of TensorRT-RTX 1.7.1 for SM86, shortened inside the shapes.
LOG = """Layers:
Name: __myl_CastTran_myl0_0, LayerType: kgen, Inputs: [ { Name: frame, Dimensions: [1,192,256,3], \
Strides: [3], Datatype: UInt8, Format: (Linear) Row major linear format }], Constants: [ { Name: \
scale, Dimensions: [1,3,1,1], Strides: [3], Datatype: Float, Format: (Linear) Row }], Outputs: [ \
{ Name: a, Dimensions: [1,4,192,256], Strides: [3], Datatype: Int8, Format: (NHWC) }], TacticName: \
__myl_CastTran_0x6b, StreamId: 0, Metadata: [ONNX Layer: cast][ONNX Layer: conv_1]
Name: conv_1_myl0_1, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1,4,192,256], \
Strides: [3], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, \
Dimensions: [32,4,6,6], Strides: [1], Datatype: Int8, Format: (NHWC) }, { Name: b, Dimensions: \
[1,32,1,1], Strides: [1], Datatype: Float, Format: (NHWC) }], Outputs: [ { Name: c, Dimensions: \
[1,32,48,64], Strides: [1], Datatype: Float, Format: (NHWC) }], TacticName: __myelin_CASK_STUB, \
StreamId: 0, Metadata: [ONNX Layer: conv_1][ONNX Layer: relu_1]
Name: __mye4946_myl0_12, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , \
StreamId: 0, EventId: 1, Metadata: 
Name: __myl_CorrCast_myl0_18, LayerType: runtime_fusion, Inputs: [ { Name: c, Dimensions: \
[1,64,24,32], Strides: [1], Datatype: Half, Format: (NHWC) }], Constants: [ { Name: w, Dimensions: \
[32,64,1,1], Strides: [1], Datatype: Half, Format: (NHWC) }], Outputs: [ { Name: d, Dimensions: \
[1,32,24,32], Strides: [1], Datatype: Float, Format: (NHWC) }], TacticName: , StreamId: 0, \
Metadata: [ONNX Layer: conv_2][ONNX Layer: to_float]"""


def test_kernels_are_read_from_the_log_without_what_only_orders_streams() -> None:
    first, second, third = parse_kernels(["something else", LOG])
    assert (first.name, first.kind, first.nodes) == (
        "__myl_CastTran_myl0_0",
        "kgen",
        ("cast", "conv_1"),
    )
    assert (first.inputs, first.weights, first.tactic) == (("uint8",), "", "__myl_CastTran_0x6b")
    assert (second.inputs, second.weights) == (("int8",), "int8")
    assert (third.inputs, third.weights, third.tactic) == (("fp16",), "fp16", "")


def test_each_convolution_is_explained_by_the_kernel_that_multiplies() -> None:
    kernels = parse_kernels(LOG.splitlines())
    assert explain(["conv_1", "conv_2", "conv_3"], kernels) == (
        ConvolutionReport("conv_1", "int8", "conv_1_myl0_1", ("relu_1",)),
        ConvolutionReport("conv_2", "fp16", "__myl_CorrCast_myl0_18", ("to_float",)),
        ConvolutionReport("conv_3", "unknown", "", ()),
    )


@pytest.mark.parametrize(
    ("spelling", "precision"),
    [
        ("Datatype: Half, Format: (NHWC)", "fp16"),
        ("Format/Datatype: Row major linear FP32", "fp32"),
        ("Format/Datatype: Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Format/Datatype: Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Datatype: BFloat16", "bf16"),
        ("Datatype: FP8", "fp8"),
    ],
)
def test_a_convolution_without_listed_weights_is_explained_by_its_input(
    spelling: str, precision: str
) -> None:
    line = (
        f"Name: conv, LayerType: CaskConvolution, Inputs: [ {{ Name: a, Dimensions: [1,4,8,8], "
        f"{spelling} }}], Outputs: [ {{ Name: b, Dimensions: [1,4,8,8], Datatype: Float }}], "
        "TacticName: sm80_xmma, Metadata: [ONNX Layer: conv]"
    )
    (report,) = explain(["conv"], parse_kernels([line]))
    assert (report.precision, report.kernel) == (precision, "conv")


def test_a_log_without_details_explains_nothing_and_does_not_fail() -> None:
    assert parse_kernels(["Engine generation completed in 3 seconds."]) == ()
    assert explain(["conv"], ()) == (ConvolutionReport("conv", "unknown", "", ()),)


# Around TensorRT -------------------------------------------------------------------------------


def test_a_missing_tensorrt_is_the_same_error_from_the_child() -> None:
    options = BuildOptions(module="tensorrt_that_is_absent")
    with pytest.raises(MissingDependency, match="TensorRT is not importable"):
        build_engine(b"", SPEC, 32, options)


def test_the_child_ends_when_its_parent_is_killed_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that takes for ever to import stands for a build that takes long."""
    (tmp_path / "endless_tensorrt.py").write_text("import time; time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parent = multiprocessing.get_context("fork").Process(
        target=build_engine, args=(b"", SPEC, 32, BuildOptions(module="endless_tensorrt"))
    )
    parent.start()
    child = wait_for(lambda: children_of(parent.pid))
    assert is_running(child)
    parent.kill()
    parent.join()
    wait_for(lambda: not is_running(child))
    assert list(tmp_path.glob("aeseg-engine-*")) == []


def wait_for(condition: Callable[[], Any]) -> Any:
    for _ in range(400):
        found = condition()
        if found:
            return found
        time.sleep(0.025)
    pytest.fail("it did not happen within ten seconds")


def children_of(pid: int | None) -> int:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(listed[0]) if listed else 0


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_a_tensorrt_that_cannot_use_the_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorrt")

    class ILogger:
        pass

    class Builder:
        def __init__(self, logger: object) -> None:
            logger.log(1, "CUDA initialization failure with error: 35")  # type: ignore[attr-defined]
            raise TypeError("pybind11::init(): factory function returned nullptr")

    module.__dict__.update(__version__="10.3.0", ILogger=ILogger, Builder=Builder)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(engine, "_check_onnx", lambda graph: None)
    with pytest.raises(EngineError, match=r"cannot use the GPU .*failure with error: 35"):
        compile_plan(b"", SPEC, 32)


def test_tensorrt_itself_takes_no_target() -> None:
    with pytest.raises(EngineError, match="builds for the GPU it runs on"):
        aim(ModuleType("tensorrt"), object(), "8.6")


def test_options_say_nothing_that_changes_what_an_engine_computes() -> None:
    """The key of the cache leaves them out; whoever adds one that matters must add it there."""
    assert {field.name for field in dataclasses.fields(BuildOptions)} == {
        "workspace",
        "module",
        "target",
    }


@pytest.mark.parametrize(
    "message",
    [
        "Could not find any implementation for node conv1 due to insufficient workspace.",
        "Tactic Device request: 96MB Available: 1MB. Device memory is insufficient",
        "Skipping tactic 3 due to insufficient memory on requested size of 1024",
        "Try increasing the workspace size with IBuilderConfig::setMemoryPoolLimit()",
    ],
)
def test_a_workspace_that_is_too_small_is_not_called_full_memory(message: str) -> None:
    assert "a larger --workspace" in advice(["something else", message], 1 << 20)
    assert "1 MiB" in advice([message], 1 << 20)
    assert "Free some memory" in advice(["Cuda Runtime (out of memory)"], 1 << 20)
