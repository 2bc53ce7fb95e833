"""Latency distributions as one picture, where matplotlib is installed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

# Source: P. Tol, Colour Schemes, SRON/EPS/TN/09-002 (2021): "bright" and "muted", told apart by
# people who see colours differently.
_COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#332288", "#999933")
_STYLES = ("-", "--", ":")


def draw_distributions(samples: Mapping[str, Sequence[float]], title: str) -> bytes | None:
    """Draw how many frames took at most how long: one empirical distribution a name.

    Any percentile can be read from such a curve, also the tail; a histogram hides it.

    Args:
        samples: Milliseconds by name; names without samples are left out.
        title: Of the picture.

    Returns:
        A PNG of 900x550 pixels; None where matplotlib (extra ``host``) is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    # No pyplot: it keeps global state and may want a display.
    figure = Figure(figsize=(9, 5.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (name, values) in enumerate((n, v) for n, v in samples.items() if len(v)):
        ordered = np.sort(np.asarray(values, np.float64))
        share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(
            ordered,
            share,
            where="post",
            color=_COLORS[index % len(_COLORS)],
            linestyle=_STYLES[index // len(_COLORS) % len(_STYLES)],
            label=f"{name} (p50 {np.percentile(ordered, 50):.1f}, "
            f"p99 {np.percentile(ordered, 99):.1f} ms)",
        )
    for percent in (50, 95, 99):
        axes.axhline(percent, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_yticks([0, 25, 50, 75, 95, 99])
    axes.set_ylim(0, 101)
    axes.set_xlabel("ms a frame, frame in to full-size label map out")
    axes.set_ylabel("% of the frames")
    axes.set_title(title)
    axes.grid(alpha=0.3, axis="x", which="both")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
