"""Latency of a segmenter, stage by stage, and fair comparisons between alternatives."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError, UsageError
from aeseg_edge.measure.machine import environment, process_memory
from aeseg_edge.measure.power import PowerRecord, PowerRecorder
from aeseg_edge.support.stats import Summary, summarise
from aeseg_edge.support.text import without_password

if TYPE_CHECKING:
    from aeseg_edge.bundle.geometry import Geometry
    from aeseg_edge.segment.segmenter import Segmenter

SYNTHETIC = "synthetic"

_STAGES = ("preprocess", "copy_in", "inference", "copy_out", "postprocess")
_NS_PER_MS = 1e6

ENOUGH = 300
"""Frames below which a 99th percentile rests on fewer than three of them."""

# Frames are decoded before timing and then cycled; more of them would only fill memory.
_HELD_FRAMES = 16
_HELD_BYTES = 32 * 2**20


@dataclass(frozen=True)
class BenchReport:
    """One measured run of a segmenter.

    Attributes:
        precision: Of the graph: fp32, fp16 or int8.
        backend: What ran it: onnxruntime or tensorrt.
        shaped_for: The backend that the graph was made for; another than `backend` means
            that the graph was emulated, and its times are not a device's.
        entry_bytes: Size of the graph in the bundle.
        source: Where the frames came from; "synthetic" where they were made up.
        frame_sizes: (width, height) of the frames, each once.
        distinct_frames: Frames that were cycled.
        frames: Timed frames.
        warmup_frames: Frames before them, not timed.
        stages: Distribution by stage in ms: preprocess, copy_in, inference, copy_out,
            postprocess, total.
        samples: Raw ms by stage, in the order of the frames.
        fps: Timed frames over the time spent in the segmenter.
        memory: Bytes of this process after the run, resident and peak, held frames included;
            None where it cannot be known.
        environment: What machine.environment said before the run.
        settings: What the caller chose (threads, ...).
        power: Power, temperature and throttling during the timed frames.
    """

    precision: str
    backend: str
    shaped_for: str
    entry_bytes: int
    source: str
    frame_sizes: tuple[tuple[int, int], ...]
    distinct_frames: int
    frames: int
    warmup_frames: int
    stages: Mapping[str, Summary]
    samples: Mapping[str, tuple[float, ...]]
    fps: float
    memory: Mapping[str, int] | None
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    power: PowerRecord

    @property
    def fps_per_watt(self) -> float | None:
        """Frames a second for a watt of the whole module; None where power is unknown."""
        watts = self.power.total_watts
        return self.fps / watts if watts else None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types; times in ms, rounded to 0.1 microseconds."""
        return {
            "precision": self.precision,
            "backend": self.backend,
            "shaped_for": self.shaped_for,
            "entry_bytes": self.entry_bytes,
            "source": self.source,
            "frame_sizes": [f"{width}x{height}" for width, height in self.frame_sizes],
            "distinct_frames": self.distinct_frames,
            "frames": self.frames,
            "warmup_frames": self.warmup_frames,
            "fps": round(self.fps, 3),
            "fps_per_watt": None if self.fps_per_watt is None else round(self.fps_per_watt, 4),
            "stages_ms": {name: summary.to_json() for name, summary in self.stages.items()},
            "memory_bytes": None if self.memory is None else dict(self.memory),
            "settings": dict(self.settings),
            "power": self.power.to_json(),
            "environment": dict(self.environment),
            "samples_ms": {
                name: [round(value, 4) for value in values] for name, values in self.samples.items()
            },
        }


