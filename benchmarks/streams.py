"""What a stream costs when several share one engine: ``aeseg run`` on 1, 2, 4 and 8 videos.

    python benchmarks/streams.py street.aeseg [--streams 1 2 4 8] [--rounds 3]

Every run is the command line in a process of its own, over copies of one drawn clip at 480x360
(decoding counts), with the null sink and one thread for ONNX Runtime. Each number of streams is run
short and long and the difference taken, so that starting counts for nothing; numbers take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from aeseg_edge.sources.scene import draw_scene
from aeseg_edge.support.require import import_cv2

SIZE = (480, 360)
PICTURES = 120
SHORT, LONG = 80, 560
"""Frames of all streams together; multiples of every number of streams."""


def draw_clip(path: Path) -> None:
    """Write a video of a moving scene."""
    cv2 = import_cv2()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30.0, SIZE)
    for _ in range(LONG // PICTURES + 1):
        for index in range(PICTURES):
            writer.write(draw_scene(3 * index, *SIZE))
    writer.release()


def run(bundle: Path, clips: list[Path], frames: int, folder: Path) -> tuple[float, float, float]:
    """Run the command once.

    Returns:
        Seconds of the run, processor seconds, and the most resident memory in MB.
    """
    stats = folder / "stats.json"
    command = [sys.executable, "-m", "aeseg_edge.cli", "run", *map(str, clips), "-b", str(bundle)]
    command += ["-o", "null://", "--backend", "onnxruntime", "--threads", "1"]
    command += ["--frames", str(frames), "--stats", str(stats)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"aeseg run failed: {' '.join(command)}")
    seconds = float(json.loads(stats.read_text())["seconds"])
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6


def main() -> None:
    """Measure and print one row a number of streams."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[int, list[tuple[float, float, float]]] = {n: [] for n in options.streams}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_clip(folder / "clip.avi")
        for _ in range(options.rounds):
            for count in options.streams:
                clips = [folder / f"camera{i}.avi" for i in range(count)]
                for clip in clips:
                    if not clip.exists():
                        shutil.copy(folder / "clip.avi", clip)
                short = run(options.bundle, clips, SHORT, folder)
                long = run(options.bundle, clips, LONG, folder)
                each = LONG - SHORT
                found[count].append(
                    (
                        1e3 * (long[0] - short[0]) / each,
                        1e3 * (long[1] - short[1]) / each,
                        long[2],
                    )
                )
    print(f"{'streams':>7}{'ms a frame':>12}{'CPU ms a frame':>16}{'frames/s each':>15}{'MB':>8}")
    for count, rows in found.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{count:>7}{wall:>12.2f}{cpu:>16.2f}{1e3 / wall / count:>15.1f}{memory:>8.1f}")


if __name__ == "__main__":
    main()
