"""How labels are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from aeseg_edge.support.options import option, share
from aeseg_edge.view.draw import DECODED_VIEWS, VIEWS


@dataclass(frozen=True)
class DrawSettings:
    """Arguments of ``open_sinks``."""

    view: str = option(
        "overlay",
        choices=VIEWS + DECODED_VIEWS,
        help="overlay: colours over the frame (default); mask: colours alone; both: side by side; "
        "frame: the frame as it came, to record footage; "
        "decoded: each latent replaced by its cluster's mean and drawn by the decoder; "
        "error: reconstruction error as a heat map, also a figure a line in json:FILE (both "
        "need a bundle made with --with-decoder, and run on ONNX Runtime)",
    )
    alpha: float = option(
        0.5, parse=share, help="strength of the colours, 0..1 (default {default})"
    )
    legend: bool = option(True, "--no-legend", off=True, help="leave the legend out")
