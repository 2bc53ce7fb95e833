"""The TensorRT backend over stand-ins for pycuda and TensorRT: order, lifetime, errors.

The reference is the ONNX Runtime backend on the same graph: labels, latents and margin must
be equal, on both schedules that the stand-in device knows.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from aeseg_edge.backends import tensorrt as production
from aeseg_edge.backends.base import Outputs
from aeseg_edge.backends.cache import EngineCache, padded_clusters
from aeseg_edge.backends.onnxruntime import OnnxRuntimeBackend
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.calibration.graphs.deployed import attach_head
from aeseg_edge.errors import (
    AesegError,
    BackendError,
    CodebookError,
    EngineError,
    EngineNotBuilt,
    FrameError,
    MissingDependency,
)
from tests.doubles import cuda
from tests.doubles.graph import SPEC, codebook, deployed
from tests.doubles.tensorrt import make_module, make_plan
from tests.tensorrt_names import load_records

CLUSTERS = 32
BOTH = frozenset({"latents", "margin"})
GRAPH = deployed()
PLAN = make_plan(GRAPH, SPEC, CLUSTERS)

Open = Callable[..., Any]


def frames(count: int, *, spec: GraphSpec = SPEC, seed: int = 1) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    shape = (count, spec.height, spec.width, spec.channels)
    return list(random.integers(0, 256, shape, np.uint8))


@dataclass
class Bench:
    """A device, and a way to open backends on it."""

    gpu: cuda.Gpu
    patch: pytest.MonkeyPatch

    def use(self, **options: str) -> None:
        self.patch.setitem(sys.modules, "tensorrt", make_module(self.gpu, **options))

    def open(
        self,
        book: Codebook | None = None,
        *,
        plan: bytes = PLAN,
        module: Any = production,
        clusters: int = CLUSTERS,
    ) -> Any:
        return module.TensorRTBackend(plan, SPEC, clusters, book or codebook())


@pytest.fixture(params=["lazy", "greedy"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return make_bench(request.param, monkeypatch)


def make_bench(schedule: str, patch: pytest.MonkeyPatch) -> Bench:
    gpu = cuda.Gpu(schedule)
    cuda.install(gpu, patch)
    bench = Bench(gpu, patch)
    bench.use()
    return bench


def assert_equal(found: Outputs, wanted: Outputs) -> None:
    assert found.labels.dtype == np.uint8
    np.testing.assert_array_equal(found.labels, wanted.labels)
    for name in BOTH:
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def drive(backend: Any, graph: bytes = GRAPH, spec: GraphSpec = SPEC) -> None:
    """Everything a caller may do, checked against ONNX Runtime; then close."""
    reference = OnnxRuntimeBackend(graph, spec, codebook(spec=spec), threads=1)
    results: list[Outputs] = []
    wanted: list[Outputs] = []

    def expect(image: NDArray[np.uint8], mix: float, want: frozenset[str], stream: int = 0) -> None:
        wanted.append(reference.collect(reference.submit(image, mix=mix, stream=stream), want))

    images = frames(14, spec=spec)
    # One at a time, nothing asked for; the first frame's mix must not matter.
    for image in images[:2]:
        results.append(backend.collect(backend.submit(image, mix=0.5)))
        expect(image, 0.5, frozenset())
    # Submitted ahead, latents and margin asked for, smoothing on.
    ticket = backend.submit(images[2], mix=0.7)
    expect(images[2], 0.7, BOTH)
    for image in images[3:6]:
        following = backend.submit(image, mix=0.7)
        expect(image, 0.7, BOTH)
        results.append(backend.collect(ticket, BOTH))
        ticket = following
    # Another codebook while a frame is under way: that frame still has the old one.
    backend.set_codebook(codebook(3, seed=5, spec=spec))
    results.append(backend.collect(ticket, BOTH))
    reference.set_codebook(codebook(3, seed=5, spec=spec))
    backend.reset()
    reference.reset()
    for image in images[6:8]:
        results.append(backend.collect(backend.submit(image, mix=0.9), frozenset({"margin"})))
        expect(image, 0.9, frozenset({"margin"}))
    # Two more cameras, frames of both and of one under way; one of them is lost in between.
    earlier = None
    for image, stream in zip(images[8:], (1, 2, 2, 1, 1, 2), strict=True):
        following = backend.submit(image, mix=0.8, stream=stream)
        expect(image, 0.8, BOTH, stream)
        if earlier is not None:
            results.append(backend.collect(earlier, BOTH))
        if len(wanted) == 11:
            backend.reset(2)
            reference.reset(2)
        earlier = following
    results.append(backend.collect(earlier, BOTH))
    for found, right in zip(results, wanted, strict=True):
        assert_equal(found, right)
        assert set(found.milliseconds) == {"copy_in", "inference", "copy_out"}
    backend.close()


# Right results ---------------------------------------------------------------------------------


def test_it_gives_what_onnx_runtime_gives(bench: Bench) -> None:
    drive(bench.open())
    assert bench.gpu.leaks() == {}


@pytest.fixture(scope="module")
def edge() -> tuple[bytes, GraphSpec]:
    """The default architecture's graph; made before stand-ins hide what torch looks for."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from aeseg_edge.export.network.autoencoder import build_autoencoder
    from aeseg_edge.export.network.config import AutoencoderConfig
    from aeseg_edge.export.onnx.encoder import export_encoder

    model = build_autoencoder(AutoencoderConfig("edge", latent_dim=8), seed=0).eval()
    spec = GraphSpec(64, 96, 3, 8, model.stride, 2)
    exported = export_encoder(model, height=spec.height, width=spec.width)
    return attach_head(exported, spec).SerializeToString(), spec


