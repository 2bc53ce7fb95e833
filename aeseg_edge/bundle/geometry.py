"""How a frame of any size becomes the graph's size, and labels come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.errors import FrameError, UsageError
from aeseg_edge.support.require import import_cv2

RESIZE_MODES = ("stretch", "letterbox")
LETTERBOX_VALUE = 114
"""Grey of the bars: near the middle of 0..255, so that no edge is strong."""

LITTLE = 2
"""Bilinear sampling reads every pixel of a side that shrinks by no more than this."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of one exported graph.

    Attributes:
        width: Graph input columns.
        height: Graph input rows.
        channels: Graph input channels.
        resize: ``stretch`` (both axes scaled to fit) or ``letterbox`` (one scale, grey bars).
    """

    width: int
    height: int
    channels: int = 3
    resize: str = "stretch"

    def __post_init__(self) -> None:
        """Refuse unknown modes and empty sizes."""
        if self.resize not in RESIZE_MODES:
            raise UsageError(
                f"resize mode {self.resize!r} is unknown", fix=f"Use one of {RESIZE_MODES}."
            )
        if min(self.width, self.height, self.channels) < 1:
            raise UsageError(
                f"image size {self.width}x{self.height}x{self.channels} is empty",
                fix="Give a width and a height of at least one pixel.",
            )

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Where a frame lies in the graph's input: top, left, rows, columns; all if stretched."""
        if self.resize == "stretch":
            return 0, 0, self.height, self.width
        scale = min(self.height / height, self.width / width)
        rows = max(1, min(self.height, round(height * scale)))
        columns = max(1, min(self.width, round(width * scale)))
        return (self.height - rows) // 2, (self.width - columns) // 2, rows, columns


def check_frame(frame: Any, channels: int) -> NDArray[np.uint8]:
    """Refuse what is not a frame, uint8 [H, W, channels] with at least a pixel: FrameError."""
    if not isinstance(frame, np.ndarray):
        raise FrameError(
            f"a frame is a numpy array, not {type(frame).__name__}",
            fix="Pass uint8 [H, W, C] as OpenCV delivers it.",
        )
    image: NDArray[np.uint8] = frame
    if image.dtype != np.uint8:
        raise FrameError(
            f"frame has dtype {frame.dtype}, not uint8", fix="Convert it to 8 bits first."
        )
    if image.ndim == 2 and channels == 1:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] != channels:
        raise FrameError(
            f"frame has shape {list(frame.shape)}, the bundle wants [H, W, {channels}]",
            fix="Convert grey or alpha images with cv2.cvtColor to the channels of the footage "
            "that the bundle was trained on.",
        )
    if image.size == 0:
        raise FrameError(
            f"frame of shape {list(frame.shape)} has no pixels", fix="Check the source."
        )
    return image


def fit_frame(frame: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Bring a frame, uint8 [H, W, C], to the graph's input size; see ``resize_picture``.

    uint8 [height, width, C], contiguous. The frame itself where it already fits.
    """
    rows, columns = frame.shape[:2]
    if (rows, columns) == (geometry.height, geometry.width):
        return np.ascontiguousarray(frame)
    top, left, height, width = geometry.box(rows, columns)
    picture = resize_picture(frame, width, height)
    if (height, width) == (geometry.height, geometry.width):
        return np.asarray(picture, np.uint8)
    canvas = np.full((geometry.height, geometry.width, frame.shape[2]), LETTERBOX_VALUE, np.uint8)
    canvas[top : top + height, left : left + width] = picture
    return canvas


def resize_picture(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Bring a picture, uint8 [H, W, C], to another size without aliasing.

    Halved (means of 2x2) as long as both sides are twice as long as wanted; then sampled
    bilinearly, or averaged over areas where a side still shrinks by more than ``LITTLE``. That is
    five to eleven times as fast as areas alone, which OpenCV vectorises for 2x2 only.
    """
    cv2 = import_cv2()
    rows, columns = picture.shape[:2]
    while rows >= 2 * height and columns >= 2 * width:
        rows, columns = rows // 2, columns // 2
        picture = resize_image(picture, columns, rows, cv2.INTER_AREA)
    much = rows > LITTLE * height or columns > LITTLE * width
    if much and (rows < height or columns < width):
        # Areas are averaged only where no side grows: the one that shrinks goes first, alone.
        rows, columns = min(rows, height), min(columns, width)
        picture, much = resize_image(picture, columns, rows, cv2.INTER_AREA), False
    return resize_image(picture, width, height, cv2.INTER_AREA if much else cv2.INTER_LINEAR)


def resize_image(image: NDArray[np.uint8], width: int, height: int, how: int) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, C] by OpenCV's interpolation `how`, whose areas take four channels."""
    cv2 = import_cv2()
    parts = [
        cv2.resize(
            np.ascontiguousarray(image[..., start : start + 4]), (width, height), interpolation=how
        ).reshape(height, width, -1)
        for start in range(0, image.shape[2], 4)
    ]
    return np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2), np.uint8)


