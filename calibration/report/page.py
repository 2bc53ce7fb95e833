"""The report on precisions as one HTML file: no script, and nothing from elsewhere."""

from __future__ import annotations

import base64
import statistics
from importlib import resources

import jinja2
import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import palette
from aeseg_edge.bundle.precisions import INT8, TENSORRT, variant
from aeseg_edge.calibration.report.devices import DEVICES
from aeseg_edge.calibration.report.roofline import roofline
from aeseg_edge.calibration.score.by_precision import PrecisionFigures, PrecisionReport, WorstFrame
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.require import import_cv2
from aeseg_edge.version import __version__
from aeseg_edge.view.draw import as_bgr, mask

BOUND_ON = "orin-nano"
"""Where nothing can be run, the bound stands for the cost; see roofline.py."""

WIDTH = 420
"""Pixels of a picture's width: what a phone shows, and two make a page of a desktop."""

_CHART = 600, 130
"""Width and height of a histogram in the units of page.html."""


def render_page(report: PrecisionReport, *, title: str, made: str, machine: str) -> str:
    """Write the report as HTML, by the template page.html: a whole page, every name escaped.

    ``made`` says when, ``machine`` on what. CalibrationError if a picture cannot be encoded.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "median": statistics.median, "uri": _uri}
    colors = palette(report.bundle.codebook.classes)
    text = (resources.files(__package__) / "page.html").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        report=report,
        title=title,
        made=made,
        machine=machine,
        version=__version__,
        geometry=report.bundle.manifest.geometry,
        compared=[each for each in report.figures if each.agreement is not None],
        bound_on=BOUND_ON,
        bounds=_more_bound(report.bundle) if report.layers else {},
        bars=_bars,
        pictures=lambda worst: _pictures(worst, colors),
    )


def _more_bound(bundle: Bundle) -> dict[str, float]:
    """By how many microseconds the bound on each layer rises from int8 to fp16."""
    device = DEVICES[BOUND_ON]
    beside = variant(INT8, TENSORRT).beside
    int8, half = (roofline(bundle, device, precision) for precision in (INT8, beside))
    return {
        after.layer.name: 1e3 * (after.milliseconds - before.milliseconds)
        for before, after in zip(int8.layers, half.layers, strict=True)
    }


def _bars(figures: PrecisionFigures) -> list[dict[str, str | float]]:
    """Two histograms on one scale of shares: each sums to 1."""
    shares = {
        "agree": figures.agree / max(1, int(figures.agree.sum())),
        "differ": figures.differ / max(1, int(figures.differ.sum())),
    }
    width, height = _CHART
    tallest = max(1e-9, *(float(each.max()) for each in shares.values()))
    step = width / len(figures.agree)
    wide = (step - 2) / 2
    return [
        {
            "kind": kind,
            "left": index * step + 1 + (wide if kind == "differ" else 0),
            "wide": wide,
            "tall": (height - 4) * share / tallest,
        }
        for kind, each in shares.items()
        for index, share in enumerate(each)
    ]


def _pictures(
    worst: WorstFrame, colors: NDArray[np.uint8]
) -> tuple[tuple[NDArray[np.uint8], str], ...]:
    """Pictures of a frame with their captions."""
    base = as_bgr(worst.image)
    differ = worst.expected != worst.found
    where = np.where(differ[..., None], np.array((40, 90, 255), np.uint8), base // 3)
    return (
        (base, f"frame {worst.index}: {_percent(worst.labels_equal)} equal"),
        (mask(worst.expected, colors), "fp32"),
        (mask(worst.found, colors), "this precision"),
        (where.astype(np.uint8), "where they differ"),
    )


def _uri(picture: NDArray[np.uint8]) -> str:
    """Encode a picture into the page."""
    cv2 = import_cv2()
    scale = min(1.0, WIDTH / picture.shape[1])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise CalibrationError(
            "OpenCV cannot write a JPEG picture", fix="Use an OpenCV build with JPEG support."
        )
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
