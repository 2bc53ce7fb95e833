"""The ONNX Runtime backend: the embedded default, on any CPU."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.backends.base import (
    Outputs,
    Ticket,
    check_codebook,
    check_graph_frame,
    check_wanted,
)
from aeseg_edge.backends.session import load_onnxruntime, open_session
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import (
    EXTRAS,
    LATENTS,
    MARGIN,
    OUTPUTS,
    GraphSpec,
    codebook_inputs,
    feed,
)
from aeseg_edge.bundle.precisions import ONNXRUNTIME
from aeseg_edge.errors import BackendError
from aeseg_edge.support.require import optional

_log = logging.getLogger(__name__)


def rounded(graph: bytes, version: str) -> bytes:
    """Give a graph that this version of ONNX Runtime quantises as TensorRT does.

    Before 1.30 its QuantizeLinear cuts float16 quotients off towards zero, where ONNX rounds to the
    nearest even: labels of an emulated int8 graph that agrees on 99.7 % agreed on 90 %. In float32
    it rounds, so that values are cast first. Without onnx that cannot be done, and is said.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) >= (1, 30):
        return graph
    onnx = optional("onnx")
    if onnx is None:
        _log.warning(
            "ONNX Runtime %s cuts off where TensorRT rounds, so int8 for TensorRT looks worse than "
            "it is: install onnx, or ONNX Runtime 1.30",
            version,
        )
        return graph
    model = onnx.load_from_string(graph)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    arrays = {each.name: each for each in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        scale = arrays.get(node.input[1]) if node.op_type == "QuantizeLinear" else None
        if scale is not None and scale.data_type == half:
            values = onnx.numpy_helper.to_array(scale).astype(np.float32)
            inputs = [f"{node.output[0]}/{name}" for name in ("value", "scale")]
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, inputs[1]))
            nodes.append(onnx.helper.make_node("Cast", [node.input[0]], inputs[:1], to=single))
            node.input[0], node.input[1] = inputs
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


class OnnxRuntimeBackend:
    """Runs a deployed graph with ONNX Runtime's CPU provider.

    Args:
        graph: Serialised ONNX of the deployed graph.
        spec: The sizes it was exported with; H and W are fixed to these on opening.
        codebook: Used until ``set_codebook``.
        threads: Threads inside one operation; ONNX Runtime's own choice when None.
        emulate: Run a graph that was made for TensorRT as it is written, without
            rewriting its Q/DQ (slow; for measuring agreement).
    """

    name = ONNXRUNTIME

    def __init__(
        self,
        graph: bytes,
        spec: GraphSpec,
        codebook: Codebook,
        *,
        threads: int | None = None,
        emulate: bool = False,
    ) -> None:
        self.spec = spec
        self._lock = threading.RLock()
        self._session: Any = open_session(
            rounded(graph, load_onnxruntime().__version__) if emulate else graph,
            threads=threads,
            sizes=spec.sizes,
            # This pass quantises biases with scales computed in float16, which underflow: a
            # TensorRT graph would be measured with errors that TensorRT does not make.
            disabled=["WeightBiasQuantization"] if emulate else (),
            fix="Update onnxruntime (opset 19 is needed), or export the bundle again.",
        )
        # Graphs for the CPU compute latents and margin only when told to.
        self._asks = any(each.name == EXTRAS for each in self._session.get_inputs())
        self._pending: deque[_Job] = deque()
        self._blank = np.zeros((1, *spec.latent_shape), np.float32)
        self._previous: dict[int, NDArray[np.float32]] = {}
        self._codebook: dict[str, NDArray[np.float32]] = {}
        self.set_codebook(codebook)

    def set_codebook(self, codebook: Codebook) -> None:
        """Use this codebook from the next submitted frame on."""
        check_codebook(codebook, self.spec)
        with self._lock:
            self._codebook = codebook_inputs(codebook, self.spec)

    def submit(self, frame: NDArray[np.uint8], *, mix: float = 0.0, stream: int = 0) -> Ticket:
        """Take one frame; the work is done when its outputs are collected."""
        check_graph_frame(frame, self.spec)
        with self._lock:
            self._require_open()
            job = _Job(np.ascontiguousarray(frame), mix, stream, self._codebook)
            self._pending.append(job)
            return job

    def collect(self, ticket: Ticket, want: frozenset[str] = frozenset()) -> Outputs:
        """Run one submitted frame and give its outputs."""
        check_wanted(want)
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
            given = feed(
                job.codebook,
                job.frame,
                self._blank if previous is None else previous,
                0.0 if previous is None else job.mix,
                mixes or bool(want) if self._asks else None,
            )
            started = time.perf_counter_ns()
            try:
                labels, latents, margin = self._session.run(OUTPUTS, given)
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
            latents=latents[0] if LATENTS in want else None,
            margin=margin[0] if MARGIN in want else None,
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
