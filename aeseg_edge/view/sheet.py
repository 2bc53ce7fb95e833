"""The contact sheet: what each cluster looks like, so that a person can name it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.errors import SourceError
from aeseg_edge.support.require import import_cv2
from aeseg_edge.view.draw import as_bgr, drawable, write

if TYPE_CHECKING:
    from aeseg_edge.segment.segmenter import Segmenter

Picture = NDArray[np.uint8]

_CELL = 132
_GAP = 8
_TEXT = 190
_PAPER = (250, 250, 250)
_DARK = (40, 40, 40)
_FADED = (120, 120, 120)


@dataclass(frozen=True)
class Crop:
    """A piece of a frame in which one cluster is large and central.

    ``image``: uint8 [S, S, 3], BGR; what is not of the cluster is greyed. ``weight``: share of
    the window that the cluster covers, its centre counting most, 0..1.
    """

    image: Picture
    weight: float


@dataclass(frozen=True)
class Gallery:
    """What was found of each cluster in so many frames.

    ``crops``: one tuple a cluster, best first; empty where the cluster never occurred.
    ``shares``: float64 [K], of all pixels.
    """

    crops: tuple[tuple[Crop, ...], ...]
    shares: NDArray[np.float64]
    frames: int


def collect(segmenter: Segmenter, frames: Iterable[Picture], *, count: int = 6) -> Gallery:
    """Look for the best crops of each cluster, at most one of each from a frame.

    Frames are uint8 [H, W, C], any sizes. A window's weight is the Gaussian-weighted share of
    the cluster in it, which prefers places where the cluster is large and in the middle.
    Raises SourceError if there are no frames, FrameError if one does not fit the bundle.
    """
    clusters = segmenter.codebook.clusters
    best: list[list[Crop]] = [[] for _ in range(clusters)]
    pixels = np.zeros(clusters, np.int64)
    seen = 0
    for frame in frames:
        found = segmenter.clusters(frame)
        seen += 1
        here = np.bincount(found.ravel(), minlength=clusters)
        pixels += here
        for cluster in np.flatnonzero(here):
            crop = _best_window(as_bgr(frame), found == cluster, best[cluster], count)
            if crop is not None:
                best[cluster] = sorted([*best[cluster], crop], key=lambda c: -c.weight)[:count]
    if not seen:
        raise SourceError("the source has no frames", fix="Give a video or a folder of images.")
    return Gallery(tuple(map(tuple, best)), pixels / pixels.sum(), seen)


def draw(gallery: Gallery, codebook: Codebook, *, count: int = 6) -> Picture:
    """Draw one line a cluster: its number, colour, name and share, and ``count`` crops.

    Returns uint8 [H, W, 3], BGR; from eight clusters on in two columns, above 40 in three.
    """
    cv2 = import_cv2()
    clusters = codebook.clusters
    columns = 1 if clusters < 8 else 2 if clusters <= 40 else 3
    rows = -(-clusters // columns)
    width = _TEXT + count * (_CELL + _GAP) + 3 * _GAP
    height = _CELL + _GAP
    sheet = np.full((rows * height + _GAP, columns * width, 3), _PAPER, np.uint8)
    for cluster in range(clusters):
        column, row = divmod(cluster, rows)
        left, top = column * width + 2 * _GAP, row * height + _GAP
        item = codebook.class_of(int(codebook.remap[cluster]))
        color = (0, 0, 0) if item is None else item.color[::-1]
        name = "void" if item is None else drawable(item.name)
        cv2.rectangle(sheet, (left, top), (left + 14, top + _CELL - 1), color, -1)
        write(sheet, f"{cluster}", (left + 26, top + 42), 1.1, _DARK)
        write(
            sheet, name if len(name) <= 18 else f"{name[:17]}~", (left + 26, top + 72), 0.5, _DARK
        )
        share = 100 * float(gallery.shares[cluster])
        figure = f"{share:.1f} % of pixels" if share else "not in these frames"
        write(sheet, figure, (left + 26, top + 96), 0.42, _FADED)
        for place, crop in enumerate(gallery.crops[cluster][:count]):
            x = left + _TEXT + place * (_CELL + _GAP)
            shrinks = crop.image.shape[0] > _CELL
            how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            sheet[top : top + _CELL, x : x + _CELL] = cv2.resize(
                crop.image, (_CELL, _CELL), interpolation=how
            )
    return sheet


def _best_window(
    image: Picture, inside: NDArray[np.bool_], rivals: list[Crop], count: int
) -> Crop | None:
    """The heaviest window of one frame; None where ``count`` rivals are heavier."""
    cv2 = import_cv2()
    height, width = inside.shape
    side = max(2, min(height, width) // 3)
    # A coarse map is as good for finding the place, and 16 times as fast.
    step = max(1, side // 24)
    small = np.ascontiguousarray(inside[::step, ::step], np.float32)
    sigma = max(0.5, side / step / 4)
    weights = cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    row, column = np.unravel_index(int(weights.argmax()), weights.shape)
    weight = min(1.0, float(weights[row, column]))
    if len(rivals) >= count and weight <= rivals[-1].weight:
        return None
    top = int(np.clip(row * step - side // 2, 0, height - side))
    left = int(np.clip(column * step - side // 2, 0, width - side))
    window = (slice(top, top + side), slice(left, left + side))
    crop, mask = image[window], inside[window]
    grey = np.repeat(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)[..., None], 3, axis=2)
    faded = np.clip(grey * 0.35 + 150, 0, 255).astype(np.uint8)
    return Crop(np.where(mask[..., None], crop, faded), weight)