@pytest.mark.host
def test_the_graph_of_the_default_architecture_runs_the_same(
    edge: tuple[bytes, GraphSpec], bench: Bench
) -> None:
    graph, spec = edge
    plan = make_plan(graph, spec, CLUSTERS)
    backend = production.TensorRTBackend(plan, spec, CLUSTERS, codebook(spec=spec))
    drive(backend, graph, spec)
    assert bench.gpu.leaks() == {}


def test_a_thousand_frames_leave_the_memory_as_it_was(bench: Bench) -> None:
    backend = bench.open()
    (image,) = frames(1)
    backend.collect(backend.submit(image), BOTH)
    before = backend.memory()
    for _ in range(1000):
        backend.collect(backend.submit(image, mix=0.5))
    assert backend.memory() == before
    backend.close()
    assert bench.gpu.leaks() == {}


@pytest.mark.parametrize("clusters", [1, 2, 31, 32])
def test_a_codebook_of_any_size_up_to_the_engines_is_padded(clusters: int, bench: Bench) -> None:
    book = codebook(clusters, seed=clusters)
    reference = OnnxRuntimeBackend(GRAPH, SPEC, book.padded(CLUSTERS), threads=1)
    with_backend = bench.open(book)
    for image in frames(2):
        labels = with_backend.collect(with_backend.submit(image)).labels
        np.testing.assert_array_equal(labels, reference.collect(reference.submit(image)).labels)
        assert labels.max() < clusters
    with_backend.close()


def test_the_codebook_is_uploaded_once_and_again_only_when_it_changes(bench: Bench) -> None:
    book = codebook()
    backend = bench.open(book)
    (image,) = frames(1)

    def uploads(step: Callable[[], object]) -> int:
        before = bench.gpu.calls.count("memcpy_htod_async")
        step()
        return bench.gpu.calls.count("memcpy_htod_async") - before

    renamed = dataclasses.replace(
        book, classes=tuple(dataclasses.replace(c, name=f"thing {c.id}") for c in book.classes)
    )
    merged = dataclasses.replace(renamed, remap=np.zeros_like(book.remap))
    assert uploads(lambda: backend.collect(backend.submit(image))) == 2  # frame and mix
    assert uploads(lambda: backend.set_codebook(book)) == 0
    assert uploads(lambda: backend.set_codebook(renamed)) == 0
    assert uploads(lambda: backend.set_codebook(merged)) == 1
    assert uploads(lambda: backend.set_codebook(codebook(seed=9))) == 3
    backend.close()


