"""The TensorRT backend: a built engine, pycuda for memory and streams.

Two streams. The copy stream brings frame n+1 in while the compute stream still runs frame n;
an event makes each execution wait for its own frame. Every buffer that a frame touches is
there twice, so two frames may be under way. The latents of a frame stay on the device, where
the next frame of its stream reads them as `previous`; labels are copied out behind the
execution, latents and margin only when asked for.

Never run on a Jetson by this project so far: it is tested against a stand-in device that
queues work and keeps memory apart (tests/doubles), and with real pycuda over a small CUDA
driver of our own (tests/libcuda).
"""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.backends.base import (
    Outputs,
    Ticket,
    check_codebook,
    check_graph_frame,
    check_wanted,
)
from aeseg_edge.backends.cache import EngineCache, EngineKey, padded_clusters
from aeseg_edge.backends.cuda import Buffer, Device
from aeseg_edge.backends.tensorrt_api import load_tensorrt, reason, shared_journal
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import (
    BIAS,
    FRAME,
    INPUTS,
    LABELS,
    LATENTS,
    MARGIN,
    MIX,
    OUTPUTS,
    PREVIOUS,
    REMAP,
    WEIGHTS,
    GraphSpec,
    TensorSpec,
    codebook_inputs,
)
from aeseg_edge.bundle.precisions import TENSORRT
from aeseg_edge.errors import AesegError, BackendError, EngineError

if TYPE_CHECKING:
    import tensorrt as trt

    from aeseg_edge.bundle.archive import Bundle
    from aeseg_edge.bundle.manifest import Entry

_log = logging.getLogger(__name__)

DEPTH = 2
"""Frames that may be under way: one being computed, the next being copied in."""


def engine_key(
    graph_sha256: str, precision: str, spec: GraphSpec, clusters: int, device: int = 0
) -> EngineKey:
    """What an engine for this graph (its SHA-256) on this machine is stored under.

    MissingDependency without TensorRT or pycuda; EngineError where TensorRT is too old, or there
    is no usable GPU.
    """
    trt = load_tensorrt()
    gpu = Device(device)
    gpu.close()
    return EngineKey(
        onnx_sha256=graph_sha256,
        precision=precision,
        height=spec.height,
        width=spec.width,
        clusters=clusters,
        tensorrt=trt.__version__,
        gpu=gpu.info.name,
        compute_capability=gpu.info.compute_capability,
        multiprocessors=gpu.info.multiprocessors,
    )


def open_backend(
    bundle: Bundle, entry: Entry, *, cache_dir: Path | None = None, device: int = 0
) -> TensorRTBackend:
    """Open the engine of one bundle entry from the cache; its codebook is used.

    EngineNotBuilt, whose fix is the command to type, where the cache has none that can be used
    here; else as `engine_key` and `TensorRTBackend` raise.
    """
    try:
        return _open_backend(bundle, entry, cache_dir, device)
    except AesegError:
        raise
    except Exception as error:  # A broken package raises whatever its code happens to meet.
        raise BackendError(
            f"TensorRT does not work here ({type(error).__name__}: {error})",
            fix="Run: aeseg doctor --backend tensorrt.",
        ) from error


def _open_backend(
    bundle: Bundle, entry: Entry, cache_dir: Path | None, device: int
) -> TensorRTBackend:
    manifest = bundle.manifest
    clusters = padded_clusters(manifest.clusters)
    key = engine_key(
        manifest.files[entry.graph].sha256, entry.precision, manifest.spec, clusters, device
    )
    options = f" --cache-dir {shlex.quote(str(cache_dir))}" if cache_dir is not None else ""
    name = shlex.quote(str(bundle.path or "BUNDLE"))
    size = f"{manifest.spec.width}x{manifest.spec.height}"
    command = f"aeseg build {name} --precision {entry.precision} --imgsz {size}{options}"
    plan = EngineCache(cache_dir).load(key, command=command)
    return TensorRTBackend(plan, manifest.spec, clusters, bundle.codebook, device=device)


