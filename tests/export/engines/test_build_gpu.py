"""On a real GPU: build, run and compare. One command runs these: `make test-gpu`.

Written without a GPU at hand and never run on one so far.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from aeseg_edge.backends.cache import EngineCache
from aeseg_edge.backends.onnxruntime import OnnxRuntimeBackend
from aeseg_edge.backends.tensorrt import TensorRTBackend, engine_key
from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.calibration.graphs.deployed import attach_head, to_half
from aeseg_edge.export.engines.child import build_engine
from tests.doubles.graph import SPEC, codebook, deployed, encoder

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

CLUSTERS = 32
WANT = frozenset({"latents", "margin"})


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the engine, through the cache as `aeseg build` does it."""
    graph = deployed()
    if request.param == "fp16":
        graph = attach_head(to_half(encoder()), SPEC).SerializeToString()
    compiled, _ = build_engine(graph, SPEC, CLUSTERS)
    folder: Path = tmp_path_factory.mktemp(request.param)
    key = engine_key("ab" * 32, "fp16", SPEC, CLUSTERS)
    cache = EngineCache(folder)
    with cache.locked(key):
        cache.store(key, compiled.plan)
    return folder


def open_backend(folder: Path, spec: GraphSpec = SPEC) -> TensorRTBackend:
    plan = EngineCache(folder).load(engine_key("ab" * 32, "fp16", spec, CLUSTERS))
    return TensorRTBackend(plan, spec, CLUSTERS, codebook())


def frames(count: int) -> list[NDArray[np.uint8]]:
    shape = (count, SPEC.height, SPEC.width, SPEC.channels)
    return list(np.random.default_rng(1).integers(0, 256, shape, np.uint8))


def test_the_gpu_gives_what_onnx_runtime_gives(built: Path) -> None:
    backend = open_backend(built)
    reference = OnnxRuntimeBackend(deployed(), SPEC, codebook())
    equal = []
    for image in frames(20):
        found = backend.collect(backend.submit(image, mix=0.5), WANT)
        wanted = reference.collect(reference.submit(image, mix=0.5), WANT)
        equal.append(float((found.labels == wanted.labels).mean()))
        assert found.latents is not None
        assert wanted.latents is not None
        np.testing.assert_allclose(found.latents, wanted.latents, atol=0.05)
    assert np.mean(equal) > 0.98, equal
    backend.close()


def test_frames_submitted_ahead_give_what_frames_one_by_one_give(built: Path) -> None:
    images = frames(10)
    backend = open_backend(built)
    alone = [backend.collect(backend.submit(image)).labels for image in images]
    ahead = []
    ticket = backend.submit(images[0])
    for image in images[1:]:
        following = backend.submit(image)
        ahead.append(backend.collect(ticket).labels)
        ticket = following
    ahead.append(backend.collect(ticket).labels)
    np.testing.assert_array_equal(ahead, alone)
    backend.close()


def test_a_thousand_frames_and_ten_openings_lose_no_device_memory(built: Path) -> None:
    (image,) = frames(1)
    backend = open_backend(built)
    backend.collect(backend.submit(image), WANT)
    before, _ = backend.memory()
    for _ in range(1000):
        backend.collect(backend.submit(image))
    after, _ = backend.memory()
    assert before - after < 8 << 20
    backend.close()
    for _ in range(10):
        again = open_backend(built)
        again.collect(again.submit(image))
        last, _ = again.memory()
        again.close()
    assert before - last < 8 << 20
