"""ONNX in, TensorRT engine out: one code path for TensorRT 10.3 to 11, no torch.

The network is strongly typed: precision is what the ONNX graph says (float16 casts, Q/DQ),
never a builder flag. Symbolic sizes are fixed on the network before building, so no
optimisation profile is needed. `build_engine` does the work in a child process, so that an
out-of-memory kill or a crash inside the builder is an error here and not the end of the
program; `compile_plan` is that work.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from aeseg_edge.backends.cache import OPTIMIZATION_LEVEL
from aeseg_edge.backends.tensorrt_api import load_tensorrt, reason, shared_journal
from aeseg_edge.bundle.contract import INPUTS, OUTPUTS, GraphSpec, TensorSpec
from aeseg_edge.errors import EngineError
from aeseg_edge.export.engines.log import Kernel, parse_kernels
from aeseg_edge.export.engines.rtx import aim
from aeseg_edge.support.progress import Progress

if TYPE_CHECKING:
    import tensorrt as trt

_log = logging.getLogger(__name__)

_TIGHT = r"workspace|tactic device request|insufficient memory on"
MEBIBYTE = 1 << 20
DEFAULT_WORKSPACE = 512 * MEBIBYTE
"""Scratch memory a kernel may ask for; these graphs use a few tens of MiB."""

BUILDER_NEEDS = 1024 * MEBIBYTE
"""Memory the builder itself takes beside the workspace: an estimate from TensorRT's library
sizes and from reports, never measured on a Jetson by this project."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build. None of it changes what the engine computes.

    Attributes:
        workspace: Limit of the scratch memory that a kernel may use, in bytes.
        module: "tensorrt", or "tensorrt_rtx" for TensorRT-RTX.
        target: Compute capability to build for, such as "8.6". TensorRT-RTX only;
            TensorRT builds for the GPU it runs on.
    """

    workspace: int = DEFAULT_WORKSPACE
    module: str = "tensorrt"
    target: str | None = None


@dataclass(frozen=True)
class CompiledPlan:
    """A built engine and TensorRT's version.

    The kernels that it runs are in order (none if the log did not tell), the names of the graph's
    convolutions in its order.
    """

    plan: bytes
    kernels: tuple[Kernel, ...]
    convolutions: tuple[str, ...]
    version: str


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that can be had without swapping, in bytes, or None where Linux does not say.

    Source: proc_meminfo(5), MemAvailable. On a Jetson the GPU shares this memory.
    """
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def check_memory(options: BuildOptions, available: int | None) -> None:
    """Refuse, by EngineError, a build that would most likely be killed half-way.

    `available` is from `available_memory`; None is not checked.
    """
    if options.workspace < MEBIBYTE:
        raise EngineError(
            f"a workspace of {options.workspace} bytes is below 1 MiB",
            fix="Give it in MiB: --workspace 512.",
        )
    needed = BUILDER_NEEDS + options.workspace
    if available is not None and available < needed:
        raise EngineError(
            f"{available // MEBIBYTE} MiB of memory are available, building needs about "
            f"{needed // MEBIBYTE} MiB",
            fix="Close other programs, add swap, or give a smaller --workspace (MiB).",
        )