class TensorRTBackend:
    """Runs a TensorRT engine of the deployed graph.

    Args:
        plan: The serialised engine, from `EngineCache.load`.
        spec: The sizes it was built for.
        clusters: K_max, the codebook size it was built for; a codebook is padded to it.
        codebook: Used until `set_codebook`.
        device: CUDA's number of the GPU.

    Raises:
        EngineError: The engine does not belong to this GPU and TensorRT, has other inputs
            and outputs than the bundle says, or the GPU fails.
    """

    name = TENSORRT

    _runtime: trt.Runtime | None
    _engine: trt.ICudaEngine | None
    _context: trt.IExecutionContext | None

    def __init__(
        self, plan: bytes, spec: GraphSpec, clusters: int, codebook: Codebook, *, device: int = 0
    ) -> None:
        trt = load_tensorrt()
        self.spec = spec
        self._clusters = clusters
        self._lock = threading.RLock()
        self._failed: EngineError | None = None
        self._closed = False
        self._latents_bytes = 4 * math.prod(spec.latent_shape)
        self._pending: deque[_Job] = deque()
        self._submitted = 0
        self._memories: dict[int, _Memory] = {}
        self._uploaded: set[str] = set()
        self._slots: list[_Slot] = []
        self._constants: dict[str, tuple[NDArray[np.float32], Buffer]] = {}
        self._runtime = None
        self._engine = None
        self._context = None
        self._device = Device(device)
        try:
            with self._device.current("opening the engine"):
                self._open(trt, plan)
            self.set_codebook(codebook)
        except BaseException:
            self.close()
            raise

    def _open(self, trt: ModuleType, plan: bytes) -> None:
        journal, logger = shared_journal(trt)
        with journal.capture() as messages:
            try:
                self._runtime = trt.Runtime(logger)
            except TypeError as error:
                raise EngineError(
                    f"TensorRT cannot use the GPU ({reason(messages)})",
                    fix="Check the driver and run: aeseg doctor.",
                ) from error
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise EngineError(
                    f"TensorRT {trt.__version__} cannot read the engine: {reason(messages)}",
                    fix="Build it again: aeseg build BUNDLE --force.",
                )
            inputs = self.spec.fixed(INPUTS, self._clusters)
            outputs = self.spec.fixed(OUTPUTS, self._clusters)
            _check_contract(trt, self._engine, inputs, outputs)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(
                    f"TensorRT cannot make room to run the engine: {reason(messages)}",
                    fix="Close other programs that use the GPU.",
                )
        device = self._device
        self._copies = device.stream()
        self._compute = device.stream()
        for name in (WEIGHTS, BIAS, REMAP):
            host = device.pinned(inputs[name].shape, inputs[name].dtype)
            self._constants[name] = (host, device.allocate(host.nbytes))
            self._address(name, self._constants[name][1])
        for _ in range(DEPTH):
            self._slots.append(_Slot(device, inputs, outputs))
        self._memories[0] = _Memory(device, self._latents_bytes)

    def set_codebook(self, codebook: Codebook) -> None:
        """Use this codebook from the next submitted frame on.

        It is copied to the device once; what is equal there already is not copied again.
        CodebookError where it has other latents, or more clusters than K_max.
        """
        check_codebook(codebook, self.spec, "engine")
        padded = codebook.padded(self._clusters)
        values = codebook_inputs(padded, self.spec)
        with self._guard("changing the codebook"):
            # Other names and colours are no change to the device.
            changed = [
                name
                for name, (host, _) in self._constants.items()
                if name not in self._uploaded or not np.array_equal(host, values[name])
            ]
            for name in changed:
                host, buffer = self._constants[name]
                np.copyto(host, values[name])
                # On the compute stream: after the frames under way, before the next one.
                self._device.copy_in(buffer, host, self._compute)
            if changed:
                self._compute.synchronize()
            self._uploaded.update(changed)

    def submit(self, frame: NDArray[np.uint8], *, mix: float = 0.0, stream: int = 0) -> Ticket:
        """Start one frame; returns before it is done. See `Backend.submit`.

        The frame is copied before this returns. Each stream keeps two frames' latents there.
        BackendError where two frames are under way already; after an EngineError (the GPU or
        TensorRT failed) the backend can only be closed.
        """
        check_graph_frame(frame, self.spec, "engine")
        with self._guard("starting a frame"):
            self._forget_discarded()
            if len(self._pending) == DEPTH:
                raise BackendError(
                    f"{DEPTH} frames are already under way",
                    fix="Collect the oldest one before submitting the next.",
                )
            slot = self._slots[self._submitted % DEPTH]
            if stream not in self._memories:
                self._memories[stream] = _Memory(self._device, self._latents_bytes)
            memory = self._memories[stream]
            np.copyto(slot.host[FRAME][0], frame)
            slot.host[MIX][0] = 0.0 if memory.blank else mix

            slot.began.record(self._copies)
            self._device.copy_in(slot.device[FRAME], slot.host[FRAME], self._copies)
            self._device.copy_in(slot.device[MIX], slot.host[MIX], self._copies)
            slot.arrived.record(self._copies)

            self._compute.wait_for_event(slot.arrived)
            for name, buffer in slot.device.items():
                self._address(name, buffer)
            self._address(LATENTS, memory.latents[memory.turn])
            self._address(PREVIOUS, memory.latents[1 - memory.turn])
            slot.started.record(self._compute)
            assert self._context is not None
            if not self._context.execute_async_v3(self._compute.handle):
                raise EngineError(
                    "TensorRT did not start the engine",
                    fix="Close this segmenter and open the bundle again; see the log.",
                )
            slot.computed.record(self._compute)
            # Behind the execution and not on the copy stream, where it would hold up the
            # copy of the next frame until this one is computed.
            self._device.copy_out(slot.host[LABELS], slot.device[LABELS], self._compute)
            slot.finished.record(self._compute)

            job = _Job(self._submitted % DEPTH, stream, memory.turn)
            self._pending.append(job)
            self._submitted += 1
            memory.turn = 1 - memory.turn
            memory.blank = not mix > 0
            return job

    def collect(self, ticket: Ticket, want: frozenset[str] = frozenset()) -> Outputs:
        """Wait for one frame and give its outputs; raises as `submit` does."""
        check_wanted(want)
        with self._guard("waiting for a frame"):
            self._forget_discarded()
            if not self._pending or self._pending[0] is not ticket:
                raise BackendError(
                    "the ticket is not the oldest one outstanding",
                    fix="Collect each ticket once, in the order of submission.",
                )
            job = self._pending[0]
            slot = self._slots[job.slot]
            slot.finished.synchronize()
            for name in want:
                # Two frames of a stream may be under way, so its latents are not written
                # over before they are collected.
                source = (
                    self._memories[job.stream].latents[job.turn]
                    if name == LATENTS
                    else slot.device[name]
                )
                self._device.copy_out(slot.host[name], source, self._copies)
            if want:
                self._copies.synchronize()
            self._pending.popleft()
            # Pinned buffers are used again for the frame after next, hence the copies.
            return Outputs(
                labels=slot.host[LABELS][0].copy(),
                latents=slot.host[LATENTS][0].copy() if LATENTS in want else None,
                margin=slot.host[MARGIN][0].copy() if MARGIN in want else None,
                milliseconds=slot.milliseconds(),
            )

    def discard(self, ticket: Ticket) -> None:
        """Give one frame up; its slot is free again when those before it are collected."""
        with self._lock:
            for job in self._pending:
                job.discarded = job.discarded or job is ticket

    def _forget_discarded(self) -> None:
        """Free the slots of frames that were given up, in order: slots are used in turn."""
        while self._pending and self._pending[0].discarded:
            # Whoever gave up may have been interrupted while something was copied.
            self._device.drain()
            self._pending.popleft()

    def reset(self, stream: int | None = None) -> None:
        """Forget the last frame's latents, of one stream or of all."""
        with self._guard("forgetting the last frame"):
            for key, memory in self._memories.items():
                memory.blank = memory.blank or stream in (None, key)

    def memory(self) -> tuple[int, int]:
        """Free and total device memory, in bytes."""
        with self._guard("asking for memory"):
            return self._device.memory()

    def close(self) -> None:
        """Wait for the frames under way and release everything, in order.

        Closing twice is fine. A device that failed is closed as far as it lets itself be.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._pending.clear()
            try:
                with self._device.current("closing"):
                    self._release()
            except EngineError as error:
                _log.warning("%s", error)
            finally:
                self._device.close()

    def _release(self) -> None:
        """Give back what the device holds; the engine before the memory it points to."""
        self._device.drain()
        self._context = None
        self._engine = None
        self._runtime = None
        self._constants.clear()
        self._slots.clear()
        self._memories.clear()
        self._copies = None
        self._compute = None
        self._device.release()

    @contextlib.contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        """One caller at a time, the context pushed, and nothing after a close or a failure."""
        with self._lock:
            if self._closed:
                raise BackendError("the backend is closed", fix="Open the bundle again.")
            if self._failed is not None:
                raise EngineError(self._failed.problem, fix=self._failed.fix)
            try:
                with self._device.current(doing):
                    yield
            except EngineError as error:
                # CUDA's errors stay: every later call would fail, with a less useful text.
                self._failed = error
                raise

    def _address(self, name: str, buffer: Buffer) -> None:
        assert self._context is not None
        if not self._context.set_tensor_address(name, buffer.address):
            raise EngineError(
                f"TensorRT does not take the address of {name}",
                fix="Build the engine again: aeseg build BUNDLE --force.",
            )


class _Memory:
    """The latents of one stream's last two frames, on the device."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.latents = tuple(device.allocate(nbytes) for _ in range(DEPTH))
        self.turn = 0
        self.blank = True


