"""Image sizes and label strides that a network can be exported at."""

from __future__ import annotations

import logging

from aeseg_edge.errors import UsageError

_log = logging.getLogger(__name__)


def round_size(size: tuple[int, int], multiple: int, arch: str) -> tuple[int, int]:
    """Round width and height to multiples of the deepest stride; UsageError below half of it."""
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
    """Choose the label stride; UsageError if it does not divide the encoder's.

    Half the encoder's costs little and smooths borders; see docs/performance.md.
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
