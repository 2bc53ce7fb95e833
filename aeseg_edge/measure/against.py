"""A bundle and other models in turn on one machine: A B A B, the same threads for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.backends.session import inputs_of, open_session, synthesise
from aeseg_edge.bundle.archive import SUFFIX, Bundle
from aeseg_edge.bundle.geometry import fit_frame
from aeseg_edge.bundle.precisions import ONNXRUNTIME
from aeseg_edge.errors import BackendError, UsageError
from aeseg_edge.measure.bench import Comparison, alternate, hold, sizes_of
from aeseg_edge.measure.machine import environment
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.support.require import import_cv2, optional

Candidate = Callable[[NDArray[np.uint8]], object]
"""Takes a frame of any size; what it returns is left alone."""

WHOLE = "whole path"
INFERENCE = "inference"


@dataclass(frozen=True)
class SideBySide:
    """What was timed in turn, each candidate with so many threads.

    Attributes:
        first: The bundle's candidates, whole path and inference.
        others: The others' names.
        comparison: Times of all, round by round.
        details: By other: what was made up for it, or what it consists of.
        frame_sizes: (width, height) of the frames, each once.
        environment: What machine.environment said before the run.
    """

    precision: str
    threads: int
    first: tuple[str, ...]
    others: tuple[str, ...]
    comparison: Comparison
    details: Mapping[str, str]
    frame_sizes: tuple[tuple[int, int], ...]
    source: str
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return times, ratios and the machine as JSON types."""
        return {
            "precision": self.precision,
            "threads": self.threads,
            "bundle": list(self.first),
            "others": list(self.others),
            "details": dict(self.details),
            "frame_sizes": [f"{width}x{height}" for width, height in self.frame_sizes],
            "source": self.source,
            **self.comparison.to_json(),
            "environment": dict(self.environment),
        }


def side_by_side(
    bundle: Bundle,
    models: Sequence[Path] = (),
    *,
    more: Mapping[str, Candidate] | None = None,
    details: Mapping[str, str] | None = None,
    precision: str = "auto",
    threads: int = 1,
    rounds: int = 15,
    frames: int = 20,
    source_frames: Sequence[NDArray[np.uint8]] | None = None,
    source: str | None = None,
) -> SideBySide:
    """Time a bundle and others in turn, through ONNX Runtime.

    The bundle is timed twice: whole (BGR frame in, full-size label map out) and inference
    alone (a frame of the graph's size in, the graph's own labels out). Another model is timed
    as inference alone, with inputs that are ready: what it takes to make them, and to make a
    label map of what it gives, is not counted.

    Args:
        bundle: Opened; at the size it is to run at.
        models: ONNX files; bundles (.aeseg) too, each whole and as inference alone.
        more: Other candidates by name.
        details: What to say of these.
        precision: As for ``Segmenter.load``.
        threads: For every candidate, OpenCV and BLAS included.
        rounds: Of each candidate.
        frames: In each round.
        source_frames: uint8 [H, W, C] each; one synthetic frame of the bundle's size if None.
        source: Name of the source.

    Raises:
        UsageError: If two candidates have one name, an input cannot be made up, or counts
            are below 1.
        BackendError: If a model cannot be opened or run.
    """
    if rounds < 1 or frames < 1 or threads < 1:
        raise UsageError(
            f"{rounds} rounds of {frames} frames on {threads} threads cannot be timed",
            fix="Give at least one of each.",
        )
    machine = environment()
    geometry = bundle.manifest.geometry
    held, source = hold(geometry, source_frames, source)
    turns = [held[index % len(held)] for index in range(frames)]
    described = dict(details or {})
    with ExitStack() as stack:
        stack.enter_context(threads_held(threads))

        def opened(which: Bundle, name: str) -> tuple[Segmenter, dict[str, Candidate]]:
            segmenter = stack.enter_context(
                Segmenter.load(which, precision=precision, backend=ONNXRUNTIME, threads=threads)
            )
            title = f"{name} {segmenter.entry.precision}"
            whole: Candidate = segmenter
            bare = inference_of(segmenter)
            channels = which.manifest.geometry.channels
            if channels != geometry.channels:
                whole, bare = (_with_channels(each, channels) for each in (whole, bare))
            return segmenter, {f"{title}, {WHOLE}": whole, f"{title}, {INFERENCE}": bare}

        segmenter, candidates = opened(bundle, bundle.path.name if bundle.path else "bundle")
        first = tuple(candidates)
        for path, name in zip(models, _names(models, bundle.path), strict=True):
            if path.suffix == SUFFIX:
                candidates.update(opened(Bundle.open(path), name)[1])
                continue
            candidates[name], described[name] = _peer(
                path, threads, geometry.width, geometry.height
            )
        for name, candidate in (more or {}).items():
            if name in candidates:
                raise UsageError(f"two candidates are called {name}", fix="Rename one of them.")
            candidates[name] = candidate
        comparison = alternate(candidates, turns, rounds)
        return SideBySide(
            precision=segmenter.entry.precision,
            threads=threads,
            first=first,
            others=tuple(name for name in candidates if name not in first),
            comparison=comparison,
            details=described,
            frame_sizes=sizes_of(held),
            source=source,
            environment=machine,
        )


