"""Pictures of results: overlay, mask, legend, contact sheet. BGR, as OpenCV has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.codebook import VOID, ClassInfo
from aeseg_edge.errors import UsageError
from aeseg_edge.geometry import import_cv2

if TYPE_CHECKING:
    from aeseg_edge.segmenter import Segmentation

VIEWS = ("overlay", "mask", "both")

Picture = NDArray[np.uint8]

_INK = (235, 235, 235)
_DIM = (120, 120, 120)
_PANEL = (28, 28, 28)


def render(
    image: Picture,
    result: Segmentation,
    *,
    view: str = "overlay",
    alpha: float = 0.5,
    legend: bool = True,
) -> Picture:
    """Draw one result.

    The picture's size depends on the frame's size and the classes only, so that every
    frame of a video has the same.

    Args:
        image: uint8 [H, W, C], BGR first; the frame.
        result: Its segmentation.
        view: ``overlay``, ``mask`` or ``both`` (side by side).
        alpha: Strength of the colours in the overlay, 0..1.
        legend: Add a panel with colours, names and shares on the right.

    Returns:
        uint8 [H, W', 3].

    Raises:
        UsageError: If the view is unknown.
    """
    if view not in VIEWS:
        raise UsageError(f"view {view!r} is unknown", fix=f"Use one of {', '.join(VIEWS)}.")
    base = as_bgr(image)
    parts = []
    if view in ("overlay", "both"):
        parts.append(overlay(base, result.labels, result.palette, alpha=alpha))
    if view in ("mask", "both"):
        parts.append(mask(result.labels, result.palette))
    if legend:
        parts.append(legend_panel(result.classes, result.shares, height=base.shape[0]))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def as_bgr(image: Picture) -> Picture:
    """Give the three channels to draw on.

    Args:
        image: uint8 [H, W, C]; grey is repeated, a fourth channel is left out.

    Returns:
        uint8 [H, W, 3].
    """
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def mask(labels: Picture, palette: Picture) -> Picture:
    """Colour a label map.

    Args:
        labels: uint8 [H, W].
        palette: uint8 [256, 3].

    Returns:
        uint8 [H, W, 3]; void is black.
    """
    return palette[labels]


def overlay(image: Picture, labels: Picture, palette: Picture, *, alpha: float = 0.5) -> Picture:
    """Blend a label map over its frame, with a thin line between regions.

    Args:
        image: uint8 [H, W, 3].
        labels: uint8 [H, W].
        palette: uint8 [256, 3].
        alpha: Strength of the colours, 0..1. Void keeps the plain image.

    Returns:
        uint8 [H, W, 3].
    """
    cv2 = import_cv2()
    blended = np.asarray(
        cv2.addWeighted(image, 1.0 - alpha, mask(labels, palette), alpha, 0.0), np.uint8
    )
    borders = np.zeros(labels.shape, bool)
    borders[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    borders[1:] |= labels[1:] != labels[:-1]
    # Half as bright: visible on any colour, and thin enough for small regions.
    blended[borders] >>= 1
    void = labels == VOID
    if void.any():
        blended[void] = image[void]
    return blended


def legend_panel(
    classes: Sequence[ClassInfo], shares: Mapping[int, float], *, height: int
) -> Picture:
    """Draw colours, names and area shares of the classes.

    The layout follows from the classes and the height alone. Classes that the frame lacks
    are dimmed. Where there are more than fit in three columns, the last line says how many
    are left out.

    Args:
        classes: Every class of the bundle.
        shares: Share of the frame by class id, 0..1.
        height: Rows of the panel.

    Returns:
        uint8 [height, width, 3].
    """
    cv2 = import_cv2()
    font, scale, thick = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, min(1.0, height / 900)), 1
    line = round(34 * scale) + 2
    rows = max(1, (height - line // 2) // line)
    columns = min(3, -(-len(classes) // rows))
    shown = list(classes[: rows * columns])
    hidden = len(classes) - len(shown)
    if hidden:
        shown.pop()
    texts = [item.name if len(item.name) <= 18 else item.name[:17] + "~" for item in shown]
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
        cv2.putText(
            panel, text, (left + swatch + line // 3, base), font, scale, ink, thick, cv2.LINE_AA
        )
        figure = f"{100 * share:.0f} %" if share >= 0.01 else ("<1 %" if share > 0 else "-")
        width = cv2.getTextSize(figure, font, scale, thick)[0][0]
        right = left + column_width - line // 2 - width
        cv2.putText(panel, figure, (right, base), font, scale, ink, thick, cv2.LINE_AA)
    if hidden:
        base = (rows - 1) * line + line // 3 + round(swatch * 0.85)
        left = (columns - 1) * column_width + line // 3
        cv2.putText(panel, f"+ {hidden + 1} more", (left, base), font, scale, _DIM, thick)
    return panel


def contact_sheet(
    rows: Sequence[Sequence[Picture]], titles: Sequence[str], *, width: int = 360
) -> Picture:
    """Lay pictures out in rows under column titles.

    Args:
        rows: Each row has one picture a column, uint8 [H, W, 3] or [H, W]; any sizes of one
            aspect.
        titles: One a column.
        width: Columns of pixels of each picture.

    Returns:
        uint8 [H', W', 3].

    Raises:
        UsageError: If rows and titles have different lengths, or there is nothing to show.
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
        cv2.putText(
            sheet,
            title,
            (left + 2, head - 11),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.55,
            (40, 40, 40),
            1,
            cv2.LINE_AA,
        )
        for index, row in enumerate(rows):
            picture = as_bgr(row[column])
            how = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_NEAREST
            top = head + index * (height + gap)
            sheet[top : top + height, left : left + width] = cv2.resize(
                picture, (width, height), interpolation=how
            )
    return sheet
