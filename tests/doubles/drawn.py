"""Results to be drawn, and what sinks made of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import ClassInfo, palette
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.sinks.base import Sink
from aeseg_edge.sources.base import Frame
from aeseg_edge.view.draw import render

cv2 = pytest.importorskip("cv2")


CLASSES = (ClassInfo(0, "sky", (80, 160, 240)), ClassInfo(1, "grass", (30, 140, 40)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def frame(index: int, height: int = 48, width: int = 64) -> Frame:
    """Plain, and brighter from one index to the next."""
    image = np.full((height, width, 3), 20 + 20 * (index % 11), np.uint8)
    return Frame(image, index, 0.0, "made")


def result(taken: Frame) -> Segmentation:
    labels = np.zeros(taken.image.shape[:2], np.uint8)
    labels[labels.shape[0] // 2 :] = 1
    return Segmentation(labels, CLASSES, palette(CLASSES))


def write(sink: Sink, count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    drawn = []
    for index in range(count):
        taken = frame(index, height, width)
        sink.write(taken, result(taken))
        drawn.append(render(taken.image, result(taken)))
    return drawn


def read_video(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while True:
        good, image = capture.read()
        if not good:
            return frames
        frames.append(image)


FULL_DISK = """
import resource, signal, sys
import numpy as np
from aeseg_edge.bundle.codebook import default_classes, palette
from aeseg_edge.errors import SinkError
from aeseg_edge.sources.base import Frame
from aeseg_edge.sinks.registry import open_sink
from aeseg_edge.segment.result import Segmentation

target, limit = sys.argv[1], int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
rng = np.random.default_rng(0)
result = Segmentation(np.zeros((64, 96), np.uint8), default_classes(1), palette(default_classes(1)))
try:
    with open_sink(target, legend=False, alpha=0.0) as sink:
        for index in range(60):
            sink.write(Frame(rng.integers(0, 256, (64, 96, 3), np.uint8), index, 0.0, ""), result)
except SinkError as error:
    print(error)
"""


def run_on_full_disk(repository: Path, target: Path, limit: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(target), str(limit)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


posix = pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX thing")
