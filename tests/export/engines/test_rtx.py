"""The builder against NVIDIA's own compiler: TensorRT-RTX builds for an absent SM86 on a CPU.

The code under test is the one that runs on a Jetson; only the module's name and the target
differ. Real parser, real typing rules, real plans. It is no evidence of what Orin fuses.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("onnxruntime.quantization")

from aeseg_edge.backends.cache import BUILDER_OPTIONS, EngineCache, EngineKey  # noqa: E402
from aeseg_edge.backends.tensorrt_api import load_tensorrt, shared_journal  # noqa: E402
from aeseg_edge.bundle.contract import GraphSpec  # noqa: E402
from aeseg_edge.calibration.graphs.deployed import attach_head, to_half  # noqa: E402
from aeseg_edge.calibration.graphs.int8 import quantize_for_tensorrt  # noqa: E402
from aeseg_edge.errors import EngineError  # noqa: E402
from aeseg_edge.export.engines import build  # noqa: E402
from aeseg_edge.export.engines import child as engine_child  # noqa: E402
from aeseg_edge.export.engines.child import build_engine  # noqa: E402
from aeseg_edge.export.engines.compile import BuildOptions, CompiledPlan, compile_plan, configure  # noqa: E402
from aeseg_edge.export.engines.log import explain  # noqa: E402
from tests.doubles.graph import SPEC, codebook, deployed, encoder  # noqa: E402

pytestmark = [
    pytest.mark.rtx,
    # TensorRT-RTX has no kernels to time; TensorRT has, and the code is the same.
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning"),
]

SM86 = BuildOptions(module="tensorrt_rtx", target="8.6")
SM75 = dataclasses.replace(SM86, target="7.5")
HEIGHT, WIDTH, DIM = 192, 256, 16
SPARE_KERNELS = 10


# The real architectures ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["edge", "lite", "shallow", "deep"])
def graphs(request: pytest.FixtureRequest) -> tuple[str, GraphSpec, dict[str, bytes]]:
    """Every graph for TensorRT of one architecture, with random weights."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from aeseg_edge.export.network.autoencoder import build_autoencoder
    from aeseg_edge.export.network.config import AutoencoderConfig
    from aeseg_edge.export.onnx.encoder import export_encoder

    model = build_autoencoder(AutoencoderConfig(request.param, latent_dim=DIM), seed=0)
    exported = export_encoder(model.eval(), height=HEIGHT, width=WIDTH)
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(2)]
    encoders = {
        "fp32": exported,
        "fp16": to_half(exported),
        "int8": quantize_for_tensorrt(exported, frames),
    }
    spec = GraphSpec(HEIGHT, WIDTH, 3, DIM, model.stride, model.stride)
    return (
        request.param,
        spec,
        {
            name: attach_head(
                e, spec, gate=0.2, layout="any" if name == "fp32" else "tensorrt"
            ).SerializeToString()
            for name, e in encoders.items()
        },
    )


def precisions(compiled: CompiledPlan) -> dict[str, str]:
    return {r.node: r.precision for r in explain(compiled.convolutions, compiled.kernels)}


@pytest.mark.host
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_graph_of_every_architecture_builds_in_its_own_precision(
    precision: str, graphs: tuple[str, GraphSpec, dict[str, bytes]]
) -> None:
    arch, spec, by_precision = graphs
    graph = by_precision[precision]
    compiled, _ = compile_plan(graph, spec, 32, SM86)
    found = precisions(compiled)
    nodes = onnx.load_from_string(graph).graph.node
    assert list(found) == [node.name for node in nodes if node.op_type == "Conv"]

    wanted = dict.fromkeys(found, precision)
    if precision == "int8":
        # The projection to latents stays in fp16: its rounding would move whole labels.
        wanted[list(found)[-1]] = "fp16"
    assert found == wanted
    print(f"{arch} {precision}: {len(found)} convolutions, {len(compiled.kernels)} kernels")


