"""Every TensorRT name we use exists in NVIDIA's bindings from 10.3 to 11.4."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.tensorrt_names import RECORDS, check, load_records

ROOT = Path(__file__).resolve().parents[3]
WALKED = (
    "aeseg_edge/backends/tensorrt_api.py",
    "aeseg_edge/backends/tensorrt.py",
    "aeseg_edge/measure/doctor.py",
    "export/engines/compile.py",
)
VERSIONS = {"10.3.0", "10.16.1.11", "11.4.0.106"}

pytestmark = pytest.mark.bindings


def faults(source: str) -> list[str]:
    return check(source, load_records(), "planted.py")


@pytest.mark.parametrize("path", WALKED)
def test_every_tensorrt_name_exists_in_all_recorded_versions(path: str) -> None:
    assert check((ROOT / path).read_text(), load_records(), path) == []


def test_no_other_file_of_the_package_uses_tensorrt() -> None:
    """What the walker does not read must not import TensorRT, so that nothing goes unchecked."""
    importers = {
        str(path.relative_to(ROOT))
        for folder in ("aeseg_edge", "export", "calibration")
        for path in (ROOT / folder).rglob("*.py")
        if "import tensorrt" in path.read_text() or "load_tensorrt(" in path.read_text()
    }
    inside = {f"aeseg_edge/{path}" if path.startswith("export/") else path for path in WALKED}
    assert importers - set(WALKED) - inside == set()


def test_the_records_are_of_the_versions_they_say() -> None:
    assert set(load_records()) == VERSIONS
    for version in VERSIONS:
        assert json.loads((RECORDS / f"tensorrt-{version}.json").read_text())["version"] == version


@pytest.mark.parametrize(
    ("name", "versions"),
    [
        ("BuilderFlag.FP16", {"10.3.0", "10.16.1.11"}),
        ("BuilderFlag.INT8", {"10.3.0", "10.16.1.11"}),
        ("BuilderFlag.TF32", VERSIONS),
        ("NetworkDefinitionCreationFlag.EXPLICIT_BATCH", {"10.3.0", "10.16.1.11"}),
        ("NetworkDefinitionCreationFlag.STRONGLY_TYPED", VERSIONS),
        ("IInt8EntropyCalibrator2", {"10.3.0", "10.16.1.11"}),
        ("IExecutionContext.execute_async_v3", VERSIONS),
        ("IExecutionContext.execute_async_v2", set()),
        ("ICudaEngine.get_binding_name", set()),
        ("ICudaEngine.device_memory_size", {"10.3.0", "10.16.1.11"}),
        ("ICudaEngine.device_memory_size_v2", VERSIONS),
    ],
)
def test_the_records_know_what_came_and_went(name: str, versions: set[str]) -> None:
    owner, _, member = name.partition(".")
    having = {
        version
        for version, names in load_records().items()
        if owner in names
        and (
            not member
            or member in names[owner].get("values", {})
            or member in names[owner].get("members", {})
        )
    }
    assert having == versions


def test_the_strongly_typed_flag_has_no_fixed_value() -> None:
    values = {
        names["NetworkDefinitionCreationFlag"]["values"]["STRONGLY_TYPED"]
        for names in load_records().values()
    }
    assert values == {0, 1}


PREAMBLE = """
from types import ModuleType
import tensorrt as trt
def build(trt: ModuleType, logger: trt.ILogger, engine: trt.ICudaEngine) -> None:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    config = builder.create_builder_config()
    context = engine.create_execution_context()
    parser = trt.OnnxParser(network, logger)
"""


def test_correct_code_has_no_fault() -> None:
    assert (
        faults(
            PREAMBLE
            + """
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = 3
    found = [network.get_input(index) for index in range(network.num_inputs)]
    for tensor in found:
        tensor.shape = (1, 2)
        print(tensor.name, tensor.dtype == trt.DataType.FLOAT, tensor.dtype.name)
    if not context.execute_async_v3(stream_handle=3):
        raise RuntimeError(parser.get_error(0).desc())