def test_latents_and_margin_are_copied_back_only_when_asked_for(bench: Bench) -> None:
    backend = bench.open()
    (image,) = frames(1)
    for want, copies in ((frozenset(), 1), (frozenset({"margin"}), 2), (BOTH, 3)):
        before = bench.gpu.calls.count("memcpy_dtoh_async")
        outputs = backend.collect(backend.submit(image), want)
        assert bench.gpu.calls.count("memcpy_dtoh_async") - before == copies
        assert (outputs.latents is not None) == ("latents" in want)
        assert (outputs.margin is not None) == ("margin" in want)
    backend.close()


def test_the_copy_of_the_next_frame_does_not_wait_for_the_one_being_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = make_bench("lazy", monkeypatch)
    backend = bench.open()
    first, second = frames(2)
    backend.submit(first)
    backend.submit(second)
    copies, compute = backend._copies, backend._compute
    copies.run()
    assert not copies.work, "the copy stream is held up by the compute stream"
    assert compute.work, "nothing is left to overlap with"
    backend.close()


def test_a_frame_may_be_overwritten_as_soon_as_it_is_submitted(bench: Bench) -> None:
    backend = bench.open()
    (image,) = frames(1)
    wanted = backend.collect(backend.submit(image)).labels
    reused = image.copy()
    ticket = backend.submit(reused)
    reused[...] = 0
    np.testing.assert_array_equal(backend.collect(ticket).labels, wanted)
    backend.close()


# Threads ---------------------------------------------------------------------------------------


def test_any_thread_may_call_and_none_is_left_with_a_context(bench: Bench) -> None:
    backend = bench.open()
    images = frames(12)
    reference = OnnxRuntimeBackend(GRAPH, SPEC, codebook(), threads=1)
    wanted = [reference.collect(reference.submit(image)).labels for image in images]
    faults: list[BaseException | str] = []
    turn = threading.Lock()

    def work(part: slice) -> None:
        try:
            for image, labels in zip(images[part], wanted[part], strict=True):
                # One owner at a time: a pair of calls is the owner's, each call is locked.
                with turn:
                    found = backend.collect(backend.submit(image)).labels
                np.testing.assert_array_equal(found, labels)
            if bench.gpu.stack:
                faults.append("a context is left on this thread")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(slice(i, None, 3),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    closer = threading.Thread(target=backend.close)
    closer.start()
    closer.join()
    assert bench.gpu.leaks() == {}


# Refusals --------------------------------------------------------------------------------------


def test_a_third_frame_under_way_is_refused_and_nothing_is_lost(bench: Bench) -> None:
    backend = bench.open()
    images = frames(3)
    tickets = [backend.submit(image) for image in images[:2]]
    with pytest.raises(BackendError, match="2 frames are already under way"):
        backend.submit(images[2])
    for ticket in tickets:
        backend.collect(ticket)
    backend.collect(backend.submit(images[2]))
    backend.close()


def test_tickets_are_collected_once_and_in_order(bench: Bench) -> None:
    backend = bench.open()
    first, second = (backend.submit(image) for image in frames(2))
    with pytest.raises(BackendError, match="not the oldest"):
        backend.collect(second)
    backend.collect(first)
    with pytest.raises(BackendError, match="not the oldest"):
        backend.collect(first)
    backend.collect(second)
    backend.close()


@pytest.mark.parametrize("first", [0, 1])
def test_a_frame_that_is_given_up_is_in_nobodys_way(bench: Bench, first: int) -> None:
    """Whichever of two is given up, the others' outputs stay what they are."""
    backend = bench.open()
    reference = OnnxRuntimeBackend(GRAPH, SPEC, codebook(), threads=1)
    images = frames(4)
    tickets = [backend.submit(image) for image in images[:2]]
    backend.discard(tickets[first])
    if first == 1:
        # Its slot comes after that of the frame before it, which may not be written over.
        with pytest.raises(BackendError, match="2 frames are already under way"):
            backend.submit(images[2])
    with pytest.raises(BackendError, match="not the oldest"):
        backend.collect(tickets[first])
    assert_equal(
        backend.collect(tickets[1 - first], BOTH),
        reference.collect(reference.submit(images[1 - first]), BOTH),
    )
    backend.discard(tickets[0])
    for image in images[2:]:
        wanted = reference.collect(reference.submit(image), BOTH)
        assert_equal(backend.collect(backend.submit(image), BOTH), wanted)
    backend.close()
    backend.discard(tickets[1])
    assert bench.gpu.leaks() == {}


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((32, 47, 3), np.uint8),
        np.zeros((32, 48, 4), np.uint8),
        np.zeros((32, 48), np.uint8),
        np.zeros((32, 48, 3), np.float32),
    ],
)
def test_a_frame_of_another_shape_or_type_is_refused(frame: NDArray[Any], bench: Bench) -> None:
    backend = bench.open()
    with pytest.raises(FrameError, match=r"the engine takes uint8 \[32, 48, 3\]"):
        backend.submit(frame)
    backend.close()