def compile_plan(
    graph: bytes,
    spec: GraphSpec,
    clusters: int,
    options: BuildOptions | None = None,
    *,
    progress: Progress | None = None,
    timing_cache: bytes = b"",
) -> tuple[CompiledPlan, bytes]:
    """Build an engine in this process; sizes and codebook (K_max rows) are fixed to those given.

    Progress is called from TensorRT's threads. The timing cache is what an earlier build returned
    beside the engine, or nothing. EngineError, with the reason, where TensorRT refuses the graph or
    cannot build it.
    """
    options = options or BuildOptions()
    trt = load_tensorrt(options.module)
    journal, logger = shared_journal(trt)
    _check_onnx(graph)
    with journal.capture() as messages:
        try:
            builder = trt.Builder(logger)
        except TypeError as error:
            raise EngineError(
                f"TensorRT cannot use the GPU ({reason(messages)})",
                fix="Check the driver with nvidia-smi or tegrastats, then run: aeseg doctor.",
            ) from error
        # The flag's value is 1 in TensorRT 10.3 and 0 in 11.4: never write it as a number.
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(graph) or parser.num_errors:
            raise EngineError(
                f"TensorRT {trt.__version__} refuses the graph: {_parser_errors(parser)}",
                fix="Export the bundle again with this version of aeseg_edge.",
            )
        _fix_inputs(trt, network, spec.fixed(INPUTS, clusters))
        try:
            _check_outputs(trt, network, spec.fixed(OUTPUTS, clusters))
        except RuntimeError as error:  # TensorRT works shapes out when it is asked for them
            raise EngineError(
                f"the graph's sizes do not fit together: {reason(messages)}",
                fix="Export the bundle again with this version of aeseg_edge.",
            ) from error
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        convolutions = tuple(
            layer.name for layer in layers if layer.type == trt.LayerType.CONVOLUTION
        )
        config = configure(trt, builder, options)
        timings = config.create_timing_cache(timing_cache)
        if timings is not None and not config.set_timing_cache(timings, False):
            _log.warning("kernel timings of an earlier build do not fit and are not used")
        # A strong reference for as long as the build runs: TensorRT holds none.
        monitor = _progress_monitor(trt, progress)
        if monitor is not None:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(
                f"TensorRT {trt.__version__} built no engine: {reason(messages)}",
                fix=advice([text for _, text in messages], options.workspace),
            )
        kept = config.get_timing_cache()
        timing = bytes(kept.serialize()) if kept is not None else b""
        kernels = parse_kernels(text for _, text in messages)
        if progress is not None:
            progress("engine built", 1.0)
        return CompiledPlan(bytes(plan), kernels, convolutions, trt.__version__), timing


def advice(messages: Sequence[str], workspace: int) -> str:
    """Say what to do where TensorRT built nothing: whether its scratch memory was too small."""
    # "Tactic Device request: 96MB Available: 1MB", "insufficient memory on requested size", "Could
    # not find any implementation for node conv1 due to insufficient workspace".
    if any(re.search(_TIGHT, text, re.IGNORECASE) for text in messages):
        return (
            f"The scratch memory of {workspace >> 20} MiB is too small for a layer: give a larger "
            "--workspace (MiB)."
        )
    return "Free some memory and try again; if it stays, report it with `aeseg doctor`."


def configure(trt: ModuleType, builder: trt.Builder, options: BuildOptions) -> trt.IBuilderConfig:
    """Everything that is asked of the builder beside the network; EngineError for a bad target."""
    config = builder.create_builder_config()
    # Set by default even in strongly typed networks; it would cut float32 scores to 10-bit
    # mantissas.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.builder_optimization_level = OPTIMIZATION_LEVEL
    # Makes the log name the kernels and the ONNX nodes in them, and costs nothing per frame.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.target is not None:
        aim(trt, config, options.target)
    return config


def _check_onnx(graph: bytes) -> None:
    """Have onnx.checker look first: TensorRT's parser answers True to some rubbish.

    A device need not have onnx; there the bundle's hashes stand for the check made when it
    was exported, and `_fix_inputs` refuses a graph that is not ours.
    """
    if importlib.util.find_spec("onnx") is None:
        return
    import onnx

    try:
        onnx.checker.check_model(onnx.load_from_string(graph))
    except Exception as error:  # protobuf's DecodeError moved between its releases
        raise EngineError(
            f"the graph is not valid ONNX: {' '.join(str(error).split())[:500]}",
            fix="Export the bundle again.",
        ) from error