def bench(
    segmenter: Segmenter,
    source_frames: Iterable[NDArray[np.uint8]] | None = None,
    *,
    frames: int = 300,
    warmup_seconds: float = 2.0,
    source: str | None = None,
    settings: Mapping[str, Any] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
    recorder: PowerRecorder | None = None,
) -> BenchReport:
    """Time a segmenter frame by frame, as fast as it goes (closed loop).

    The first 16 frames (or 32 MiB) of the source are read before timing and cycled, so that
    decoding is not measured.

    Args:
        segmenter: An open segmenter.
        source_frames: uint8 [H, W, C] frames; without any, synthetic frames of the bundle's
            size. Latency of the convolutions does not depend on the picture.
        frames: Frames to time.
        warmup_seconds: How long to run before timing; one frame at least.
        source: Name of the source, for the report.
        settings: What the caller chose (threads, ...), for the report.
        clock: Monotonic nanoseconds.
        recorder: What reads power and temperature; of this machine unless given.

    Raises:
        UsageError: `frames` is below 1 or `warmup_seconds` is negative.
        SourceError: The source has no frame.
    """
    check_counts(frames, warmup_seconds)
    held, source = hold(segmenter.manifest.geometry, source_frames, source)
    machine = environment()
    cycle = itertools.cycle(held)
    warmup_frames = warm_up(segmenter, cycle, warmup_seconds, clock)

    samples: dict[str, list[float]] = {}
    busy = 0
    with recorder or PowerRecorder() as recorder:
        for frame in itertools.islice(cycle, frames):
            start = clock()
            result = segmenter(frame)
            busy += clock() - start
            for stage, milliseconds in result.milliseconds.items():
                samples.setdefault(stage, []).append(milliseconds)

    entry = segmenter.entry
    order = sorted(samples, key=_stage_order)
    return BenchReport(
        precision=entry.precision,
        backend=segmenter.backend.name,
        shaped_for=entry.backend,
        entry_bytes=segmenter.manifest.files[entry.graph].size,
        source=source,
        frame_sizes=sizes_of(held),
        distinct_frames=len(held),
        frames=frames,
        warmup_frames=warmup_frames,
        stages={stage: summarise(samples[stage]) for stage in order},
        samples={stage: tuple(samples[stage]) for stage in order},
        fps=frames / busy * 1e9 if busy else 0.0,
        memory=process_memory(),
        environment=machine,
        settings=dict(settings or {}),
        power=recorder.record(),
    )


def format_table(report: BenchReport) -> str:
    """Return the report as a plain text table, times in ms."""
    sizes = ", ".join(f"{width}x{height}" for width, height in report.frame_sizes)
    columns = ("min", "mean", "p50", "p90", "p95", "p99", "max", "jitter")
    width = max(len(stage) for stage in report.stages)
    emulated = "" if report.shaped_for == report.backend else f" made for {report.shaped_for}"
    lines = [
        f"{report.precision} on {report.backend}, graph{emulated} "
        f"{report.entry_bytes / 1e6:.2f} MB, "
        f"frames {sizes} ({report.source}, {report.distinct_frames} distinct)",
        f"{report.frames} frames after {report.warmup_frames} to warm up: {report.fps:.1f} fps",
        " " * width + "".join(f"{column:>10}" for column in columns) + "  (ms)",
    ]
    for stage, summary in report.stages.items():
        values = (getattr(summary, column) for column in columns)
        lines.append(f"{stage:<{width}}" + "".join(f"{value:>10.3f}" for value in values))
    if report.frames < ENOUGH:
        lines.append(f"fewer than {ENOUGH} frames: p99 rests on the slowest few")
    lines += report.power.lines()
    if report.fps_per_watt is not None:
        lines.append(f"{report.fps_per_watt:.2f} frames a second for each watt")
    if report.memory is not None:
        resident, peak = (report.memory[name] / 1e6 for name in ("resident", "peak"))
        lines.append(f"memory {resident:.0f} MB resident, {peak:.0f} MB at most")
    versions = report.environment["packages"]
    lines.append(
        "versions "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    )
    return "\n".join(lines)


def check_counts(frames: int, warmup_seconds: float) -> None:
    """Refuse counts that leave nothing to time: UsageError."""
    if frames < 1 or not 0 <= warmup_seconds < math.inf:
        raise UsageError(
            f"{frames} frames after {warmup_seconds} s of warm-up cannot be timed",
            fix="Ask for at least one frame and no negative warm-up.",
        )


def hold(
    geometry: Geometry, frames: Iterable[NDArray[np.uint8]] | None, source: str | None
) -> tuple[list[NDArray[np.uint8]], str]:
    """Read the first 16 frames (or 32 MiB), so that decoding is not measured.

    They are uint8 [H, W, C] and to be cycled; one synthetic frame where `frames` is None. Beside
    them the source's name for a report, without a password. SourceError where there is no frame.
    """
    if frames is None:
        return [synthetic_frame(geometry.height, geometry.width, geometry.channels)], SYNTHETIC
    held = list(_first(frames))
    name = without_password(source or "")
    if not held:
        raise SourceError(f"{name or 'the source'} has no frame", fix="Give another source.")
    return held, name or "frames"


