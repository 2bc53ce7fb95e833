"""Pictures of more than 8 bits: which of their values become black and white.

Thermal cameras give raw counts, a few hundred of 65536 values, of which 8 bits of the whole range
would leave a handful. So a source states its range, ``ir/?range=7200:8800``; a bundle remembers
that of its footage, and other pictures are read alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import AesegError, SourceError

FEW = 64
"""Grey levels: where 8 bits keep no more of a picture that has more bits, that is told."""


@dataclass(frozen=True)
class Levels:
    """What becomes black and what white of pictures that have more than 8 bits.

    Attributes:
        low: This and below is 0.
        high: This and above is 255.
    """

    low: float
    high: float

    def __str__(self) -> str:
        """As it is written behind ``?range=``."""
        return f"{self.low:.10g}:{self.high:.10g}"


def split_levels(uri: str, *, error: type[AesegError] = SourceError) -> tuple[str, Levels | None]:
    """Part ``?range=LOW:HIGH`` from a path; a file of that very name is no range.

    Raises:
        AesegError: Of class ``error``, if it is no range.
    """
    match = re.fullmatch(r"(.+)\?range=([^/?]*)", uri, re.DOTALL)
    if match is None or Path(uri).exists():
        return uri, None
    parts = match[2].split(":")
    try:
        low, high = map(float, parts)
        if not -np.inf < low < high < np.inf:
            raise ValueError
    except ValueError:
        raise error(
            f"{match[2]!r} of {uri} is no range of values",
            fix="Write what is black and what white: ?range=7200:8800.",
        ) from None
    return match[1], Levels(low, high)


def levels_of(provenance: Mapping[str, Any]) -> Levels | None:
    """Give the one range that pictures of a bundle's footage were read by; None without one.

    Footage without any (videos, pictures of 8 bits) does not count.
    """
    try:
        found = {split_levels(name)[1] for name in footage_of(provenance)} - {None}
    except SourceError:
        return None
    return found.pop() if len(found) == 1 else None


def footage_of(provenance: Mapping[str, Any]) -> list[str]:
    """List the sources, with their ranges, that a bundle was calibrated on last."""
    names = provenance.get("calibration_footage") or provenance.get("footage")
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def once(warn: Callable[[str], None]) -> Callable[[str], None]:
    """Pass on the first sentence alone."""
    told: list[str] = []

    def tell(sentence: str) -> None:
        if not told:
            warn(sentence)
        told.append(sentence)

    return tell


def to_bytes(
    image: NDArray[Any], data: bytes, levels: Levels | None, tell: Callable[[str], None] | None
) -> NDArray[np.uint8] | str:
    """Bring values of any depth to 0..255, or say why not; ``data`` is the file they are from."""
    if image.dtype == np.uint8:
        if levels is not None and tell is not None:
            tell(f"has 8 bits, and the range {levels} is for pictures of more: it is left as it is")
        own = _stated_maximum(data)
        return image if own is None else _scaled(image, own)
    if levels is None and image.dtype != np.uint16:
        return f"holds {image.dtype} values, not 8 or 16 bits: state a range, ?range=LOW:HIGH"
    used = levels or _stated_maximum(data) or Levels(0, 65535)
    if tell is not None and (lost := _lost(image, used, stated=levels is not None)):
        tell(lost)
    return _scaled(image, used)


def _scaled(image: NDArray[Any], levels: Levels) -> NDArray[np.uint8]:
    share = (image.astype(np.float64) - levels.low) / (levels.high - levels.low)
    return np.round(255 * np.clip(np.nan_to_num(share), 0, 1)).astype(np.uint8)


def _lost(image: NDArray[Any], levels: Levels, *, stated: bool) -> str:
    """Say what 8 bits leave of a picture, where that is little."""
    if stated:
        outside = float(((image < levels.low) | (image > levels.high)).mean())
        told = f"has {100 * outside:.0f} % of its values outside the range {levels}"
        return f"{told}: they are black or white" if outside > 0.5 else ""
    counts = np.bincount(image.ravel())
    # Dead pixels aside.
    low, high = (int(v) for v in np.searchsorted(counts.cumsum() / image.size, (0.005, 0.995)))
    kept = round(255 * (high - low) / (levels.high - levels.low)) + 1
    values = np.flatnonzero(counts)
    was_8_bits = not (values % 257).any() or not (values % 256).any()
    if kept > FEW or was_8_bits:
        return ""
    have = np.count_nonzero(counts[low : high + 1])
    return (
        f"holds values from {low} to {high} ({have} levels), and 8 bits keep {kept}: say what "
        f"is black and what white, SOURCE?range={low}:{high}"
    )


def _stated_maximum(data: bytes) -> Levels | None:
    """What a PGM or PPM says is white, where that is not all its bits can hold (Netpbm)."""
    note = rb"(?:\s|#[^\n]*\n)+"
    match = re.match(rb"P[2356]" + note + rb"\d+" + note + rb"\d+" + note + rb"(\d+)\s", data)
    white = int(match[1]) if match else 0
    return None if white in (0, 255, 65535) else Levels(0, white)