@pytest.mark.host
def test_the_fp16_engine_of_edge_as_it_is_deployed_has_few_kernels() -> None:
    """With 64 latent channels, labels at half the encoder's stride, and a nearest-centre
    codebook, the defaults."""
    pytest.importorskip("onnxscript")
    from aeseg_edge.export.network.autoencoder import build_autoencoder
    from aeseg_edge.export.network.config import AutoencoderConfig
    from aeseg_edge.export.onnx.encoder import export_encoder

    model = build_autoencoder(AutoencoderConfig("edge", latent_dim=64), seed=0)
    encoder = to_half(export_encoder(model.eval(), height=HEIGHT, width=WIDTH))
    spec = GraphSpec(HEIGHT, WIDTH, 3, 64, model.stride, model.stride // 2, squares=False)
    graph = attach_head(encoder, spec, gate=0.2, layout="tensorrt").SerializeToString()
    compiled, _ = compile_plan(graph, spec, 32, SM86)
    limit = len(compiled.convolutions) + SPARE_KERNELS
    print(f"edge fp16 as deployed: {len(compiled.kernels)} kernels, at most {limit} wanted")
    assert len(compiled.kernels) <= limit, [k.name for k in compiled.kernels]


@pytest.mark.host
@pytest.mark.parametrize("graphs", ["edge"], indirect=True)
def test_the_fp16_engine_of_edge_has_few_kernels(
    graphs: tuple[str, GraphSpec, dict[str, bytes]],
) -> None:
    _, spec, by_precision = graphs
    compiled, _ = compile_plan(by_precision["fp16"], spec, 32, SM86)
    limit = len(compiled.convolutions) + SPARE_KERNELS
    print(f"edge fp16: {len(compiled.kernels)} kernels, at most {limit} wanted")
    assert len(compiled.kernels) <= limit, [k.name for k in compiled.kernels]


@pytest.mark.host
def test_an_fp16_graph_or_an_older_gpu_is_not_mistaken_for_int8(
    graphs: tuple[str, GraphSpec, dict[str, bytes]],
) -> None:
    _, spec, by_precision = graphs
    half, _ = compile_plan(by_precision["fp16"], spec, 32, SM86)
    assert "int8" not in precisions(half).values()
    # TensorRT-RTX has no float32 matrix product for Turing, so the head does not build.
    with pytest.raises(EngineError, match=r"built no engine: .*SM75"):
        compile_plan(by_precision["int8"], spec, 32, SM75)


@pytest.mark.host
def test_one_graph_builds_for_another_size_and_another_number_of_clusters(
    graphs: tuple[str, GraphSpec, dict[str, bytes]],
) -> None:
    _, spec, by_precision = graphs
    other = dataclasses.replace(spec, height=128, width=320)
    compiled, _ = compile_plan(by_precision["fp16"], other, 256, SM86)
    assert compiled.plan


# The tables of TENSORRT.md: what the parser refuses ---------------------------------------------


def quantized(folder: Path, **changes: Any) -> bytes:
    """The tiny graph with int8 convolutions, as this project quantises or with changes."""
    operators = changes.get("quant_format") == quantization.QuantFormat.QOperator
    # ONNX has no QLinearConv with float16 scales.
    model = encoder() if operators else to_half(encoder())
    # Sizes for onnxruntime's calibrator.
    for axis, size in ((1, SPEC.height), (2, SPEC.width)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            shape = (1, SPEC.height, SPEC.width, SPEC.channels)
            # Dark frames: ranges that are not symmetric about the middle of the normalised image.
            self.frames = [{"frame": random.integers(0, 150, shape, np.uint8)} for _ in range(2)]

        def get_next(self) -> dict[str, Any] | None:
            return self.frames.pop() if self.frames else None

    extra = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "AddQDQPairToWeight": True,
        "DedicatedQDQPair": False,
        "OpTypesToExcludeOutputQuantization": ["Conv"],
    }
    options: dict[str, Any] = {
        "quant_format": quantization.QuantFormat.QDQ,
        "activation_type": quantization.QuantType.QInt8,
        "weight_type": quantization.QuantType.QInt8,
        "per_channel": True,
        "op_types_to_quantize": ["Conv"],
        "nodes_to_exclude": ["project"],
    }
    for name, value in changes.items():
        (extra if name[0].isupper() else options)[name] = value
    quantization.quantize_static(
        model, str(folder / "int8.onnx"), Reader(), extra_options=extra, **options
    )
    result = onnx.load(folder / "int8.onnx")
    serialized: bytes = attach_head(result, SPEC).SerializeToString()
    return serialized


def test_the_settings_in_use_are_accepted(tmp_path: Path) -> None:
    compiled, _ = compile_plan(quantized(tmp_path), SPEC, 32, SM86)
    assert precisions(compiled) == {"first": "int8", "project": "fp16"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"QuantizeBias": True}, r"DequantizeLinear .*type Int32"),
        (
            {"ActivationSymmetric": False},
            r"(Quantize|Dequantize)Linear .*[Nn]on-zero zero point",
        ),
        (
            {"activation_type": quantization.QuantType.QUInt8, "ActivationSymmetric": False},
            r"QuantizeLinear .*(UInt8|zero point)",
        ),
        ({"quant_format": quantization.QuantFormat.QOperator}, r"QLinearConv"),
    ],
    ids=["int32 bias", "asymmetric", "uint8", "QOperator"],
)
def test_a_quantisation_that_tensorrt_refuses_is_reported_as_op_node_and_reason(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"refuses the graph: .*" + reason) as caught:
        compile_plan(quantized(tmp_path, **changes), SPEC, 32, SM86)
    assert "Export the bundle again" in caught.value.fix