def test_an_unknown_output_is_refused(bench: Bench) -> None:
    backend = bench.open()
    ticket = backend.submit(frames(1)[0])
    with pytest.raises(BackendError, match="colours"):
        backend.collect(ticket, frozenset({"colours"}))
    backend.close()


def test_a_codebook_that_is_too_large_or_for_other_latents_is_refused(bench: Bench) -> None:
    backend = bench.open()
    with pytest.raises(CodebookError, match="33 clusters do not fit"):
        backend.set_codebook(codebook(33))
    other = dataclasses.replace(SPEC, latent_dim=6)
    with pytest.raises(CodebookError, match="6 latent channels, the engine 4"):
        backend.set_codebook(codebook(spec=other))
    backend.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda backend: backend.submit(frames(1)[0]),
        lambda backend: backend.collect(object()),
        lambda backend: backend.set_codebook(codebook(2)),
        lambda backend: backend.reset(),
        lambda backend: backend.memory(),
    ],
    ids=["submit", "collect", "set_codebook", "reset", "memory"],
)
def test_use_after_close_is_refused(use: Callable[[Any], object], bench: Bench) -> None:
    backend = bench.open()
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        use(backend)


def test_closing_with_frames_under_way_waits_for_them_and_frees_everything(bench: Bench) -> None:
    backend = bench.open()
    for image in frames(2):
        backend.submit(image)
    backend.close()
    assert bench.gpu.leaks() == {}
    assert not bench.gpu.failed


# Engines that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ("Runtime", "cannot use the GPU .CUDA initialization failure with error: 35"),
        ("deserialize_cuda_engine", "cannot read the engine: Serialization assertion"),
        ("create_execution_context", "cannot make room"),
        ("set_tensor_address", "does not take the address of weights"),
    ],
)
def test_what_tensorrt_refuses_when_opening_is_one_error_and_leaks_nothing(
    refuse: str, message: str, bench: Bench
) -> None:
    bench.use(refuse=refuse)
    with pytest.raises(EngineError, match=message):
        bench.open()
    assert bench.gpu.leaks() == {}


@pytest.mark.parametrize("plan", [b"", b"rubbish", PLAN[:3]], ids=["empty", "rubbish", "cut"])
def test_a_plan_that_is_none_is_refused_with_tensorrts_reason(plan: bytes, bench: Bench) -> None:
    with pytest.raises(EngineError, match="Serialization assertion"):
        bench.open(plan=plan)
    assert bench.gpu.leaks() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 64}, r"the engine's frame is .* \[1, 32, 64, 3\]"),
        ({"latent_dim": 6}, r"the engine's weights is .* \[32, 12\]"),
        ({"output_stride": 4}, r"the engine's labels is .* \[1, 8, 12\]"),
    ],
)
def test_the_engine_of_another_model_is_refused_before_any_frame(
    change: dict[str, int], message: str, bench: Bench
) -> None:
    """A sidecar that lies about everything still does not make us read foreign memory."""
    spec = dataclasses.replace(SPEC, **change)
    with pytest.raises(EngineError, match=message):
        bench.open(plan=make_plan(deployed(spec), spec, CLUSTERS))
    assert bench.gpu.leaks() == {}