def inference_of(segmenter: Segmenter) -> Candidate:
    """Return a call that runs the graph alone: no resize of the frame, none of the labels.

    Frames of other sizes are brought to the graph's once and kept, so that a timed call does
    not pay for it.
    """
    ready: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
    backend, geometry = segmenter.backend, segmenter.manifest.geometry

    def run(frame: NDArray[np.uint8]) -> object:
        # The frame is kept beside its id, which would otherwise be given to another.
        if id(frame) not in ready:
            ready[id(frame)] = frame, fit_frame(frame, geometry)
        return backend.collect(backend.submit(ready[id(frame)][1])).labels

    return run


def _with_channels(candidate: Candidate, channels: int) -> Candidate:
    """Hand on frames of so many channels, made of those given once: times hang on no colour."""
    ready: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def run(frame: NDArray[np.uint8]) -> object:
        # The frame is kept beside its id, which would otherwise be given to another.
        if id(frame) not in ready:
            grey = frame.mean(axis=2, keepdims=True).astype(np.uint8)
            ready[id(frame)] = frame, np.repeat(grey, channels, axis=2)
        return candidate(ready[id(frame)][1])

    return run


@contextmanager
def threads_held(threads: int) -> Iterator[None]:
    """Hold OpenCV, and BLAS and OpenMP where threadpoolctl is installed, to so many threads.

    ONNX Runtime takes its own number when a session is opened.
    """
    cv2 = import_cv2()
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        pools = optional("threadpoolctl")
        with nullcontext() if pools is None else pools.threadpool_limits(limits=threads):
            yield
    finally:
        cv2.setNumThreads(before)


def format_table(found: SideBySide) -> str:
    """Return times and ratios as plain text: every other over the bundle, whole and bare."""
    comparison = found.comparison
    sizes = ", ".join(f"{width}x{height}" for width, height in found.frame_sizes)
    rounds = len(comparison.milliseconds[found.first[0]])
    width = max(map(len, comparison.milliseconds))
    lines = [
        f"{found.threads} thread{'s'[: found.threads > 1]}, frames {sizes} ({found.source}), "
        f"{rounds} rounds of {comparison.frames} in turn",
        " " * width + f"{'ms median':>12}{'min':>10}{'max':>10}",
    ]
    for name, times in comparison.milliseconds.items():
        lines.append(
            f"{name:<{width}}{np.median(times):>12.2f}{min(times):>10.2f}{max(times):>10.2f}"
        )
    for other in found.others:
        lines.append(f"{other} ({found.details[other]})" if other in found.details else other)
        for mine in found.first:
            ratio = comparison.ratio(other, mine)
            lines.append(
                f"  takes {ratio.median:.2f} times as long as {mine} "
                f"({ratio.low:.2f} to {ratio.high:.2f})"
            )
    return "\n".join(lines)


def _names(models: Sequence[Path], bundle: Path | None) -> list[str]:
    """File names; whole paths where two files share a name."""
    short = [path.name for path in models]
    taken = [*short, bundle.name if bundle else ""]
    names = [
        name if taken.count(name) == 1 else str(path)
        for name, path in zip(short, models, strict=True)
    ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice", fix="Name each model once.")
    return names


def _peer(path: Path, threads: int, width: int, height: int) -> tuple[Candidate, str]:
    """Open a model with inputs made up once, and run it once to see that it runs."""
    session = open_session(path, threads=threads)
    feed = synthesise(inputs_of(session), str(path), width=width, height=height)
    try:
        session.run(None, feed)
    except Exception as error:  # onnxruntime raises classes of its own, unexported
        raise BackendError(
            f"{path} does not run on inputs made up for it: {error}",
            fix="Export the model with fixed shapes.",
        ) from error
    shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in feed.items())
    return lambda frame: session.run(None, feed), shapes