"""
        )
        == []
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16 is not in TensorRT 11.4"),
        ("config.set_flag(trt.BuilderFlag.INT8)", "BuilderFlag.INT8 is not in TensorRT 11.4"),
        ("engine.get_binding_name(0)", "ICudaEngine.get_binding_name is not in TensorRT 10.3"),
        ("context.execute_async_v2([], 0)", "IExecutionContext.execute_async_v2 is not in"),
        (
            "config.int8_calibrator = None",
            r"IBuilderConfig.int8_calibrator \(to be set\) is not in",
        ),
        ("config.max_workspace_size = 1", r"IBuilderConfig.max_workspace_size \(to be set\)"),
        ("trt.IInt8EntropyCalibrator2()", "IInt8EntropyCalibrator2 is not in TensorRT 11.4"),
        ("print(engine.device_memory_size)", "ICudaEngine.device_memory_size is not in TensorRT 1"),
        ("print(builder.platform_has_fast_fp16)", "Builder.platform_has_fast_fp16 is not in"),
        ("network.get_input(0).dtype = trt.DataType.HALF", "ITensor.dtype .to be set. is not in"),
        ("config.set_compute_capability(1, 0)", "set_compute_capability is not in TensorRT 10.3"),
        ("engine.get_tensor_dtypes('x')", "ICudaEngine.get_tensor_dtypes is not in"),
        ("trt.float33", "float33 is not in"),
        # The wrong number or names of arguments.
        ("builder.build_serialized_network(network)", "Builder.build_serialized_network"),
        ("context.set_tensor_address('x')", "IExecutionContext.set_tensor_address"),
        ("context.execute_async_v3(stream=1)", "IExecutionContext.execute_async_v3"),
        # Objects that come by a way round.
        ("for t in [network.get_input(0)]:\n        t.nme", "ITensor.nme is not in"),
        ("(context if config else None).execute_async_v2(0)", "execute_async_v2 is not in"),
        ("parser.get_error(0).text()", "ParserError.text is not in"),
        ("x: trt.IWhatever = network.get_layer(0)", "IWhatever is not in"),
        # What cannot be followed is refused.
        ("other = trt", "convention: the module is called trt"),
        ("getattr(trt, 'Builder')", "convention: getattr hides"),
        ("{0: engine}[0].get_binding_name(0)", "convention: annotate"),
        ("min([1], key=lambda e: e.get_binding_name(0))", "convention: annotate"),
        ("next(iter([engine])).get_tensor_name(0)", "convention: annotate"),
        ("kept = {}\n    kept['x'] = engine", "convention: keep a TensorRT object"),
        ("import tensorrt", "convention: import TensorRT as trt"),
        ("def f(x: Any) -> None: x.get_binding_name(0)", "convention: Any hides"),
        ("def f(module: ModuleType) -> None: module.Builder", "convention: a module that may be"),
        (
            "class M(trt.IProgressMonitor):\n        def step_done(self, name, step): return True",
            "IProgressMonitor.step_done is not in",
        ),
        (
            "class M(trt.IProgressMonitor):\n        def step_complete(self, name): return True",
            "IProgressMonitor.step_complete",
        ),
    ],
)
def test_a_planted_fault_is_found(line: str, message: str) -> None:
    found = faults(f"{PREAMBLE}    {line}\n")
    assert found, "nothing was found"
    assert any(re.search(message, fault) for fault in found), found


def test_a_field_of_an_object_is_followed() -> None:
    source = """
class Backend:
    def __init__(self, engine: trt.ICudaEngine) -> None:
        self._context = engine.create_execution_context()
        self._engine: trt.ICudaEngine | None = engine
    def run(self) -> None:
        self._context.execute_async_v2(0)
        self._engine.get_binding_name(0)
"""
    assert len({fault.partition(" is not")[0] for fault in faults(source)}) == 2


def test_a_tuple_from_one_of_our_functions_is_followed() -> None:
    source = """
def make(trt: ModuleType) -> tuple[int, trt.Builder]:
    return 1, trt.Builder(None)
def use(trt: ModuleType) -> None:
    number, builder = make(trt)
    builder.build_cuda_engine(None)
"""
    assert any("Builder.build_cuda_engine is not in" in fault for fault in faults(source))