def test_an_engine_for_another_number_of_clusters_is_refused(bench: Bench) -> None:
    with pytest.raises(EngineError, match="the engine's weights"):
        bench.open(plan=make_plan(GRAPH, SPEC, 64))


# A device that fails ---------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["mem_alloc", "pagelocked_empty", "Stream", "Event", "memset_d8"])
@pytest.mark.parametrize("nth", [0, 1])
def test_a_device_that_fails_while_opening_gives_one_error(
    call: str, nth: int, bench: Bench
) -> None:
    bench.gpu.fail_at = (call, nth)
    with pytest.raises(EngineError, match=f"the GPU failed while opening the engine .{call}"):
        bench.open()
    assert bench.gpu.retained == 0
    assert bench.gpu.stack == []


@pytest.mark.parametrize(
    "call",
    [
        "memcpy_htod_async",
        "event.record",
        "wait_for_event",
        "memcpy_dtoh_async",
        "event.synchronize",
        "time_till",
    ],
)
def test_a_device_error_in_the_middle_of_a_run_is_one_error_and_stays_one(
    call: str, bench: Bench
) -> None:
    backend = bench.open()
    image = frames(1)[0]
    backend.collect(backend.submit(image))
    bench.gpu.fail_at = (call, 0)
    with pytest.raises(EngineError, match=f"the GPU failed while .* .{call} failed") as first:
        backend.collect(backend.submit(image))
    with pytest.raises(EngineError) as second:
        backend.submit(image)
    assert second.value.problem == first.value.problem
    backend.close()
    assert bench.gpu.retained == 0
    assert bench.gpu.stack == []


def test_an_execution_that_tensorrt_refuses_is_an_error(bench: Bench) -> None:
    backend = bench.open()
    backend._context = None
    bench.use(refuse="execute_async_v3")
    other = bench.open()
    with pytest.raises(EngineError, match="did not start the engine"):
        other.submit(frames(1)[0])
    other.close()


def test_no_gpu_is_one_clear_error(bench: Bench) -> None:
    bench.gpu.fail_at = ("init", 0)
    with pytest.raises(EngineError, match="CUDA does not start"):
        bench.open()
    assert bench.gpu.leaks() == {}


def test_a_missing_package_is_named_with_what_to_install(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match="TensorRT is not importable"):
        bench.open()
    bench.use()
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(MissingDependency, match=r"pycuda is not importable.*nvcc on PATH"):
        bench.open()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("8.6.2.3", "TensorRT 8.6.2.3 .JetPack 6.0 or older.*Move to JetPack 6.1"),
        ("8.5.2", "has no strongly typed networks"),
        ("10.0.1", "older than 10.3"),
        ("garbage", "not a version"),
    ],
)
def test_a_tensorrt_that_is_too_old_is_refused(version: str, message: str, bench: Bench) -> None:
    bench.use(version=version)
    with pytest.raises(EngineError, match=message):
        bench.open()
    assert bench.gpu.leaks() == {}


@pytest.mark.parametrize("version", ["10.3.0", "10.16.2.3", "11.4.1.2", "12.0.0"])
def test_versions_from_10_3_on_are_accepted(version: str, bench: Bench) -> None:
    bench.use(version=version)
    bench.open().close()


# From the cache --------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeManifest:
    """The part of a manifest that opening an engine reads."""

    spec: GraphSpec
    clusters: int
    files: dict[str, Any]


