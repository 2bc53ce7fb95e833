"""The ONNX Runtime backend: the embedded default, on any CPU."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.backends.base import WANTABLE, Outputs, Ticket
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.errors import BackendError, CodebookError, FrameError, MissingDependency


def check_codebook(codebook: Codebook, spec: GraphSpec) -> None:
    """Refuse a codebook for other latents.

    Raises:
        CodebookError: If its latent dimension is not the graph's.
    """
    if codebook.latent_dim != spec.latent_dim:
        raise CodebookError(
            f"the codebook has {codebook.latent_dim} latent channels, the graph {spec.latent_dim}",
            fix="Use the codebook of the same bundle, or calibrate again.",
        )


def check_graph_frame(frame: NDArray[np.uint8], spec: GraphSpec) -> None:
    """Refuse a frame that is not at the graph's size.

    Raises:
        FrameError: If shape or dtype are not the graph's.
    """
    wanted = (spec.height, spec.width, spec.channels)
    if frame.dtype != np.uint8 or frame.shape != wanted:
        raise FrameError(
            f"frame is {frame.dtype} {list(frame.shape)}, the graph takes uint8 {list(wanted)}",
            fix="Use Segmenter, which resizes frames.",
        )


class OnnxRuntimeBackend:
    """Runs a deployed graph with ONNX Runtime's CPU provider.

    Args:
        graph: Serialised ONNX of the deployed graph.
        spec: The sizes it was exported with; H and W are fixed to these on opening.
        codebook: Used until ``set_codebook``.
        threads: Threads inside one operation; ONNX Runtime's own choice when None.
        emulate: Run a graph that was made for TensorRT as it is written, without
            rewriting its Q/DQ (slow; for measuring agreement).

    Raises:
        MissingDependency: If onnxruntime is not installed.
        BackendError: If the graph cannot be opened.
        CodebookError: If the codebook does not fit.
    """

    name = "onnxruntime"

    def __init__(
        self,
        graph: bytes,
        spec: GraphSpec,
        codebook: Codebook,
        *,
        threads: int | None = None,
        emulate: bool = False,
    ) -> None:
        runtime = _import_onnxruntime()
        self.spec = spec
        self._lock = threading.RLock()
        self._session: Any = _open(runtime, graph, spec, threads, emulate)
        # Graphs for the CPU compute latents and margin only when told to.
        self._asks = any(each.name == "extras" for each in self._session.get_inputs())
        self._pending: deque[_Job] = deque()
        self._blank = np.zeros((1, *spec.latent_shape), np.float32)
        self._previous: dict[int, NDArray[np.float32]] = {}
        self._codebook: dict[str, NDArray[np.float32]] = {}
        self.set_codebook(codebook)

    def set_codebook(self, codebook: Codebook) -> None:
        """Use this codebook from the next submitted frame on."""
        check_codebook(codebook, self.spec)
        with self._lock:
            self._codebook = {
                "weights": codebook.columns(self.spec.squares),
                "bias": np.ascontiguousarray(codebook.bias[:, None]),
                "remap": codebook.remap.astype(np.float32),
            }

    def submit(self, frame: NDArray[np.uint8], *, mix: float = 0.0, stream: int = 0) -> Ticket:
        """Take one frame; the work is done when its outputs are collected."""
        check_graph_frame(frame, self.spec)
        with self._lock:
            self._require_open()
            job = _Job(np.ascontiguousarray(frame)[None], mix, stream, self._codebook)
            self._pending.append(job)
            return job

    def collect(self, ticket: Ticket, want: frozenset[str] = frozenset()) -> Outputs:
        """Run one submitted frame and give its outputs."""
        unknown = want - WANTABLE
        if unknown:
            raise BackendError(
                f"outputs {sorted(unknown)} are unknown", fix=f"Use {sorted(WANTABLE)}."
            )
        with self._lock:
            self._require_open()
            if not self._pending or self._pending[0] is not ticket:
                raise BackendError(
                    "the ticket is not the oldest one outstanding",
                    fix="Collect each ticket once, in the order of submission.",
                )
            job = self._pending.popleft()
            previous = self._previous.pop(job.stream, None)
            mixes = job.mix > 0
            feed = {
                "frame": job.frame,
                **job.codebook,
                "previous": self._blank if previous is None else previous,
                "mix": np.array([0.0 if previous is None else job.mix], np.float32),
            }
            if self._asks:
                feed["extras"] = np.array([mixes or bool(want)])
            started = time.perf_counter_ns()
            try:
                labels, latents, margin = self._session.run(_OUTPUTS, feed)
            except Exception as error:  # onnxruntime raises classes of its own, unexported
                raise BackendError(
                    f"ONNX Runtime failed on a frame: {error}",
                    fix="Check free memory; report this with the bundle's `aeseg info`.",
                ) from error
            elapsed = (time.perf_counter_ns() - started) / 1e6
            if mixes:
                self._previous[job.stream] = latents
        return Outputs(
            labels=labels[0],
            latents=latents[0] if "latents" in want else None,
            margin=margin[0] if "margin" in want else None,
            milliseconds={"copy_in": 0.0, "inference": elapsed, "copy_out": 0.0},
        )

    def discard(self, ticket: Ticket) -> None:
        """Give one frame up; it is never computed."""
        with self._lock:
            self._pending = deque(job for job in self._pending if job is not ticket)

    def reset(self, stream: int | None = None) -> None:
        """Forget the last frame's latents, of one stream or of all."""
        with self._lock:
            if stream is None:
                self._previous.clear()
            else:
                self._previous.pop(stream, None)

    def close(self) -> None:
        """Drop the session. Closing twice is fine."""
        with self._lock:
            self._session = None
            self._pending.clear()
            self._previous.clear()

    def _require_open(self) -> None:
        if self._session is None:
            raise BackendError("the backend is closed", fix="Open the bundle again.")


_OUTPUTS = ["labels", "latents", "margin"]


class _Job(Ticket):
    __slots__ = ("codebook", "frame", "mix", "stream")

    def __init__(
        self,
        frame: NDArray[np.uint8],
        mix: float,
        stream: int,
        codebook: dict[str, NDArray[np.float32]],
    ) -> None:
        self.frame = frame
        self.mix = mix
        self.stream = stream
        self.codebook = codebook


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            f"onnxruntime is not importable ({error})",
            fix="Install it: pip install 'aeseg_edge[cpu]'.",
        ) from error
    return onnxruntime


def _open(runtime: Any, graph: bytes, spec: GraphSpec, threads: int | None, emulate: bool) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle pools that spin take the cores that capture and delivery need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    _, rows, columns = spec.latent_shape
    for name, size in (
        ("height", spec.height),
        ("width", spec.width),
        ("latent_height", rows),
        ("latent_width", columns),
    ):
        options.add_free_dimension_override_by_name(name, size)
    # This pass quantises biases with scales computed in float16, which underflow: a
    # TensorRT graph would be measured with errors that TensorRT does not make.
    disabled = ["WeightBiasQuantization"] if emulate else None
    try:
        return runtime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except Exception as error:  # onnxruntime raises classes of its own, unexported
        raise BackendError(
            f"ONNX Runtime {runtime.__version__} cannot open the graph: {error}",
            fix="Update onnxruntime (opset 19 is needed), or export the bundle again.",
        ) from error