class _Slot:
    """Everything else that one frame touches: pinned and device memory by name, events."""

    def __init__(
        self, device: Device, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
    ) -> None:
        specs = {FRAME: inputs[FRAME], MIX: inputs[MIX], **outputs}
        self.host = {name: device.pinned(spec.shape, spec.dtype) for name, spec in specs.items()}
        self.device = {
            name: device.allocate(host.nbytes)
            for name, host in self.host.items()
            if name != LATENTS
        }
        self.began = device.event()
        self.arrived = device.event()
        self.started = device.event()
        self.computed = device.event()
        self.finished = device.event(blocking=True)

    def milliseconds(self) -> dict[str, float]:
        """How long the device took for each part, once the frame is finished."""
        return {
            "copy_in": self.began.time_till(self.arrived),
            "inference": self.started.time_till(self.computed),
            "copy_out": self.computed.time_till(self.finished),
        }


class _Job(Ticket):
    """A number and not the slot: a ticket that outlives the backend must hold no events."""

    __slots__ = ("discarded", "slot", "stream", "turn")

    def __init__(self, slot: int, stream: int, turn: int) -> None:
        self.slot = slot
        self.stream = stream
        self.turn = turn
        self.discarded = False


def _check_contract(
    trt: ModuleType,
    engine: trt.ICudaEngine,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
) -> None:
    """Refuse an engine of another model: its memory would be read with our sizes."""
    types = {"uint8": trt.DataType.UINT8, "float32": trt.DataType.FLOAT}
    modes = {
        **dict.fromkeys(inputs, trt.TensorIOMode.INPUT),
        **dict.fromkeys(outputs, trt.TensorIOMode.OUTPUT),
    }
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    fix = "Build it again: aeseg build BUNDLE --force."
    if sorted(names) != sorted(modes):
        raise EngineError(f"the engine has tensors {names}, not {list(modes)}", fix=fix)
    for name, wanted in {**inputs, **outputs}.items():
        shape = tuple(engine.get_tensor_shape(name))
        if (
            shape != wanted.shape
            or engine.get_tensor_dtype(name) != types[wanted.dtype]
            or engine.get_tensor_mode(name) != modes[name]
        ):
            raise EngineError(
                f"the engine's {name} is {engine.get_tensor_dtype(name)} {list(shape)}, "
                f"the bundle wants {wanted.dtype} {list(wanted.shape)}",
                fix=fix,
            )
