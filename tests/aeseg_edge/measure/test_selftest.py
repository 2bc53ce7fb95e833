"""The self-test finds an engine that computes other labels, fails or loses memory."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("cv2")

from aeseg_edge.backends.cache import EngineCache
from aeseg_edge.backends.tensorrt import engine_key
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.manifest import Entry, Manifest
from aeseg_edge.errors import EngineError, FrameError, UsageError
from aeseg_edge.measure.selftest import LEAK, run_selftest
from tests.doubles import cuda
from tests.doubles.graph import SPEC, deployed
from tests.doubles.tensorrt import make_module, make_plan

GRAPH = deployed()
CENTRES = np.random.default_rng(3).normal(0, 0.3, (6, SPEC.latent_dim)).astype(np.float32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> cuda.Gpu:
    gpu = cuda.Gpu()
    cuda.install(gpu, monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", make_module(gpu))
    return gpu


@pytest.fixture
def bundle() -> Bundle:
    """A bundle whose graphs for TensorRT are the fp32 graph."""
    agreement = {"labels_equal": 0.9975}
    manifest = Manifest(
        geometry=Geometry(SPEC.width, SPEC.height),
        stride=SPEC.stride,
        output_stride=SPEC.output_stride,
        multiple=4,
        latent_dim=SPEC.latent_dim,
        clusters=6,
        classes=(),
        method="kmeans",
        entries=(
            Entry("fp32", "onnxruntime", "graphs/fp32.onnx"),
            Entry("fp16", "tensorrt", "graphs/fp16.onnx", agreement=agreement),
            Entry("int8", "tensorrt", "graphs/int8.onnx"),
        ),
    )
    graphs = {f"graphs/{name}.onnx": GRAPH for name in ("fp32", "fp16", "int8")}
    # Equal graphs would be equal engines to the cache; real ones differ.
    graphs["graphs/int8.onnx"] = deployed(seed=1)
    return Bundle.build(manifest, Codebook.from_centres(CENTRES), graphs)


def frames(count: int = 3) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(1).integers(0, 256, (count, 50, 70, 3), np.uint8))


def builder(bundle: Bundle, folder: Path, **graphs: bytes) -> Callable[[str], float | None]:
    """Stores the stand-in's plans instead of building."""

    def build(precision: str) -> float | None:
        entry = bundle.manifest.entry(precision, "tensorrt")
        key = engine_key(bundle.manifest.files[entry.graph].sha256, precision, SPEC, 32)
        cache = EngineCache(folder)
        with cache.locked(key):
            cache.store(key, make_plan(graphs.get(precision, GRAPH), SPEC, 32))
        return 12.5

    return build


def test_engines_that_compute_the_same_pass_and_say_so(
    gpu: cuda.Gpu, bundle: Bundle, tmp_path: Path
) -> None:
    told: list[str] = []
    result = run_selftest(
        bundle,
        frames(),
        builder(bundle, tmp_path),
        cache_dir=tmp_path,
        soak=5,
        progress=lambda stage, fraction: told.append(f"{stage} {fraction:.1f}"),
    )
    assert result.passed
    for engine in result.results:
        assert (engine.agreement, engine.worst, engine.lost, engine.fault) == (1.0, 1.0, 0, "")
        assert set(engine.milliseconds) == {"copy_in", "inference", "copy_out", "total"}
    assert [engine.stated for engine in result.results] == [0.9975, None]
    report = result.report()
    assert "fp16  passed: 100.00 % of labels equal" in report
    assert "bundle says 99.75 %" in report
    assert report.endswith("PASSED")
    assert {"reference 1.0", "fp16: comparing 1.0", "int8: running 1.0"} <= set(told)
    assert gpu.leaks() == {}


def test_an_engine_that_computes_other_labels_fails_and_the_other_one_still_runs(
    gpu: cuda.Gpu, bundle: Bundle, tmp_path: Path
) -> None:
    build = builder(bundle, tmp_path, fp16=deployed(seed=8))
    result = run_selftest(bundle, frames(), build, cache_dir=tmp_path, soak=2)
    wrong, right = result.results
    assert wrong.agreement < 0.9
    assert not wrong.passed(0.95)
    assert right.passed(0.95)
    assert not result.passed
    assert "fp16  FAILED" in result.report()
    assert result.report().endswith("FAILED")


def test_an_engine_that_cannot_be_built_is_told_with_the_reason(
    gpu: cuda.Gpu, bundle: Bundle, tmp_path: Path
) -> None:
    store = builder(bundle, tmp_path)

    def build(precision: str) -> float | None:
        if precision == "int8":
            raise EngineError("memory ran out", fix="Add swap.")
        return store(precision)

    result = run_selftest(bundle, frames(), build, cache_dir=tmp_path, soak=2)
    assert [engine.fault for engine in result.results] == ["", "memory ran out. Add swap."]
    assert not result.passed
    assert "int8  FAILED: memory ran out" in result.report()


def test_a_device_that_fails_in_the_long_run_is_a_result_and_is_closed(
    gpu: cuda.Gpu, bundle: Bundle, tmp_path: Path
) -> None:
    gpu.fail_at = ("event.synchronize", 20)
    result = run_selftest(bundle, frames(), builder(bundle, tmp_path), cache_dir=tmp_path, soak=50)
    assert "the GPU failed while waiting for a frame" in result.results[0].fault
    assert gpu.retained == 0


def test_lost_device_memory_is_a_failure(
    gpu: cuda.Gpu, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def shrinking() -> tuple[int, int]:
        asked.append(1)
        return (1 << 30) - len(asked) * 2 * LEAK, 1 << 30

    monkeypatch.setattr(gpu, "mem_get_info", shrinking)
    result = run_selftest(bundle, frames(), builder(bundle, tmp_path), cache_dir=tmp_path, soak=2)
    assert [engine.lost for engine in result.results] == [2 * LEAK, 2 * LEAK]
    assert not result.passed
    assert "+16.0 MiB lost" in result.report()


def test_a_test_without_frames_or_with_wrong_ones_is_refused(
    bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no frames"):
        run_selftest(bundle, [], builder(bundle, tmp_path))
    with pytest.raises(FrameError):
        run_selftest(bundle, [np.zeros((4, 4), np.uint8)], builder(bundle, tmp_path))


def test_the_report_names_a_jetson_with_its_power_mode(
    gpu: cuda.Gpu, bundle: Bundle, tmp_path: Path
) -> None:
    result = run_selftest(bundle, frames(1), builder(bundle, tmp_path), cache_dir=tmp_path, soak=1)
    jetson = {
        "model": "NVIDIA Jetson Orin Nano",
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "power_mode": "MAXN_SUPER",
    }
    report = dataclasses.replace(result, machine={**result.machine, "jetson": jetson}).report()
    assert "L4T 36.4.3, JetPack 6.2, power mode MAXN_SUPER" in report
    assert "NVIDIA Jetson Orin Nano" in report
