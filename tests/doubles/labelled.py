"""Label maps with two classes, and their results."""

from __future__ import annotations

import numpy as np

from aeseg_edge.bundle.codebook import VOID, ClassInfo, palette
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.sinks.base import Sink
from aeseg_edge.sources.base import Frame

CLASSES = (
    ClassInfo(0, "sky", (80, 160, 240)),
    ClassInfo(1, "straße", (90, 90, 90)),
    ClassInfo(2, "sky", (0, 0, 255)),
)


def result(labels: np.ndarray) -> tuple[Frame, Segmentation]:
    frame = Frame(np.full((*labels.shape, 3), 128, np.uint8), 7, 100.0, "csi://0")
    return frame, Segmentation(labels, CLASSES, palette(CLASSES), frame_age=0.0184)


def quarters() -> np.ndarray:
    labels = np.zeros((4, 6), np.uint8)
    labels[:2, :3], labels[:2, 3:], labels[2:, :3], labels[2:, 3:] = 0, 1, 2, VOID
    return labels


def write_many(sink: Sink, labels: np.ndarray, count: int = 50) -> None:
    for _ in range(count):
        sink.write(*result(labels))


TWO = [("csi://0", 30.0), ("csi://1", 15.0)]
