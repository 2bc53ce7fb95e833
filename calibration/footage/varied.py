"""Choosing the frames that INT8 ranges are fitted on, and those that check them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import resize_image
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.evenly import middles
from aeseg_edge.support.require import import_cv2

_CELLS = 12


def choose_varied(frames: Sequence[NDArray[np.uint8]], count: int) -> list[int]:
    """Pick indices of frames (uint8 [H, W, C], one size) that differ most from one another.

    Farthest-point sampling (Gonzalez, 1985) on 12x12 thumbnails, starting at the frame
    nearest to the mean: ranges must cover dark, bright and rare scenes, which an even
    sample of a long recording misses. CalibrationError if there are no frames.
    """
    if not len(frames):
        raise CalibrationError("there are no frames to choose from", fix="Give some footage.")
    cv2 = import_cv2()
    small = np.stack(
        [resize_image(frame, _CELLS, _CELLS, cv2.INTER_AREA).ravel() for frame in frames]
    ).astype(np.float32)
    first = int(((small - small.mean(axis=0)) ** 2).sum(axis=1).argmin())
    chosen = [first]
    distance = ((small - small[first]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(frames)):
        farthest = int(distance.argmax())
        if distance[farthest] <= 0:
            rest = [i for i in range(len(frames)) if i not in set(chosen)]
            return chosen + rest[: count - len(chosen)]
        chosen.append(farthest)
        distance = np.minimum(distance, ((small - small[farthest]) ** 2).sum(axis=1))
    return chosen


def split_for_agreement(
    frames: Sequence[NDArray[np.uint8]], calibration: int, agreement: int
) -> tuple[list[int], list[int]]:
    """Share frames between range fitting and the agreement check, with no overlap.

    Returns indices for the ranges and for the check, at least one each. The check's lie
    evenly over the footage. CalibrationError if there are fewer than two frames.
    """
    total = len(frames)
    if total < 2:
        raise CalibrationError(
            f"{total} frames are too few: ranges and their check need different ones",
            fix="Give footage with at least two different frames.",
        )
    held = min(agreement, max(1, total // 3))
    check = middles(total, held)
    rest = [i for i in range(total) if i not in set(check)]
    picked = choose_varied([frames[i] for i in rest], calibration)
    return [rest[i] for i in picked], check