def test_an_engine_comes_from_the_cache_and_a_missing_one_names_the_command(
    bench: Bench, tmp_path: Path
) -> None:
    info = type("Info", (), {"sha256": "ab" * 32})
    entry = type("Entry", (), {"graph": "graphs/fp16.onnx", "precision": "fp16"})
    bundle = type(
        "Bundle",
        (),
        {
            "manifest": FakeManifest(SPEC, 5, {"graphs/fp16.onnx": info}),
            "codebook": codebook(5),
            "path": Path("my street.aeseg"),
        },
    )
    with pytest.raises(EngineNotBuilt) as caught:
        production.open_backend(bundle, entry, cache_dir=tmp_path)  # type: ignore[arg-type]
    wanted = f"'my street.aeseg' --precision fp16 --imgsz {SPEC.width}x{SPEC.height} --cache-dir"
    assert f"aeseg build {wanted}" in caught.value.fix

    key = production.engine_key("ab" * 32, "fp16", SPEC, padded_clusters(5))
    assert (key.gpu, key.architecture, key.multiprocessors) == ("Double", "sm_87", 8)
    cache = EngineCache(tmp_path)
    with cache.locked(key):
        cache.store(key, PLAN)
    drive(production.open_backend(bundle, entry, cache_dir=tmp_path))  # type: ignore[arg-type]
    assert bench.gpu.leaks() == {}

    bench.use(version="10.3.0")
    with pytest.raises(
        EngineNotBuilt,
        match=r"made for TensorRT 10\.16\.2\.3 and sm_87, this is TensorRT 10\.3\.0 and sm_87",
    ):
        production.open_backend(bundle, entry, cache_dir=tmp_path)  # type: ignore[arg-type]


# Planted faults --------------------------------------------------------------------------------

BACKEND = Path(production.__file__)
CUDA = BACKEND.with_name("cuda.py")

FAULTS: dict[str, tuple[str, str]] = {
    "labels are read before they have arrived": ("slot.finished.synchronize()", "pass"),
    "latents are read before they have arrived": ("self._copies.synchronize()", "pass"),
    "the engine does not wait for its frame": (
        "self._compute.wait_for_event(slot.arrived)",
        "pass",
    ),
    "the engine waits for an event that was not recorded": (
        "slot.arrived.record(self._copies)",
        "slot.arrived = self._device.event()",
    ),
    "labels are copied on the copy stream, before they are computed": (
        "self._device.copy_out(slot.host[LABELS], slot.device[LABELS], self._compute)",
        "self._device.copy_out(slot.host[LABELS], slot.device[LABELS], self._copies)",
    ),
    "both frames under way share their memory": (
        "slot = self._slots[self._submitted % DEPTH]",
        "slot = self._slots[0]",
    ),
    "an address is not set": (
        "self._address(PREVIOUS, memory.latents[1 - memory.turn])",
        "pass",
    ),
    "the latents read are those being written": (
        "self._address(PREVIOUS, memory.latents[1 - memory.turn])",
        "self._address(PREVIOUS, memory.latents[memory.turn])",
    ),
    "the latents collected are those of the frame before": (
        "self._memories[job.stream].latents[job.turn]",
        "self._memories[job.stream].latents[1 - job.turn]",
    ),
    "cameras are mixed with one another": (
        "memory = self._memories[stream]",
        "memory = self._memories[0]",
    ),
    "a refused execution is ignored": (
        "if not self._context.execute_async_v3(self._compute.handle):",
        "if self._context.execute_async_v3(0 * self._compute.handle) is None:",
    ),
    "the first frame is mixed with nothing": ("0.0 if memory.blank else mix", "mix"),
    "reset does not reset": ("memory.blank or stream in (None, key)", "memory.blank"),
    "one camera's reset is all cameras'": ("memory.blank or stream in (None, key)", "True"),
    "the codebook is not padded": (
        "padded = codebook.padded(self._clusters)",
        "padded = codebook.padded(self._clusters); object.__setattr__("
        "padded, 'bias', np.where(padded.bias < -1e9, np.float32(9), padded.bias))",
    ),
    "a changed codebook is not uploaded": (
        "            for name in changed:",
        "            for name in ():",
    ),
    "the codebook is uploaded past the frame under way": (
        "self._device.copy_in(buffer, host, self._compute)",
        "self._device.copy_in(buffer, host, self._copies); self._copies.synchronize()",
    ),
    "results are windows into memory that is used again": (
        "labels=slot.host[LABELS][0].copy()",
        "labels=slot.host[LABELS][0]",
    ),
    "the frame is sent from the caller's own memory": (
        "self._device.copy_in(slot.device[FRAME], slot.host[FRAME], self._copies)",
        "self._device.copy_in(slot.device[FRAME], frame, self._copies)",
    ),
    "memory is freed while work is queued": (
        "self._device.drain()\n        self._context = None",
        "self._context = None",
    ),
    "memory is not freed": ("self._device.release()", "pass"),
    "the context is not let go": ("                self._device.close()", "                pass"),
    "the context is not pushed": ("with self._device.current(doing):", "if True:"),
}

