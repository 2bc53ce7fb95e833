"""Choosing some of many, evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly(count: int, wanted: int, *, rounded: bool = True) -> NDArray[np.int64]:
    """Choose places evenly over a row, first and last among them: int64 [min(count, wanted)].

    They are rounded to the nearest place, or else to the one before it.
    """
    places = np.linspace(0, count - 1, min(count, wanted))
    return (places.round() if rounded else places).astype(np.int64)


def middles(count: int, wanted: int) -> list[int]:
    """Choose the middle of each of so many equal parts of a row, ascending.

    Place i is ``floor((i + 1/2) * count / wanted)``; all places when there are no more.
    """
    if count <= wanted:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