def fit_labels(
    labels: NDArray[np.uint8], geometry: Geometry, height: int, width: int
) -> NDArray[np.uint8]:
    """Bring labels, uint8 [h, w] over the graph's input, to the frame's own size (nearest)."""
    top, left, rows, columns = geometry.box(height, width)
    if (rows, columns) != (geometry.height, geometry.width):
        # Look each pixel's centre up exactly: cutting the bars off would round to whole cells.
        y = _cells(height, top, rows, labels.shape[0], geometry.height)
        x = _cells(width, left, columns, labels.shape[1], geometry.width)
        found: NDArray[np.uint8] = labels.take(x, axis=1).take(y, axis=0)
        return found
    if labels.shape == (height, width):
        return labels
    cv2 = import_cv2()
    # INTER_NEAREST_EXACT samples at pixel centres; INTER_NEAREST would shift by half a cell.
    resized = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, np.uint8)


def fit_picture(
    picture: NDArray[np.uint8], geometry: Geometry, height: int, width: int
) -> NDArray[np.uint8]:
    """Bring a picture of the graph's input size back to the frame's own size, without its bars.

    uint8 [H, W, C] both; a new array.
    """
    top, left, rows, columns = geometry.box(height, width)
    inside = picture[top : top + rows, left : left + columns]
    return np.array(resize_picture(inside, width, height))


def _cells(size: int, start: int, length: int, cells: int, total: int) -> NDArray[np.intp]:
    """Label cell of each pixel along one axis of a letterboxed frame."""
    centres = (np.arange(size) + 0.5) * length / size + start
    return np.minimum((centres * cells / total).astype(np.intp), cells - 1)


def check_region(mask: Any) -> NDArray[np.uint8]:
    """Refuse, by UsageError, a region of interest that is no mask, or one of 0 and 1.

    uint8 [h, w] or [h, w, C], above 127 in any channel inside; bool is taken too.
    """
    region = np.asarray(mask)
    if region.dtype == np.bool_:
        region = region.astype(np.uint8) * np.uint8(255)
    if region.dtype != np.uint8 or region.ndim not in (2, 3) or not region.size:
        raise UsageError(
            f"the region of interest is {region.dtype} {list(region.shape)}",
            fix="Give uint8 [h, w]: 255 inside, 0 outside.",
        )
    if 0 < region.max() <= 127:
        raise UsageError(
            f"the region of interest has nothing inside: its largest value is {region.max()}",
            fix="Give 255 inside and 0 outside: what is above 127 is inside.",
        )
    return np.asarray(region, np.uint8)


def fit_region(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.bool_]:
    """Bring a region of interest to the frame's size: bool [height, width], True outside.

    The mask is uint8 [h, w] or [h, w, C]; above 127 in any channel is inside.
    """
    flat = mask.max(axis=2) if mask.ndim == 3 else mask
    if flat.shape != (height, width):
        cv2 = import_cv2()
        flat = cv2.resize(flat, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(flat <= 127)


def apply_region(labels: NDArray[np.uint8], outside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Set labels, uint8 [H, W], to void where `outside`, bool [H, W], says so; a new array."""
    result = labels.copy()
    result[outside] = VOID
    return result
