"""From a bundle to engines in the cache: what `aeseg build` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from aeseg_edge.backends.cache import EngineCache, EngineKey, padded_clusters
from aeseg_edge.backends.tensorrt import engine_key
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.bundle.precisions import ENGINES, TENSORRT
from aeseg_edge.errors import EngineNotBuilt
from aeseg_edge.export.engines.child import build_engine
from aeseg_edge.export.engines.compile import BuildOptions
from aeseg_edge.export.engines.log import ConvolutionReport, explain
from aeseg_edge.support.progress import Progress


@dataclass(frozen=True)
class BuiltEngine:
    """One engine that is in the cache now.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        path: The plan.
        size: Its bytes.
        built: False where the cache had it already.
        reason: Why it was built: none was there, or what differed.
        seconds: How long building took; None where it was not built now.
        kernels: Number of kernels it runs; None where the log did not tell.
        convolutions: Where each convolution went and in which precision it runs.
    """

    precision: str
    path: Path
    size: int
    built: bool
    reason: str
    seconds: float | None
    kernels: int | None
    convolutions: tuple[ConvolutionReport, ...]


def build_bundle(
    bundle: Bundle,
    precisions: Sequence[str] = ENGINES,
    *,
    cache_dir: str | Path | None = None,
    size: tuple[int, int] | None = None,
    options: BuildOptions | None = None,
    force: bool = False,
    device: int = 0,
    progress: Progress | None = None,
    waiting: Callable[[], None] | None = None,
    make_key: Callable[[str, str, GraphSpec, int, int], EngineKey] = engine_key,
) -> list[BuiltEngine]:
    """Build the engines of a bundle that the cache does not have yet: one result a precision.

    Args:
        bundle: The bundle; its codebook decides K_max.
        precisions: Which of its graphs for TensorRT.
        cache_dir: Where engines are kept; the user's cache folder when None.
        size: Width and height to build for; the bundle's own when None.
        options: How to build.
        force: Build even what the cache has.
        device: CUDA's number of the GPU.
        progress: Told "fp16: stage" and the fraction done of that engine.
        waiting: Called if another process is building the same engine.
        make_key: Asks GPU and TensorRT what the engine depends on.

    Raises:
        AesegError: The size does not fit, the bundle has no such graph, TensorRT or pycuda is
            not installed, or the engine cannot be built or stored.
    """
    spec = (bundle if size is None else bundle.with_size(*size)).manifest.spec
    cache = EngineCache(cache_dir)
    results = []
    for precision in precisions:
        entry = bundle.manifest.entry(precision, TENSORRT)
        clusters = padded_clusters(bundle.manifest.clusters)
        key = make_key(bundle.manifest.files[entry.graph].sha256, precision, spec, clusters, device)
        reason = "a new one was asked for" if force else _missing(cache, key)
        if reason:
            with cache.locked(key, waiting=waiting):
                # Another process may have built it while this one waited.
                if force or _missing(cache, key):
                    graph = bundle.graph(precision, TENSORRT)
                    results.append(_build(cache, key, graph, spec, options, progress, reason))
                    continue
        results.append(_stored(cache, key))
    return results


def _missing(cache: EngineCache, key: EngineKey) -> str:
    """Why the cache has no usable engine for the key, or "" where it has one."""
    try:
        cache.load(key)
    except EngineNotBuilt as error:
        return error.problem
    return ""


def _build(
    cache: EngineCache,
    key: EngineKey,
    graph: bytes,
    spec: GraphSpec,
    options: BuildOptions | None,
    progress: Progress | None,
    reason: str,
) -> BuiltEngine:

    def tell(stage: str, fraction: float) -> None:
        if progress is not None:
            progress(f"{key.precision}: {stage}", fraction)

    started = time.monotonic()
    compiled, timings = build_engine(
        graph, spec, key.clusters, options, progress=tell, timing_cache=cache.timings(key)
    )
    seconds = time.monotonic() - started
    reports = explain(compiled.convolutions, compiled.kernels)
    notes = {
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "kernels": len(compiled.kernels) or None,
        "convolutions": [asdict(report) for report in reports],
    }
    path = cache.store(key, compiled.plan, notes=notes)
    cache.store_timings(key, timings)
    return BuiltEngine(
        precision=key.precision,
        path=path,
        size=len(compiled.plan),
        built=True,
        reason=reason,
        seconds=seconds,
        kernels=len(compiled.kernels) or None,
        convolutions=reports,
    )


def _stored(cache: EngineCache, key: EngineKey) -> BuiltEngine:
    notes = cache.notes(key)
    reports = tuple(
        ConvolutionReport(
            node=str(item["node"]),
            precision=str(item["precision"]),
            kernel=str(item["kernel"]),
            fused=tuple(item["fused"]),
        )
        for item in notes.get("convolutions", [])
    )
    path = cache.path(key)
    return BuiltEngine(
        precision=key.precision,
        path=path,
        size=path.stat().st_size,
        built=False,
        reason="",
        seconds=None,
        kernels=notes.get("kernels"),
        convolutions=reports,
    )