def _parser_errors(parser: trt.OnnxParser) -> str:
    """Every error as "op node: reason"; a QOperator graph gives one for each node."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()}".strip()
        text = " ".join(error.desc().split())
        lines.append(f"{where}: {text}" if where else text)
    shown = list(dict.fromkeys(lines))
    more = f" (and {len(shown) - 5} more)" if len(shown) > 5 else ""
    return ("; ".join(shown[:5]) or "it gave no reason") + more


def _fix_inputs(
    trt: ModuleType, network: trt.INetworkDefinition, wanted: Mapping[str, TensorSpec]
) -> None:
    """Give every input its static shape, and refuse a graph with another contract."""
    found = [network.get_input(index) for index in range(network.num_inputs)]
    if [tensor.name for tensor in found] != list(wanted):
        raise EngineError(
            f"the graph's inputs are {[tensor.name for tensor in found]}, not {list(wanted)}",
            fix="Export the bundle again with this version of aeseg_edge.",
        )
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = wanted[tensor.name].shape
        here = tuple(tensor.shape)
        fits = len(here) == len(shape) and all(
            size in (-1, fixed) for size, fixed in zip(here, shape, strict=True)
        )
        if not fits:
            raise EngineError(
                f"the graph's {tensor.name} is {list(here)}, {list(shape)} was asked for",
                fix="Give the size the graph was exported for, or export it again.",
            )
        _check_type(trt, tensor, wanted[tensor.name])
        tensor.shape = shape


def _check_outputs(
    trt: ModuleType, network: trt.INetworkDefinition, wanted: Mapping[str, TensorSpec]
) -> None:
    """Refuse a graph whose outputs, once its inputs have sizes, are not the contract's."""
    found = [network.get_output(index) for index in range(network.num_outputs)]
    if [tensor.name for tensor in found] != list(wanted):
        raise EngineError(
            f"the graph's outputs are {[tensor.name for tensor in found]}, not {list(wanted)}",
            fix="Export the bundle again with this version of aeseg_edge.",
        )
    for index in range(network.num_outputs):
        tensor = network.get_output(index)
        if tuple(tensor.shape) != wanted[tensor.name].shape:
            raise EngineError(
                f"the graph's {tensor.name} is {list(tensor.shape)}, the bundle says "
                f"{list(wanted[tensor.name].shape)}",
                fix="Export the bundle again with this version of aeseg_edge.",
            )
        _check_type(trt, tensor, wanted[tensor.name])


def _check_type(trt: ModuleType, tensor: trt.ITensor, wanted: TensorSpec) -> None:
    types = {"uint8": trt.DataType.UINT8, "float32": trt.DataType.FLOAT}
    if tensor.dtype != types[wanted.dtype]:
        raise EngineError(
            f"the graph's {tensor.name} is {tensor.dtype}, not {wanted.dtype}",
            fix="Export the bundle again with this version of aeseg_edge.",
        )


class ProgressTree:
    """Turns TensorRT's nested phases into one fraction that never falls.

    TensorRT opens phases inside phases, each with a number of steps, from several threads.
    A phase's share is (finished steps + share of the phase inside it) / steps.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str, int, int]] = {}
        self._best = 0.0

    def start(self, phase: str, parent: str, steps: int) -> None:
        """A phase begins inside another one ("" for the outermost)."""
        with self._lock:
            self._phases[phase] = (parent, max(1, steps), 0)
        self._tell(phase)

    def step(self, phase: str, index: int) -> None:
        """Step `index` of a phase is done."""
        with self._lock:
            if phase not in self._phases:
                return
            parent, steps, _ = self._phases[phase]
            self._phases[phase] = (parent, steps, min(steps, index + 1))
        self._tell(phase)

    def finish(self, phase: str) -> None:
        """A phase is over."""
        with self._lock:
            self._phases.pop(phase, None)

    def _tell(self, phase: str) -> None:
        with self._lock:
            share, stage = 0.0, phase
            while phase in self._phases:
                parent, steps, done = self._phases[phase]
                share = min(1.0, (done + min(share, 0.999)) / steps)
                phase = parent
            self._best = max(self._best, share)
            best = self._best
        self._progress(stage, best)


def _progress_monitor(trt: ModuleType, progress: Progress | None) -> trt.IProgressMonitor | None:
    if progress is None:
        return None
    tree = ProgressTree(progress)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tree.start(phase_name, parent_phase or "", num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tree.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            tree.finish(phase_name)

    return Monitor()
