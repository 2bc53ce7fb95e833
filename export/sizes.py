"""Image sizes and label strides that a network can be exported at."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import Geometry, resize_picture
from aeseg_edge.errors import UsageError

_log = logging.getLogger(__name__)


def round_size(size: tuple[int, int], multiple: int, arch: str) -> tuple[int, int]:
    """Round a width and height to multiples of the deepest stride.

    Args:
        size: Width, height.
        multiple: Deepest stride.
        arch: For the message.

    Returns:
        Width, height; at least one multiple each.

    Raises:
        UsageError: If a side is smaller than half the deepest stride.
    """
    if min(size) * 2 < multiple:
        raise UsageError(
            f"{size[0]}x{size[1]} is too small for {arch!r}",
            fix=f"Use at least {multiple}x{multiple}.",
        )
    width, height = (max(multiple, round(side / multiple) * multiple) for side in size)
    if (width, height) != size:
        _log.info(
            "%dx%d becomes %dx%d: %s works on multiples of %d", *size, width, height, arch, multiple
        )
    return width, height


def check_output_stride(wanted: int | None, stride: int) -> int:
    """Choose the label stride.

    Half the encoder's stride costs little and smooths borders; see docs/performance.md.

    Raises:
        UsageError: If it does not divide the encoder's stride.
    """
    if wanted is None:
        return max(1, stride // 2)
    if wanted < 1 or stride % wanted:
        options = [str(s) for s in range(1, stride + 1) if stride % s == 0]
        raise UsageError(
            f"output stride {wanted} does not divide the encoder's stride {stride}",
            fix=f"Use one of {', '.join(options)}.",
        )
    return wanted


def resize_frames(frames: NDArray[np.uint8], geometry: Geometry, *, fix: str) -> NDArray[np.uint8]:
    """Bring kept frames, which have the trained size, to another one.

    Args:
        frames: uint8 [N, H, W, C].
        geometry: Of the export; bars of letterboxed frames stay in place at their aspect only.
        fix: What to do where that is not possible.

    Returns:
        uint8 [N, height, width, C].

    Raises:
        UsageError: If letterboxed frames would be stretched.
    """
    rows, columns = frames.shape[1:3]
    size = geometry.width, geometry.height
    if (columns, rows) == size:
        return frames
    if geometry.resize == "letterbox" and columns * size[1] != rows * size[0]:
        raise UsageError(
            f"the frames kept are {columns}x{rows}, letterboxed, and {size[0]}x{size[1]} has "
            "another aspect: they would be distorted",
            fix=fix,
        )
    return np.stack([resize_picture(frame, *size) for frame in frames])
