"""Choosing some of many, evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly(count: int, wanted: int) -> NDArray[np.int64]:
    """Choose places that lie evenly over a row, its first and last among them.

    Args:
        count: Length of the row.
        wanted: How many places; all of them when there are no more.

    Returns:
        int64 [min(count, wanted)], ascending.
    """
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)
