"""Small videos and pictures for sources to read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.sources.registry import open_source

cv2 = pytest.importorskip("cv2")


CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}


def grey_levels(count: int) -> list[int]:
    return [10 + 16 * index for index in range(count)]


def write_video(path: Path, frames: int = 12, noise: bool = False) -> Path:
    """Frame i is plain, of the i-th grey level; noise makes it large."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter_fourcc(*CODECS[path.suffix]), 10.0, (64, 48)
    )
    for level in grey_levels(frames):
        image = np.full((48, 64, 3), level % 256, np.uint8)
        writer.write(rng.integers(0, 256, image.shape, np.uint8) if noise else image)
    writer.release()
    return path


def write_image(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def plain(level: int, *shape: int) -> np.ndarray:
    return np.full(shape or (4, 6, 3), level, np.uint8)


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def only(path: Path, channels: int = 3) -> np.ndarray:
    with open_source(str(path), channels=channels) as source:
        (frame,) = source
    assert frame.image.dtype == np.uint8
    return frame.image


def jpeg(height: int = 40, width: int = 60) -> bytes:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", image)[1])


def with_exif(data: bytes, orientation: int, thumbnail: bytes = b"") -> bytes:
    """Put an EXIF segment with one entry, Orientation (0x112), behind the start marker."""
    entry = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + thumbnail
    body = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
