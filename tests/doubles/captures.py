"""An OpenCV capture that takes settings."""

from __future__ import annotations

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")


class SettableCamera:
    """An OpenCV capture that takes some settings and clips others."""

    def __init__(self, largest: int = 10_000) -> None:
        self.asked: list[tuple[int, float]] = []
        self.values: dict[int, float] = {}
        self.largest = largest
        self.released = False

    def isOpened(self) -> bool:
        return True

    def set(self, number: int, value: float) -> bool:
        self.asked.append((number, value))
        self.values[number] = min(value, self.largest)
        return True

    def get(self, number: int) -> float:
        return self.values.get(number, 0.0)

    def grab(self) -> bool:
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.zeros((8, 8, 3), np.uint8)

    def release(self) -> None:
        self.released = True
