"""Masks of pictures that EXIF turns: were they drawn on what is shown, or on the stored pixels?

Cameras store pixels as the sensor gives them, and EXIF says how to turn them. Pictures are turned
upright here, as browsers and most labelling tools show them; some tools label the stored pixels.
Where width and height change places, the size of a mask tells. Where they do not (upside down,
mirrored, square), borders of labels lie on edges of the picture: on CamVid the edges under them
are 1.6 to 3 times as strong as under the same borders turned, in every frame alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.sources.images import orientation_of, turn
from aeseg_edge.support.evenly import evenly

_log = logging.getLogger(__name__)

CLEAR = 1.2
"""How many times as strong edges must be under borders to tell."""
FRAMES = 8
"""Turned pictures that are looked at, evenly over all."""
_HEAD = 1 << 18
"""Bytes: cameras write EXIF before the picture."""


class _Pair(Protocol):
    @property
    def image(self) -> Path:
        """The picture."""

    @property
    def mask(self) -> Path:
        """Its labels."""


P = TypeVar("P", bound=_Pair)


class Turned(Generic[P]):
    """Turns masks that were drawn on stored pixels.

    Args:
        pairs: All labelled frames.
        read: Gives the frame of a pair, uint8 [H, W, C], upright.
        read_mask: Turns a mask's path into ids.
    """

    def __init__(
        self,
        pairs: Sequence[P],
        read: Callable[[P], NDArray[np.uint8]],
        read_mask: Callable[[Path], NDArray[np.uint8]],
    ) -> None:
        self._pairs, self._read, self._read_mask = pairs, read, read_mask
        self._on_stored: bool | None = None

    def upright(
        self, pair: P, frame: NDArray[np.uint8], mask: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Give the mask, uint8 [H, W], as its upright frame lies."""
        own = orientation_of(pair.mask.read_bytes())
        if own > 1:
            return turn(mask, own)
        orientation = orientation_of(pair.image.read_bytes())
        stored = _by_size(orientation, frame, mask)
        if stored is None:
            if self._on_stored is None:
                self._on_stored = self._decide()
            stored = self._on_stored
        return turn(mask, orientation) if stored else mask

    def _decide(self) -> bool:
        """Say whether masks whose size does not tell lie on the stored pixels."""
        turned = [(pair, way) for pair in self._pairs if (way := _orientation(pair.image)) > 1]
        strong = np.zeros((2, 2))  # as shown and as stored: sum of edges, pixels of borders
        differ = False
        for pair, way in (turned[i] for i in evenly(len(turned), FRAMES)):
            frame, mask = self._read(pair), self._read_mask(pair.mask)
            sized = _by_size(way, frame, mask)
            if sized is not None:
                return sized
            both = mask, turn(mask, way)
            differ = differ or not np.array_equal(*both)
            if mask.shape == frame.shape[:2]:
                strong += [edges_under(frame, each) for each in both]
        if not differ:
            return False
        shown, stored = strong[:, 0] / np.maximum(strong[:, 1], 1)
        clear = max(shown, stored) >= CLEAR * max(min(shown, stored), 1e-9)
        on_stored = bool(clear and stored > shown)
        where = "the stored pixels" if on_stored else "the pictures as shown"
        _log.warning(
            "%d pictures are turned by EXIF (orientation %s), and the size of their masks does not "
            "tell whether they were drawn on the stored pixels: taken as drawn on %s, %s. Save the "
            "pictures upright, without that tag, to be sure",
            len(turned),
            ", ".join(map(str, sorted({way for _, way in turned}))),
            where,
            "where their borders lie on edges" if clear else "although their borders do not tell",
        )
        return on_stored


def edges_under(frame: NDArray[np.uint8], mask: NDArray[np.uint8]) -> tuple[float, int]:
    """Add up the edges of a frame [H, W, C] under the borders of labels [H, W].

    Returns the sum of differences of neighbours, grey levels, and how many neighbours these are.
    """
    grey = frame.mean(axis=2)
    total, count = 0.0, 0
    for axis in (0, 1):
        # Over three pixels: borders are drawn a pixel beside the edge.
        edges = np.abs(np.diff(grey, axis=axis))
        border = np.diff(mask.astype(np.int16), axis=axis) != 0
        for shift in (-1, 0, 1):
            total += float(np.roll(edges, shift, axis)[border].sum())
        count += int(border.sum())
    return total, count


def _by_size(orientation: int, frame: NDArray[np.uint8], mask: NDArray[Any]) -> bool | None:
    """Say whether the size tells that a mask lies on stored pixels; None where it does not."""
    shown = frame.shape[:2]
    stored = shown[::-1] if orientation >= 5 else shown
    if orientation == 1 or mask.shape not in (shown, stored):
        return False
    return None if shown == stored else mask.shape == stored


def _orientation(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return orientation_of(file.read(_HEAD))
    except OSError:  # said when its turn comes
        return 1
