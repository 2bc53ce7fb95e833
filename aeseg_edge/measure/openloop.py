"""A camera's view of a segmenter: frames arrive on a clock, whether or not the last is done."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import UsageError
from aeseg_edge.measure.bench import check_counts, hold, sizes_of, warm_up
from aeseg_edge.measure.machine import environment, process_memory
from aeseg_edge.measure.power import PowerRecord, PowerRecorder
from aeseg_edge.support.stats import Summary, summarise

if TYPE_CHECKING:
    from aeseg_edge.segment.segmenter import Segmenter

_NS = 10**9
_NS_PER_MS = 1e6

PARTS = ("waiting", "segmenting", "age")


@dataclass(frozen=True)
class OpenLoopReport:
    """One run at a fixed rate of frames; what is not told here is as in ``BenchReport``.

    Attributes:
        rate: Frames a second that arrived.
        arrived: Frames that arrived; each was segmented or dropped.
        dropped: Frames that a newer one replaced before their turn.
        achieved: Label maps a second, over the time in which frames arrived (or until the
            last label map, where that is later).
        parts: Distributions in ms over the segmented frames. ``waiting``: from arrival until
            the segmenter was free for it. ``segmenting``: the work. ``age``: both, from
            arrival to its label map at the frame's own size.
        samples: The same, raw, in the order of the frames.
        frames: Number of each segmented frame, from 0.
    """

    precision: str
    backend: str
    rate: float
    arrived: int
    dropped: int
    achieved: float
    parts: Mapping[str, Summary]
    samples: Mapping[str, tuple[float, ...]]
    frames: tuple[int, ...]
    source: str
    frame_sizes: tuple[tuple[int, int], ...]
    warmup_frames: int
    memory: Mapping[str, int] | None
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    power: PowerRecord

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types; times in ms, rounded to 0.1 microseconds."""
        return {
            "precision": self.precision,
            "backend": self.backend,
            "rate": self.rate,
            "arrived": self.arrived,
            "segmented": len(self.frames),
            "dropped": self.dropped,
            "achieved_rate": round(self.achieved, 3),
            "parts_ms": {name: summary.to_json() for name, summary in self.parts.items()},
            "source": self.source,
            "frame_sizes": [f"{width}x{height}" for width, height in self.frame_sizes],
            "warmup_frames": self.warmup_frames,
            "memory_bytes": None if self.memory is None else dict(self.memory),
            "settings": dict(self.settings),
            "power": self.power.to_json(),
            "environment": dict(self.environment),
            "frames": list(self.frames),
            "samples_ms": {
                name: [round(value, 4) for value in values] for name, values in self.samples.items()
            },
        }


def open_loop(
    segmenter: Segmenter,
    rate: float,
    source_frames: Iterable[NDArray[np.uint8]] | None = None,
    *,
    frames: int = 300,
    warmup_seconds: float = 2.0,
    source: str | None = None,
    settings: Mapping[str, Any] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    recorder: PowerRecorder | None = None,
) -> OpenLoopReport:
    """Segment frames that arrive at a fixed rate; a newer frame replaces one that waits.

    Frame i arrives at ``start + i / rate``, and nothing shifts that: a slow frame makes the
    frames behind it old or has them dropped. Timed from when a frame is taken up instead, a
    stall would be counted once although it made every frame behind it late ("coordinated
    omission": G. Tene, How NOT to Measure Latency, 2013). What is dropped is what a camera
    loop with one slot (`support.threads.Mailbox`) drops: all but the newest.

    `frames` arrive, `rate` a second; `sleep` waits for seconds; all else is as for ``bench``.
    """
    if not 0 < rate < math.inf:
        raise UsageError(
            f"{rate} frames a second cannot arrive", fix="Give a rate above 0, such as 30."
        )
    check_counts(frames, warmup_seconds)
    held, source = hold(segmenter.manifest.geometry, source_frames, source)
    machine = environment()
    warmup_frames = warm_up(segmenter, itertools.cycle(held), warmup_seconds, clock)

    taken: list[int] = []
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    done = 0
    with recorder or PowerRecorder() as recorder:
        start = clock()

        def arrival(index: int) -> int:
            return start + round(index * _NS / rate)

        following = 0
        while following < frames:
            now = clock()
            if now < arrival(following):
                sleep((arrival(following) - now) / _NS)
                continue
            newest = following
            while newest + 1 < frames and arrival(newest + 1) <= now:
                newest += 1
            segmenter(held[newest % len(held)])
            done = clock()
            taken.append(newest)
            for name, nanoseconds in zip(
                PARTS,
                (now - arrival(newest), done - now, done - arrival(newest)),
                strict=True,
            ):
                times[name].append(nanoseconds / _NS_PER_MS)
            following = newest + 1

    entry = segmenter.entry
    return OpenLoopReport(
        precision=entry.precision,
        backend=segmenter.backend.name,
        rate=rate,
        arrived=frames,
        dropped=frames - len(taken),
        achieved=len(taken) / max(frames / rate, (done - start) / _NS),
        parts={name: summarise(values) for name, values in times.items()},
        samples={name: tuple(values) for name, values in times.items()},
        frames=tuple(taken),
        source=source,
        frame_sizes=sizes_of(held),
        warmup_frames=warmup_frames,
        memory=process_memory(),
        environment=machine,
        settings=dict(settings or {}),
        power=recorder.record(),
    )


def format_table(report: OpenLoopReport) -> str:
    """Return the report as a plain text table, times in ms."""
    sizes = ", ".join(f"{width}x{height}" for width, height in report.frame_sizes)
    columns = ("p50", "p95", "p99", "max", "mean", "jitter")
    width = max(map(len, PARTS))
    lines = [
        f"{report.precision} on {report.backend}, frames {sizes} ({report.source}) "
        f"at {report.rate:g} a second",
        f"{report.arrived} arrived, {len(report.frames)} segmented, {report.dropped} dropped: "
        f"{report.achieved:.1f} label maps a second",
        " " * width + "".join(f"{column:>10}" for column in columns) + "  (ms)",
    ]
    for name in PARTS:
        summary = report.parts[name]
        values = (getattr(summary, column) for column in columns)
        lines.append(f"{name:<{width}}" + "".join(f"{value:>10.3f}" for value in values))
    return "\n".join([*lines, *report.power.lines()])
