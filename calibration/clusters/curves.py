"""A choice as a curve: JSON always, a picture where matplotlib is installed."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aeseg_edge.errors import AesegError
from aeseg_edge.support.files import write_bytes
from aeseg_edge.support.require import optional

_log = logging.getLogger(__name__)

_COLORS = ("#332288", "#CC6677", "#117733")
_MARKERS = ("o", "s", "^")


@dataclass(frozen=True)
class Curve:
    """What was looked at before a number was chosen.

    ``name`` is the last but one part of the files' names; ``lines`` hold a measured value, or None,
    for each of ``values``; ``thresholds`` what a line had to reach; ``data`` is the JSON.
    """

    name: str
    title: str
    axis: str
    values: Sequence[int]
    lines: Mapping[str, Sequence[float | None]]
    chosen: int
    thresholds: Mapping[str, float]
    data: Mapping[str, Any]


def write_curve(curve: Curve, bundle: Path) -> list[Path]:
    """Write ``BUNDLE.NAME.json`` and ``BUNDLE.NAME.png`` beside a bundle, and name the files.

    Without matplotlib (extra ``host``) there is no picture, and a notice says so.
    """
    target = bundle.with_name(f"{bundle.stem}.{curve.name}.json")
    text = json.dumps(dict(curve.data), indent=1, allow_nan=False) + "\n"
    write_bytes(target, text.encode(), error=AesegError)
    picture = draw_curve(curve)
    if picture is None:
        _log.info("no picture of the curve: matplotlib is not installed (extra host)")
        return [target]
    image = target.with_suffix(".png")
    write_bytes(image, picture, error=AesegError)
    return [target, image]


def draw_curve(curve: Curve) -> bytes | None:
    """Draw the lines as a PNG of 800x500 pixels; None where matplotlib is not installed."""
    plot = optional("matplotlib.figure")
    if plot is None:
        return None
    # No pyplot: it keeps global state and may want a display.
    figure = plot.Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(curve.chosen, color="#999933", linewidth=6, alpha=0.4)
    for (name, line), color, marker in zip(curve.lines.items(), _COLORS, _MARKERS, strict=False):
        shown = [(x, y) for x, y in zip(curve.values, line, strict=True) if y is not None]
        axes.plot(*zip(*shown, strict=True), marker=marker, color=color, label=name) if shown else 0
        if name in curve.thresholds:
            axes.axhline(curve.thresholds[name], color=color, linestyle=":", linewidth=1)
    axes.set_title(f"{curve.title}: {curve.chosen}")
    axes.set_xlabel(curve.axis)
    axes.set_xticks([curve.values[0], curve.chosen, curve.values[-1]])
    axes.grid(alpha=0.3)
    axes.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
