"""Does this device compute what the bundle says? Build, compare, run long, report.

This is the check for a real GPU: everything else in this project is tested without one.
Each engine's labels are compared, frame by frame, with the fp32 graph on ONNX Runtime; so
the agreement stated here is the device's own, where the bundle's was emulated on a CPU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.geometry import check_frame, fit_frame
from aeseg_edge.bundle.precisions import ENGINES, REFERENCE, TENSORRT
from aeseg_edge.errors import AesegError, UsageError
from aeseg_edge.measure.machine import environment
from aeseg_edge.support.progress import Progress

_log = logging.getLogger(__name__)

SOAK_FRAMES = 1000
MIN_AGREEMENT = 0.95
LEAK = 8 << 20
"""Bytes that may go missing in a run: on a Jetson other programs share the memory."""

Build = Callable[[str], float | None]
"""Makes sure that the engine of a precision is in the cache; seconds taken, None if none."""


@dataclass(frozen=True)
class EngineResult:
    """How one engine did.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        fault: Why it could not be built or run; "" where it could. The rest is 0 then.
        build_seconds: How long building took; None where the cache had it.
        agreement: Share of pixels with the same label as fp32 on ONNX Runtime, 0 to 1.
        worst: The same of the worst frame.
        stated: What the bundle says, from emulation; None where it says nothing.
        lost: Bytes of device memory that 1,000 frames cost.
        milliseconds: p50 and p95 of "copy_in", "inference" and "copy_out", and of the whole
            call ("total").
    """

    precision: str
    fault: str = ""
    build_seconds: float | None = None
    agreement: float = 0.0
    worst: float = 0.0
    stated: float | None = None
    lost: int = 0
    milliseconds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def passed(self, min_agreement: float) -> bool:
        """Whether it ran, agrees enough and lost no memory."""
        return not self.fault and self.agreement >= min_agreement and self.lost <= LEAK


@dataclass(frozen=True)
class SelfTest:
    """The whole result: one of each precision, over so many frames and so many for memory."""

    results: tuple[EngineResult, ...]
    frames: int
    soak: int
    min_agreement: float
    machine: dict[str, Any]
    bundle: str

    @property
    def passed(self) -> bool:
        """Whether every engine passed."""
        return all(result.passed(self.min_agreement) for result in self.results)

    def report(self) -> str:
        """One block of text to paste into a bug report."""
        machine = self.machine
        jetson = machine["jetson"]
        packages = ", ".join(f"{n} {v}" for n, v in machine["packages"].items() if v)
        lines = [
            "aeseg selftest",
            f"  bundle     {self.bundle}",
            f"  machine    {jetson['model'] if jetson else machine['cpu']['model']}",
            f"  system     {machine['os']['name']}, kernel {machine['os']['kernel']}, "
            f"Python {machine['python']}",
        ]
        if jetson:
            lines.append(
                f"  Jetson     L4T {jetson['l4t']}, JetPack {jetson['jetpack']}, "
                f"power mode {jetson['power_mode']}"
            )
        lines += [
            f"  packages   {packages}",
            f"  TensorRT   {machine['tensorrt']}",
            f"  compared   {self.frames} frames with fp32 on ONNX Runtime; "
            f"{self.soak} frames for memory",
        ]
        for result in self.results:
            verdict = "passed" if result.passed(self.min_agreement) else "FAILED"
            if result.fault:
                lines.append(f"  {result.precision}  {verdict}: {result.fault}")
                continue
            built = (
                "engine was there"
                if result.build_seconds is None
                else f"built in {result.build_seconds:.0f} s"
            )
            stated = "" if result.stated is None else f", bundle says {100 * result.stated:.2f} %"
            lines.append(
                f"  {result.precision}  {verdict}: {100 * result.agreement:.2f} % of labels equal, "
                f"worst frame {100 * result.worst:.2f} %{stated}; {built}; "
                f"{result.lost / (1 << 20):+.1f} MiB lost"
            )
            times = ", ".join(
                f"{name} {p50:.2f}/{p95:.2f}" for name, (p50, p95) in result.milliseconds.items()
            )
            lines.append(f"        ms p50/p95: {times}")
        lines.append(f"  {'PASSED' if self.passed else 'FAILED'}")
        return "\n".join(lines)


def run_selftest(
    bundle: Bundle,
    frames: Sequence[NDArray[np.uint8]],
    build: Build,
    *,
    precisions: Sequence[str] = ENGINES,
    cache_dir: Path | None = None,
    soak: int = SOAK_FRAMES,
    min_agreement: float = MIN_AGREEMENT,
    progress: Progress | None = None,
) -> SelfTest:
    """Build and check the engines of a bundle on this device.

    Args:
        bundle: What to check.
        frames: uint8 [H, W, C] each, any size, BGR; real ones, consecutive or not.
        build: Builds an engine into the cache if it is not there.
        precisions: Which engines.
        cache_dir: Where engines are kept; the user's cache folder when None.
        soak: Frames to run for the memory check, at least 1.
        min_agreement: Share of equal labels below which an engine fails.
        progress: Told a stage and the fraction of it.

    Returns:
        The result; an engine that fails is in it and is not raised.

    Raises:
        UsageError: There are no frames.
        FrameError: A frame has the wrong type or number of channels.
        BundleError: The bundle has no fp32 graph for ONNX Runtime.
        MissingDependency: onnxruntime is not installed.
    """
    from aeseg_edge.backends.onnxruntime import OnnxRuntimeBackend

    if not frames or soak < 1:
        raise UsageError("there are no frames to compare", fix="Give a video or images.")
    tell = progress or (lambda stage, fraction: None)
    manifest = bundle.manifest
    images = [
        fit_frame(check_frame(f, manifest.geometry.channels), manifest.geometry) for f in frames
    ]
    graph = bundle.graph(*REFERENCE)
    reference = OnnxRuntimeBackend(graph, manifest.spec, bundle.codebook)
    wanted = []
    for number, image in enumerate(images):
        wanted.append(reference.collect(reference.submit(image)).labels)
        tell("reference", (number + 1) / len(images))
    reference.close()
    results = []
    for precision in precisions:
        try:
            result = _check(bundle, precision, images, wanted, build, cache_dir, soak, tell)
        except AesegError as error:
            _log.debug("%s failed", precision, exc_info=True)
            result = EngineResult(precision, fault=str(error))
        results.append(result)
    geometry = manifest.geometry
    name = bundle.path.name if bundle.path is not None else "a bundle"
    return SelfTest(
        results=tuple(results),
        frames=len(images),
        soak=soak,
        min_agreement=min_agreement,
        machine=environment(),
        bundle=f"{name}: {geometry.width}x{geometry.height}, {manifest.clusters} clusters, "
        f"{manifest.latent_dim} latent channels",
    )


def _check(
    bundle: Bundle,
    precision: str,
    images: Sequence[NDArray[np.uint8]],
    wanted: Sequence[NDArray[np.uint8]],
    build: Build,
    cache_dir: Path | None,
    soak: int,
    tell: Progress,
) -> EngineResult:
    from aeseg_edge.backends.tensorrt import open_backend

    entry = bundle.manifest.entry(precision, TENSORRT)
    seconds = build(precision)
    backend = open_backend(bundle, entry, cache_dir=cache_dir)
    try:
        equal = []
        for number, (image, labels) in enumerate(zip(images, wanted, strict=True)):
            found = backend.collect(backend.submit(image)).labels
            equal.append(float((found == labels).mean()))
            tell(f"{precision}: comparing", (number + 1) / len(images))
        before, _ = backend.memory()
        times: dict[str, list[float]] = {}
        for number in range(soak):
            started = time.perf_counter()
            outputs = backend.collect(backend.submit(images[number % len(images)]))
            total = (time.perf_counter() - started) * 1e3
            for name, value in {**outputs.milliseconds, "total": total}.items():
                times.setdefault(name, []).append(value)
            tell(f"{precision}: running", (number + 1) / soak)
        after, _ = backend.memory()
    finally:
        backend.close()
    stated = (entry.agreement or {}).get("labels_equal")
    return EngineResult(
        precision,
        build_seconds=seconds,
        agreement=float(np.mean(equal)),
        worst=min(equal),
        stated=float(stated) if isinstance(stated, (int, float)) else None,
        lost=before - after,
        milliseconds={
            name: (float(np.percentile(values, 50)), float(np.percentile(values, 95)))
            for name, values in times.items()
        },
    )