def edited(change: Callable[[Any], None]) -> bytes:
    model = onnx.load_from_string(deployed())
    change(model.graph)
    serialized: bytes = model.SerializeToString()
    return serialized


def swap_cast_and_transpose(graph: Any) -> None:
    cast, transpose = graph.node[0], graph.node[1]
    transpose.input[0], transpose.output[0] = "frame", "float"
    cast.input[0], cast.output[0] = "float", "image"
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(transpose)
    second.CopyFrom(cast)
    graph.node[0].CopyFrom(first)
    graph.node[1].CopyFrom(second)


def test_a_transpose_of_bytes_is_refused_with_the_parsers_words() -> None:
    with pytest.raises(EngineError, match=r"(Transpose planes|UInt8).*"):
        compile_plan(edited(swap_cast_and_transpose), SPEC, 32, SM86)


def rename_input(graph: Any) -> None:
    graph.input[5].name = "blend"
    for node in graph.node:
        node.input[:] = ["blend" if name == "mix" else name for name in node.input]


def drop_output(graph: Any) -> None:
    del graph.output[2]


@pytest.mark.parametrize(
    ("graph", "spec", "clusters", "message"),
    [
        (b"", SPEC, 32, "not valid ONNX"),
        (b"rubbish", SPEC, 32, "not valid ONNX"),
        (deployed()[:200], SPEC, 32, "not valid ONNX"),
        (edited(rename_input), SPEC, 32, "the graph's inputs are .*'blend'"),
        (edited(drop_output), SPEC, 32, "the graph's outputs are"),
        (deployed(), dataclasses.replace(SPEC, channels=4), 32, r"frame is \[1, -1, -1, 3\]"),
        (deployed(), dataclasses.replace(SPEC, latent_dim=5), 32, r"weights is \[-1, 8\]"),
        (deployed(), dataclasses.replace(SPEC, output_stride=4), 32, r"labels is \[1, 16, 24\]"),
        (deployed(), dataclasses.replace(SPEC, stride=8), 32, "sizes do not fit.*Shape Error"),
    ],
    ids=["empty", "rubbish", "cut", "input", "output", "channels", "latents", "labels", "stride"],
)
def test_a_graph_that_is_not_what_the_bundle_says_is_refused(
    graph: bytes, spec: GraphSpec, clusters: int, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        compile_plan(graph, spec, clusters, SM86)


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused() -> None:
    with pytest.raises(EngineError, match=r"compute capability 3\.7"):
        compile_plan(deployed(), SPEC, 32, dataclasses.replace(SM86, target="3.7"))


def test_float32_scores_keep_their_mantissas_and_memory_is_bounded() -> None:
    trt = load_tensorrt("tensorrt_rtx")
    builder = trt.Builder(shared_journal(trt)[1])
    options = dataclasses.replace(SM86, workspace=64 << 20)
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32), "the default changed"
    config = configure(trt, builder, options)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert f"optimization={config.builder_optimization_level}" in BUILDER_OPTIONS


# The child process ------------------------------------------------------------------------------


def test_the_child_builds_what_this_process_builds() -> None:
    told: list[tuple[str, float]] = []
    there, timings = build_engine(
        deployed(), SPEC, 32, SM86, progress=lambda stage, fraction: told.append((stage, fraction))
    )
    here, _ = compile_plan(deployed(), SPEC, 32, SM86)
    assert there.kernels == here.kernels
    assert there.convolutions == here.convolutions == ("first", "project")
    assert there.version == here.version
    assert len(there.plan) == len(here.plan)
    again, _ = build_engine(deployed(), SPEC, 32, SM86, timing_cache=timings)
    assert again.plan

    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len({stage for stage, _ in told}) > 3


def test_a_fault_in_the_child_arrives_as_the_same_error() -> None:
    with pytest.raises(EngineError, match="not valid ONNX") as caught:
        build_engine(b"rubbish", SPEC, 32, SM86)
    assert caught.value.fix == "Export the bundle again."