def sizes_of(frames: Iterable[NDArray[np.uint8]]) -> tuple[tuple[int, int], ...]:
    """Return (width, height) of the frames, each size once."""
    return tuple(dict.fromkeys((frame.shape[1], frame.shape[0]) for frame in frames))


def warm_up(
    segmenter: Segmenter,
    frames: Iterator[NDArray[np.uint8]],
    seconds: float,
    clock: Callable[[], int],
) -> int:
    """Segment frames, one at least, for some seconds, and give their number.

    Clocks rise, caches fill, lazy work is done.
    """
    count = 0
    start = clock()
    while count == 0 or clock() - start < seconds * 1e9:
        segmenter(next(frames))
        count += 1
    return count


def synthetic_frame(height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Return a repeatable uint8 [H, W, C] picture: a gradient with noise."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 200, width, dtype=np.float32)[None, :, None]
    noise = generator.uniform(0, 55, (height, width, channels))
    return (ramp + noise).astype(np.uint8)


@dataclass(frozen=True)
class Ratio:
    """How many times the time of one candidate another takes: median, least and most of rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Candidates timed in turn: by name the mean ms of a frame in each round of `frames` frames."""

    milliseconds: Mapping[str, tuple[float, ...]]
    frames: int

    def ratio(self, slower: str, faster: str) -> Ratio:
        """Return time of `slower` over time of `faster`, paired round by round.

        The two of a round ran next to each other, so a machine that slows down or speeds up
        on the way moves both, and their ratio stays.
        """
        pairs = zip(self.milliseconds[slower], self.milliseconds[faster], strict=True)
        ratios = [first / second for first, second in pairs]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def to_json(self) -> dict[str, Any]:
        """Return the times and the ratio of every pair, `A / B` once, as JSON types."""
        ratios = {
            f"{first} / {second}": self.ratio(first, second)
            for first, second in itertools.combinations(self.milliseconds, 2)
        }
        return {
            "frames": self.frames,
            "milliseconds": {
                name: [round(value, 4) for value in values]
                for name, values in self.milliseconds.items()
            },
            "ratios": {
                name: {
                    "median": round(ratio.median, 4),
                    "low": round(ratio.low, 4),
                    "high": round(ratio.high, 4),
                }
                for name, ratio in ratios.items()
            },
        }


def alternate(
    candidates: Mapping[str, Callable[[NDArray[np.uint8]], object]],
    frames: Sequence[NDArray[np.uint8]],
    rounds: int,
    *,
    warmup_rounds: int = 1,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Comparison:
    """Time candidates in turn, A B A B, so that a drifting machine disturbs all alike.

    A round is one pass of each candidate over all frames; a few are enough, rounds count. Threads
    of one candidate that spin while another runs disturb it: turn spinning off, or give each its
    own process. UsageError where there is nothing to time.
    """
    if not candidates or not frames or rounds < 1 or warmup_rounds < 0:
        raise UsageError(
            f"{len(candidates)} candidates, {len(frames)} frames and {rounds} rounds "
            "leave nothing to time",
            fix="Give at least one of each.",
        )
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_index in range(-warmup_rounds, rounds):
        for name, candidate in candidates.items():
            start = clock()
            for frame in frames:
                candidate(frame)
            elapsed = clock() - start
            if round_index >= 0:
                times[name].append(elapsed / len(frames) / _NS_PER_MS)
    return Comparison({name: tuple(values) for name, values in times.items()}, len(frames))


def _first(source: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    room = _HELD_BYTES
    for count, frame in enumerate(itertools.islice(source, _HELD_FRAMES)):
        room -= frame.nbytes
        if count and room < 0:
            return
        yield frame


def _stage_order(stage: str) -> tuple[int, str]:
    """Known stages in the order they run, others after them by name, total last."""
    if stage == "total":
        return (len(_STAGES) + 1, stage)
    return (_STAGES.index(stage) if stage in _STAGES else len(_STAGES), stage)
