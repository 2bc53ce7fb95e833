"""Pictures of results: overlay, mask, legend, contact sheet. BGR, as OpenCV has it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import VOID, ClassInfo
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.errors import UsageError
from aeseg_edge.support.require import import_cv2

if TYPE_CHECKING:
    from aeseg_edge.segment.decoder import Decoding
    from aeseg_edge.segment.result import Segmentation

VIEWS = ("overlay", "mask", "both", "frame")

DECODED_VIEWS = ("decoded", "error")
"""Views that need a segmenter with a decoder."""

Picture = NDArray[np.uint8]

_INK = (235, 235, 235)
_DIM = (120, 120, 120)
_PANEL = (28, 28, 28)
_SMALLEST_LINE = 13
"""Rows of a line in the legend below which OpenCV's letters cannot be read."""


def render(
    image: Picture,
    result: Segmentation,
    *,
    view: str = "overlay",
    alpha: float = 0.5,
    legend: bool = True,
    size: tuple[int, int] | None = None,
) -> Picture:
    """Draw one result: uint8 [H, W', 3].

    The picture's size depends on ``size`` (the frame's own where it is None) and the classes
    only, so that every frame of a video has the same.

    Args:
        image: uint8 [H, W, C], BGR first; the frame.
        result: Its segmentation.
        view: ``overlay``, ``mask`` or ``both`` (side by side); ``frame`` (as it came, never with
            a legend); ``decoded`` (the segmented image that the decoder draws) or ``error`` (the
            reconstruction error as a heat map).
        alpha: Strength of the colours in the overlay, 0..1.
        legend: Add a panel with colours, names and shares on the right.
        size: Rows and columns to draw the frame at, with black bars where its aspect is
            another.

    Raises:
        UsageError: If the view is unknown, or needs a decoder that the segmenter was not
            opened with.
    """
    if view not in VIEWS + DECODED_VIEWS:
        raise UsageError(
            f"view {view!r} is unknown", fix=f"Use one of {', '.join(VIEWS + DECODED_VIEWS)}."
        )
    decoding = result.decoding
    if view in DECODED_VIEWS:
        if decoding is None:
            raise UsageError(
                f"the view {view!r} needs a decoder",
                fix="Open the segmenter with one: Segmenter.load(..., decoder=True).",
            )
        parts = [as_bgr(decoding.segmented()) if view == "decoded" else _heat(decoding.heat(image))]
    else:
        parts = [as_bgr(image)] if view == "frame" else []
        if view in ("overlay", "both"):
            parts.append(overlay(as_bgr(image), result.labels, result.palette, alpha=alpha))
        if view in ("mask", "both"):
            parts.append(mask(result.labels, result.palette))
    if size is not None:
        parts = [fit(part, *size) for part in parts]
    height = parts[0].shape[0]
    legend = legend and view != "frame"
    if legend and view == "error" and decoding is not None:
        parts.append(_heat_panel(decoding, image, height=height))
    elif legend:
        parts.append(legend_panel(result.classes, result.shares, height=height))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def write(
    picture: Picture, text: str, place: tuple[int, int], scale: float, ink: tuple[int, int, int]
) -> None:
    """Write onto a picture; the place is the foot of the first letter."""
    cv2 = import_cv2()
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)


def _heat(levels: Picture) -> Picture:
    cv2 = import_cv2()
    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), np.uint8)