class Watched:
    """Remembers the children that were started and the folders they worked in."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.children: list[subprocess.Popen[bytes]] = []
        self.folders: list[Path] = []
        start = subprocess.Popen

        def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
            child: subprocess.Popen[bytes] = start(command, **options)
            self.children.append(child)
            self.folders.append(Path(command[-1]))
            return child

        patch.setattr(engine_child.subprocess, "Popen", popen)

    def nothing_is_left(self) -> bool:
        ended = all(child.poll() is not None for child in self.children)
        return ended and not any(folder.exists() for folder in self.folders)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "most likely because memory ran out"),
        (signal.SIGSEGV, "the build ended with SIGSEGV"),
    ],
)
def test_a_child_that_is_killed_or_crashes_is_an_error_and_not_the_end_of_the_program(
    number: signal.Signals, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)

    def kill(stage: str, fraction: float) -> None:
        watched.children[0].send_signal(number)

    with pytest.raises(EngineError, match=message):
        build_engine(deployed(), SPEC, 32, SM86, progress=kill)
    assert watched.nothing_is_left()


def test_ctrl_c_ends_the_child_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)

    def interrupt(stage: str, fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(deployed(), SPEC, 32, SM86, progress=interrupt)
    assert watched.nothing_is_left()
    assert watched.children[0].returncode == -signal.SIGKILL


# From a bundle to the cache ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FakeManifest:
    """The part of a manifest that building reads."""

    spec: GraphSpec = SPEC
    clusters: int = 5
    multiple: int = 4
    files: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"fp16.onnx": type("Info", (), {"sha256": "ab" * 32})}
    )

    def entry(self, precision: str, backend: str) -> Any:
        return type("Entry", (), {"graph": f"{precision}.onnx", "precision": precision})


class FakeBundle:
    """A bundle with one graph."""

    codebook = codebook()
    path = Path("street.aeseg")

    def __init__(self, spec: GraphSpec = SPEC) -> None:
        self.manifest = FakeManifest(spec)

    def with_size(self, width: int, height: int) -> FakeBundle:
        return FakeBundle(dataclasses.replace(SPEC, width=width, height=height))

    def graph(self, precision: str, backend: str) -> bytes:
        return deployed()


def key_of(sha256: str, precision: str, spec: GraphSpec, clusters: int, device: int) -> EngineKey:
    return EngineKey(
        sha256, precision, spec.height, spec.width, clusters, "1.7.1", "absent", "8.6", 8
    )


def run(folder: Path, **options: Any) -> build.BuiltEngine:
    (result,) = build.build_bundle(
        FakeBundle(),  # type: ignore[arg-type]
        ["fp16"],
        cache_dir=folder,
        options=SM86,
        make_key=key_of,
        **options,
    )
    return result


def test_a_bundle_is_built_once_and_found_the_next_time_with_its_explanation(
    tmp_path: Path,
) -> None:
    first = run(tmp_path)
    assert first.built
    assert "no TensorRT engine for fp16 at 48x32" in first.reason
    second = run(tmp_path)
    assert not second.built
    assert (second.path, second.size) == (first.path, first.size)
    assert (second.kernels, second.convolutions) == (first.kernels, first.convolutions)
    assert [(c.node, c.precision) for c in second.convolutions] == [
        ("first", "fp32"),
        ("project", "fp32"),
    ]
    forced = run(tmp_path, force=True)
    assert forced.built
    assert forced.reason == "a new one was asked for"


def test_a_damaged_engine_is_built_again_and_the_reason_is_told(tmp_path: Path) -> None:
    path = run(tmp_path).path
    path.write_bytes(path.read_bytes()[:100])
    again = run(tmp_path)
    assert again.built
    assert "has 100 bytes where its sidecar says" in again.reason
    assert not run(tmp_path).built


def test_a_build_that_fails_leaves_the_old_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run(tmp_path).path
    before = path.read_bytes()
    monkeypatch.setattr(FakeBundle, "graph", lambda *_: b"rubbish")
    with pytest.raises(EngineError):
        run(tmp_path, force=True)
    assert path.read_bytes() == before
    assert not run(tmp_path).built


def test_another_image_size_is_another_engine(tmp_path: Path) -> None:
    small, large = run(tmp_path), run(tmp_path, size=(96, 64))
    assert large.built
    assert small.path != large.path


def test_two_processes_that_build_at_once_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def work() -> None:
        results.put(run(tmp_path).built)

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    # In any order: the second waits for the first.
    built = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(built) == [False, True]
    assert EngineCache(tmp_path).load(key_of("ab" * 32, "fp16", SPEC, 32, 0))
    sidecars = [json.loads(p.read_text()) for p in tmp_path.glob("*.json")]
    assert len(sidecars) == 1
