"""The test scene: a drawn road that moves."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Frame, Source
from aeseg_edge.sources.capture import MAX_SIDE


class TestSource(Source):
    """A drawn scene that moves: sky, ground, a road, boxes. Endless and repeatable."""

    __test__ = False

    def __init__(self, width: int, height: int, fps: float, channels: int) -> None:
        self.name = f"test://{width}x{height}@{fps:g}"
        self.fps = fps
        self._size = (width, height)
        self._channels = channels
        self._open = True

    def __iter__(self) -> Iterator[Frame]:
        """Draw frame after frame until closed."""
        index = 0
        while self._open:
            image = draw_scene(index, *self._size)
            if self._channels != 3:
                grey = image.mean(axis=2, keepdims=True).astype(np.uint8)
                extra = self._channels - 3
                parts = [image, *[grey] * extra] if extra > 0 else [grey] * self._channels
                image = np.concatenate(parts, axis=2)
            timestamp = index / (self.fps or 1.0)
            yield Frame(image, index, time.monotonic(), self.name, timestamp)
            index += 1

    def close(self) -> None:
        """Stop drawing."""
        self._open = False


def open_scene(uri: str, channels: int) -> Source:
    """Open ``test://640x480@30``; see ``open_source``."""
    match = re.fullmatch(r"test://(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?", uri)
    width, height, fps = match.groups(default="30") if match else ("0", "0", "0")
    if not (0 < int(width) <= MAX_SIDE and 0 < int(height) <= MAX_SIDE and float(fps) > 0):
        raise SourceError(
            f"{uri} is not a size and rate",
            fix=f"Write test://640x480@30; sides end at {MAX_SIDE}.",
        )
    return TestSource(int(width), int(height), float(fps), channels)


def draw_scene(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """Draw a frame of the test scene, which moves with its index: uint8 [height, width, 3], BGR."""
    y, x = np.ogrid[:height, :width]
    horizon = height // 2 + round(height / 24 * np.sin(index / 20))
    image = np.empty((height, width, 3), np.uint8)
    image[:] = np.array((200, 160, 110), np.uint8)
    image[max(0, horizon) :] = np.array((60, 120, 70), np.uint8)
    centre = width / 2 + width / 8 * np.sin(index / 25)
    depth = np.clip((y - horizon) / max(1, height - horizon), 0, 1)
    road = (np.abs(x - centre) < width * (0.02 + 0.3 * depth)) & (y >= horizon)
    image[road] = (95, 95, 95)
    for number, (color, speed) in enumerate((((30, 30, 190), 3), ((170, 60, 30), -2))):
        left = int((index * speed * width / 480 + number * width / 2) % width)
        top = horizon - height // 12 + number * height // 8
        image[max(0, top) : top + height // 6, left : left + width // 8] = color
    return image