def _heat_panel(decoding: Decoding, image: Picture, *, height: int) -> Picture:
    """Draw the heat map's scale, marked with what calibration frames had and this one has."""
    cv2 = import_cv2()
    scale = float(np.clip(height / 720, 0.36, 0.8))
    unit = round(40 * scale)
    bar, top, bottom = unit, 2 * unit, height - unit
    panel = np.full((height, 7 * unit, 3), _PANEL, np.uint8)
    levels = np.linspace(255, 0, max(1, bottom - top)).round().astype(np.uint8)[:, None]
    panel[top : top + len(levels), unit // 2 : unit // 2 + bar] = _heat(
        np.repeat(levels, bar, axis=1)
    )
    found = decoding.error(image)
    this = "this frame: " + ("-" if found is None else f"{found:.1f}")
    write(panel, "error, grey levels", (unit // 2, round(0.7 * unit)), scale, _DIM)
    write(panel, this, (unit // 2, round(1.5 * unit)), scale, _INK)
    parts = decoding.decoder.parts
    for name, value in (("median", parts.median), ("p99", parts.p99)):
        row = round(bottom - (bottom - top) * value / decoding.full_scale)
        right = unit // 2 + bar
        cv2.line(panel, (right, row), (right + unit // 3, row), _INK, 1)
        place = right + unit // 2, row + round(6 * scale)
        write(panel, f"{name} {value:.1f}", place, scale, _INK)
    return panel


def as_bgr(image: Picture) -> Picture:
    """Give the three channels to draw on: uint8 [H, W, C] becomes uint8 [H, W, 3].

    Grey is repeated, as the first of two channels is; what comes after three is left out.
    """
    if image.ndim == 2 or image.shape[2] < 3:
        first = image if image.ndim == 2 else image[..., 0]
        return np.repeat(first[..., None], 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def mask(labels: Picture, palette: Picture) -> Picture:
    """Colour a label map, uint8 [H, W], by uint8 [256, 3]: uint8 [H, W, 3]; void is black."""
    # 20 times as fast as palette[labels], with the same result.
    return np.asarray(import_cv2().applyColorMap(labels, palette.reshape(256, 1, 3)), np.uint8)


def overlay(image: Picture, labels: Picture, palette: Picture, *, alpha: float = 0.5) -> Picture:
    """Blend a label map over its frame, with a thin line between regions: uint8 [H, W, 3].

    Void keeps the plain image.
    """
    cv2 = import_cv2()
    blended = cv2.addWeighted(image, 1.0 - alpha, mask(labels, palette), alpha, 0.0)
    borders = np.zeros(labels.shape, np.uint8)
    borders[:, 1:] = labels[:, 1:] != labels[:, :-1]
    borders[1:] |= labels[1:] != labels[:-1]
    # Half as bright: visible on any colour, and thin enough for small regions. OpenCV copies
    # under a mask 20 times as fast as numpy does.
    cv2.copyTo(cv2.convertScaleAbs(blended, alpha=0.5), borders, blended)
    cv2.copyTo(image, np.asarray(labels == VOID, np.uint8), blended)
    return np.asarray(blended, np.uint8)


def fit(picture: Picture, height: int, width: int) -> Picture:
    """Scale uint8 [H, W, 3] into a size, centred on black where its aspect is another.

    The picture itself where it has that size.
    """
    if picture.shape[:2] == (height, width):
        return picture
    cv2 = import_cv2()
    box = Geometry(width, height, resize="letterbox").box(*picture.shape[:2])
    top, left, rows, columns = box
    shrinks = rows < picture.shape[0] or columns < picture.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + rows, left : left + columns] = cv2.resize(
        picture, (columns, rows), interpolation=how
    )
    return canvas


def even(picture: Picture) -> Picture:
    """Repeat the last row and column of odd sides: encoders of YUV 4:2:0 want even ones."""
    down, right = picture.shape[0] % 2, picture.shape[1] % 2
    if not down and not right:
        return picture
    cv2 = import_cv2()
    padded = cv2.copyMakeBorder(picture, 0, down, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(padded, np.uint8)


def encode(suffix: str, picture: Picture, options: Sequence[int] = ()) -> bytes | None:
    """Write a picture as a file of some format; None where that cannot hold it."""
    cv2 = import_cv2()
    try:
        done, data = cv2.imencode(suffix, picture, list(options))
    except cv2.error:
        # OpenCV 4 raises where OpenCV 5 says False; its text is about its own source code.
        return None
    return bytes(data) if done else None


def legend_panel(
    classes: Sequence[ClassInfo], shares: Mapping[int, float], *, height: int
) -> Picture:
    """Draw colours, names and area shares (0..1, by class id): uint8 [height, width, 3].

    The layout follows from the classes and the height alone: letters shrink until all
    classes fit in one column, or are as small as can be read; then there are up to three
    columns. Classes that the frame lacks are dimmed. Where there are more than fit, the last
    line says how many are left out.
    """
    cv2 = import_cv2()
    font, thick = cv2.FONT_HERSHEY_SIMPLEX, 1
    line = min(round(34 * min(1.0, height / 900)) + 2, int(height / (len(classes) + 0.5)))
    line = max(_SMALLEST_LINE, line)
    scale = (line - 2) / 34
    rows = max(1, (height - line // 2) // line)
    columns = max(1, min(3, -(-len(classes) // rows)))
    if len(classes) <= rows * columns:
        rows = max(1, -(-len(classes) // columns))
    shown = list(classes[: rows * columns])
    hidden = len(classes) - len(shown)
    if hidden:
        shown.pop()
    names = [drawable(item.name) for item in shown]
    texts = [name if len(name) <= 18 else name[:17] + "~" for name in names]
    widest = max((cv2.getTextSize(t, font, scale, thick)[0][0] for t in texts), default=0)
    figures = cv2.getTextSize("100 %", font, scale, thick)[0][0]
    swatch = round(line * 0.7)
    column_width = swatch + widest + figures + round(3 * line * 0.6)
    panel = np.full((height, column_width * columns + line // 2, 3), _PANEL, np.uint8)
    for index, (item, text) in enumerate(zip(shown, texts, strict=True)):
        column, row = divmod(index, rows)
        left, top = column * column_width + line // 3, row * line + line // 3
        share = shares.get(item.id, 0.0)
        ink = _INK if share > 0 else _DIM
        color = item.color[::-1] if share > 0 else tuple(v // 3 for v in item.color[::-1])
        cv2.rectangle(panel, (left, top), (left + swatch, top + swatch), color, -1)
        base = top + round(swatch * 0.85)
        write(panel, text, (left + swatch + line // 3, base), scale, ink)
        figure = f"{100 * share:.0f} %" if share >= 0.01 else ("<1 %" if share > 0 else "-")
        width = cv2.getTextSize(figure, font, scale, thick)[0][0]
        right = left + column_width - line // 2 - width
        write(panel, figure, (right, base), scale, ink)
    if hidden:
        base = (rows - 1) * line + line // 3 + round(swatch * 0.85)
        left = (columns - 1) * column_width + line // 3
        write(panel, f"+ {hidden + 1} more", (left, base), scale, _DIM)
    return panel


def drawable(text: str) -> str:
    """Give the letters that OpenCV can draw: version 4 has ASCII only, 5 has all.

    Accents go (Unicode's NFKD), and what has no base letter becomes one question mark.
    """
    if hasattr(import_cv2(), "FontFace"):
        return text
    text = text.replace("\u00df", "ss")
    base = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return base.encode("ascii", "replace").decode("ascii")


def contact_sheet(
    rows: Sequence[Sequence[Picture]], titles: Sequence[str], *, width: int = 360
) -> Picture:
    """Lay pictures out in rows under column titles, each ``width`` wide: uint8 [H', W', 3].

    They are uint8 [H, W, 3] or [H, W], any sizes of one aspect. Raises UsageError if rows and
    titles have different lengths, or there is nothing to show.
    """
    cv2 = import_cv2()
    if not rows or any(len(row) != len(titles) for row in rows):
        raise UsageError(
            f"rows of {[len(row) for row in rows]} pictures do not fit {len(titles)} titles",
            fix="Give one picture a title in every row.",
        )
    gap, head = 10, 34
    aspect = rows[0][0].shape[0] / rows[0][0].shape[1]
    height = round(width * aspect)
    sheet = np.full(
        (head + len(rows) * (height + gap), gap + len(titles) * (width + gap), 3), 250, np.uint8
    )
    for column, title in enumerate(titles):
        left = gap + column * (width + gap)
        write(sheet, title, (left + 2, head - 11), 0.55, (40, 40, 40))
        for index, row in enumerate(rows):
            picture = as_bgr(row[column])
            how = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_NEAREST
            top = head + index * (height + gap)
            sheet[top : top + height, left : left + width] = cv2.resize(
                picture, (width, height), interpolation=how
            )
    return sheet
