"""One frame of a source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """A picture, and when and where it was taken.

    Attributes:
        image: uint8 [H, W, C], BGR.
        index: 0 for the first frame of the source.
        captured: ``time.monotonic()`` when the frame was there.
        source: Name of the source.
        timestamp: Position in a recording in seconds; None for cameras and pictures.
    """

    image: NDArray[np.uint8]
    index: int
    captured: float
    source: str
    timestamp: float | None = None
