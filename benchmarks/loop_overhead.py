"""What the loop and each sink cost beyond bare calls of the segmenter, at 480x360.

    python benchmarks/loop_overhead.py street.aeseg [--frames 200] [--turns 5]

A and B take turns (bare, loop, bare, loop, ...), so that a busy machine slows both; the figure is
the median over the turns of their ratio. Wall time counts what slows a run, processor time (of all
threads) what it costs. A sink that cannot run here is skipped with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aeseg_edge.errors import AesegError
from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import Input
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.sinks.registry import open_sink
from aeseg_edge.sources.base import Frame, Source
from aeseg_edge.sources.scene import draw_scene

SIZE = (480, 360)
PICTURES = [draw_scene(3 * i, *SIZE) for i in range(60)]
SINKS = {
    "null": "null://",
    "json": "json:{folder}/lines.jsonl",
    "unix": "unix:{folder}/labels.sock",
    "video": "{folder}/out.mp4",
    "images": "{folder}/out/%06d.jpg",
    "labels": "{folder}/labels/%06d.png?view=labels",
    "gst": "gst://appsrc ! videoconvert ! fakesink",
    "http": "http://127.0.0.1:0",
}


class Recorded(Source):
    """Pictures from memory, as fast as they are taken."""

    name, live, fps = "recorded", False, 30.0

    def __init__(self, frames: int) -> None:
        self.total: int | None = frames

    def __iter__(self) -> Iterator[Frame]:
        """Give the pictures in turn."""
        for index in range(self.total or 0):
            image = PICTURES[index % len(PICTURES)]
            yield Frame(image, index, time.monotonic(), self.name)


def timed(work: Callable[[], object], frames: int) -> tuple[float, float]:
    """Wall and processor milliseconds a frame."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return (
        (time.perf_counter() - wall) * 1e3 / frames,
        (time.process_time() - cpu) * 1e3 / frames,
    )


def compare(segmenter: Segmenter, uri: str, frames: int, turns: int) -> dict[str, Any]:
    """Bare calls and the loop with one sink, in turns."""

    def bare() -> None:
        for index in range(frames):
            segmenter(PICTURES[index % len(PICTURES)])

    rows = []
    for _ in range(turns):
        alone = timed(bare, frames)
        with tempfile.TemporaryDirectory() as folder:
            for name in ("out", "labels"):
                (Path(folder) / name).mkdir()
            sink = open_sink(uri.format(folder=folder), fps=30.0)
            loop = CameraLoop(segmenter, [Input(Recorded(frames))], [sink])
            rows.append((*alone, *timed(loop.run, frames)))
    table = np.array(rows)
    wall, cpu = table[:, 2] / table[:, 0] - 1, table[:, 3] / table[:, 1] - 1
    return {
        "bare_ms": round(float(np.median(table[:, 0])), 3),
        "loop_ms": round(float(np.median(table[:, 2])), 3),
        "wall_percent": round(100 * float(np.median(wall)), 1),
        "wall_range": [round(100 * float(wall.min()), 1), round(100 * float(wall.max()), 1)],
        "cpu_percent": round(100 * float(np.median(cpu)), 1),
    }


def main() -> int:
    """Measure and print one line a sink."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sink", action="append", choices=tuple(SINKS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = {"bundle": options.bundle.name, "load": os.getloadavg()}
    with Segmenter.load(
        options.bundle, precision=options.precision, backend="onnxruntime", threads=1
    ) as segmenter:
        for name in options.sink or SINKS:
            try:
                found = compare(segmenter, SINKS[name], options.frames, options.turns)
            except AesegError as error:
                print(f"{name:<8} skipped: {error.problem}")
                continue
            figures[name] = found
            low, high = found["wall_range"]
            print(
                f"{name:<8} bare {found['bare_ms']:7.2f} ms  loop {found['loop_ms']:7.2f} ms  "
                f"wall {found['wall_percent']:+6.1f} % ({low:+.1f} to {high:+.1f})  "
                f"processor {found['cpu_percent']:+6.1f} %",
                flush=True,
            )
    print(f"load average {os.getloadavg()}, threads left {threading.active_count() - 1}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