CUDA_FAULTS: dict[str, tuple[str, str]] = {
    "the context is pushed and not popped": (
        "                self._context.pop()",
        "                pass",
    ),
    "the context is not pushed": ("            self._context.push()", "            pass"),
    "memory is not cleared": ("self._driver.memset_d8(buffer.address, 0, nbytes)", "pass"),
    "pinned memory is not freed": ("self._attempt(array.base.free)", "pass"),
    "device memory is not freed": ("self._attempt(buffer.allocation.free)", "pass"),
    "the context is not detached": ("            context.detach()\n", ""),
    "the context is detached where it is not current": (
        "            context.push()\n            context.detach()",
        "            context.detach()\n            context.push()",
    ),
    "the context stays on CUDA's stack": (
        'ctypes.CDLL("libcuda.so.1").cuCtxPopCurrent_v2(ctypes.byref(left))',
        "pass",
    ),
    "host memory is not pinned": (
        "self._driver.pagelocked_empty(shape, np.dtype(dtype))",
        "np.empty(shape, np.dtype(dtype))",
    ),
}


def broken(path: Path, fault: tuple[str, str], patch: pytest.MonkeyPatch) -> Any:
    """The backend with one line of one of its files changed."""
    old, new = fault
    source = path.read_text()
    assert source.count(old) == 1, f"the line to break occurs {source.count(old)} times: {old}"
    module = ModuleType(f"aeseg_edge.backends.{path.stem}")
    module.__file__ = str(path)
    patch.setitem(sys.modules, module.__name__, module)
    exec(compile(source.replace(old, new), str(path), "exec"), module.__dict__)
    if path == BACKEND:
        return module
    return broken(BACKEND, ("DEPTH = 2\n", "DEPTH = 1 + 1\n"), patch)


def survives(module: Any, patch: pytest.MonkeyPatch) -> bool:
    """Whether the checks of this file pass on both schedules."""
    for schedule in ("lazy", "greedy"):
        bench = make_bench(schedule, patch)
        try:
            drive(bench.open(module=module))
            backend = bench.open(module=module)
            if bench.gpu.stack:
                return False
            for image in frames(2):
                backend.submit(image)
            backend.close()
        except (AssertionError, AesegError, AttributeError, cuda.Error, KeyError):
            return False
        if bench.gpu.leaks() or bench.gpu.failed:
            return False
    return True


def test_the_unbroken_backend_survives_the_checks_for_planted_faults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert survives(broken(BACKEND, ("DEPTH = 2\n", "DEPTH = 1 + 1\n"), monkeypatch), monkeypatch)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_of_the_backend_is_caught(
    fault: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not survives(broken(BACKEND, fault, monkeypatch), monkeypatch)


@pytest.mark.parametrize("fault", CUDA_FAULTS.values(), ids=CUDA_FAULTS.keys())
def test_a_planted_fault_of_the_device_file_is_caught(
    fault: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not survives(broken(CUDA, fault, monkeypatch), monkeypatch)


# The stand-in itself ---------------------------------------------------------------------------


def test_the_stand_in_has_no_name_that_nvidias_bindings_lack() -> None:
    module = make_module(cuda.Gpu())
    for names in load_records().values():
        for name, value in vars(module).items():
            if name.startswith("__"):
                continue
            entry = names[name]
            for member in vars(value):
                if not member.startswith("_"):
                    assert member in entry.get("members", entry.get("values", {})), member
