"""The report on precisions as one HTML file: no script, and nothing from elsewhere."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import palette
from aeseg_edge.bundle.variants import INT8, ONNXRUNTIME, TENSORRT, variant
from aeseg_edge.calibration.report.roofline import DEVICES, roofline
from aeseg_edge.calibration.score.precisions import PrecisionFigures, PrecisionReport, WorstFrame
from aeseg_edge.calibration.score.sensitivity import Sensitivity
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.require import import_cv2
from aeseg_edge.version import __version__
from aeseg_edge.view.draw import as_bgr, mask

BOUND_ON = "orin-nano"
"""Where nothing can be run, the bound stands for the cost; see roofline.py."""

WIDTH = 420
"""Pixels of a picture's width: what a phone shows, and two make a page of a desktop."""

_STYLE = """
:root { --ink: #1d2329; --dim: #5c6670; --page: #fbfbf9; --panel: #fff; --line: #d9dcdf;
  --good: #2c7a5b; --bad: #c2512f; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --dim: #9aa4ae; --page: #15181b;
  --panel: #1d2125; --line: #363c42; --good: #57b58d; --bad: #ec8a63; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
p, figcaption, small { color: var(--dim); }
p { max-width: 46rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th { color: var(--dim); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
.low { color: var(--bad); font-weight: 600; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .5em; border: 1px solid var(--line); vertical-align: -1px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: .6rem; margin: .3rem 0 1rem; }
figure { margin: 0; }
figure img { width: 100%; display: block; border-radius: 4px; }
figcaption { font-size: .85rem; }
svg { width: 100%; max-width: 40rem; height: auto; display: block; }
.agree { fill: var(--good); } .differ { fill: var(--bad); }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
"""


def render_page(report: PrecisionReport, *, title: str, made: str, machine: str) -> str:
    """Write the report as HTML.

    Args:
        report: What was measured.
        title: Name of the bundle.
        made: When.
        machine: What it was measured on.

    Returns:
        A whole page. Every name in it is escaped.

    Raises:
        CalibrationError: If a picture cannot be encoded.
    """
    compared = [each for each in report.figures if each.agreement is not None]
    emulated = any(each.emulated for each in report.figures)
    geometry = report.bundle.manifest.geometry
    parts = [
        f"<h1>{escape(title)}: precisions against fp32</h1>",
        f"<p>{report.frames} frames of {escape(report.source)} at {geometry.width}x"
        f"{geometry.height}; {escape(made)}; {escape(machine)}.</p>",
        _overview(report),
    ]
    if emulated:
        parts.append(
            "<p>Graphs made for TensorRT were run through ONNX Runtime on this CPU, as they are "
            "written (emulated): their labels are an estimate of what a device computes, their "
            "milliseconds say nothing about a device. Nothing was run on a GPU.</p>"
        )
    parts += [_layers(each, report.bundle) for each in report.layers]
    parts.append("<h2>Where labels differ</h2>")
    parts.append(
        "<p>The margin is the best score less the second best of fp32. Labels that differ should "
        "lie where it is small: there, two clusters are all but equally near.</p>"
    )
    parts += [_histogram(each, report.edges) for each in compared]
    parts.append("<h2>Worst frames</h2>")
    colors = palette(report.bundle.codebook.classes)
    parts += [_worst(each, colors) for each in compared]
    parts.append(_classes(report, compared))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: precisions</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n<p><small>aeseg_edge {escape(__version__)}</small></p>\n</body></html>\n"
    )


def _overview(report: PrecisionReport) -> str:
    rows = []
    for each in report.figures:
        size = report.bundle.manifest.files[each.entry.graph].size
        cells = [escape(each.title), f"{size / 1e6:.2f} MB"]
        found = each.agreement
        if found is None:
            cells += ["reference", "", "", ""]
        else:
            low = "" if each.entry.recommended else " class=low"
            cells += [
                f"<span{low}>{_percent(found.labels_equal)}</span>",
                _percent(statistics.median(each.shares)),
                f"{_percent(found.worst_labels_equal)} (frame {found.worst_frame})",
                "-" if found.minimum_iou is None else _percent(found.minimum_iou),
            ]
        cells.append(f"{each.milliseconds:.2f}" + (" emulated" if each.emulated else ""))
        rows.append(cells)
    heads = ["graph", "size", "labels equal", "median frame", "worst frame", "lowest IoU"]
    table = _table([*heads, "inference, ms"], rows)
    below = [each for each in report.figures if not each.entry.recommended]
    notes = "".join(
        f"<p class=low>{escape(each.title)}: not recommended; {escape(each.entry.note)}</p>"
        for each in below
    )
    return f"<h2>Agreement and latency</h2>{table}{notes}"


def _layers(found: Sensitivity, bundle: Bundle) -> str:
    cpu = found.backend == ONNXRUNTIME
    made = "ONNX Runtime" if cpu else "TensorRT, emulated"
    wider = "float32" if cpu else "fp16"
    bounds = {} if cpu else _more_bound(bundle)
    rows = [
        [
            escape(each.name),
            _percent(each.labels_equal),
            f"{100 * each.gain:+.3f} points",
            f"{100 * each.operations:.1f} %",
            f"{each.more_bytes / 1e3:+.0f} kB",
            f"{each.milliseconds - found.milliseconds:+.2f}"
            if cpu
            else f"{bounds.get(each.name, 0.0):+.1f}",
        ]
        for each in found.ranked()
    ]
    last = "inference, ms" if cpu else f"bound on {BOUND_ON}, us"
    heads = ["left out of int8", "labels equal", "buys", "of the operations", "weights"]
    return (
        f"<h2>Int8 layer by layer: {made}</h2><p>Agreement with fp32 on {found.frames} frames "
        f"with all in int8: {_percent(found.labels_equal)}. Each row leaves one convolution in "
        f"{wider}. <code>aeseg calibrate --int8-exclude NAME</code> does it for good, "
        "<code>auto</code> chooses.</p>" + _table([*heads, last], rows)
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


def _histogram(figures: PrecisionFigures, edges: NDArray[np.float64]) -> str:
    """Two histograms on one scale of shares: each sums to 1."""
    width, height, foot = 600, 130, 20
    bars = []
    step = width / len(edges)
    tallest = max(_shares(figures.agree).max(), _shares(figures.differ).max(), 1e-9)
    for number, (counts, name) in enumerate(((figures.agree, "agree"), (figures.differ, "differ"))):
        for index, share in enumerate(_shares(counts)):
            tall = (height - 4) * share / tallest
            left = index * step + 1 + number * (step - 2) / 2
            bars.append(
                f'<rect class="{name}" x="{left:.1f}" y="{height - tall:.1f}" '
                f'width="{(step - 2) / 2:.1f}" height="{tall:.1f}"/>'
            )
    ends = (
        f'<text x="0" y="{height + 15}">0</text>'
        f'<text x="{width}" y="{height + 15}" text-anchor="end">{edges[-1]:.3g} and above</text>'
    )
    differ, total = int(figures.differ.sum()), int(figures.agree.sum() + figures.differ.sum())
    label = f"Margin of fp32 where {figures.title} agrees and where it differs"
    return (
        f"<h3>{escape(figures.title)}</h3>"
        f'<svg viewBox="0 0 {width} {height + foot}" role="img" aria-label="{escape(label)}">'
        f"{''.join(bars)}{ends}</svg>"
        f"<p><small>Margin where labels agree (green, {total - differ} places) and where they "
        f"differ (orange, {differ}); each in shares of its own.</small></p>"
    )


def _worst(figures: PrecisionFigures, colors: NDArray[np.uint8]) -> str:
    rows = "".join(_frame(each, colors) for each in figures.worst)
    return f"<h3>{escape(figures.title)}</h3>{rows}"


def _frame(worst: WorstFrame, colors: NDArray[np.uint8]) -> str:
    base = as_bgr(worst.image)
    differ = worst.expected != worst.found
    where = np.where(differ[..., None], np.array((40, 90, 255), np.uint8), base // 3)
    pictures = (
        (base, f"frame {worst.index}: {_percent(worst.labels_equal)} equal"),
        (mask(worst.expected, colors), "fp32"),
        (mask(worst.found, colors), "this precision"),
        (where.astype(np.uint8), "where they differ"),
    )
    shown = "".join(
        f'<figure><img src="{_uri(picture)}" alt="{escape(text)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for picture, text in pictures
    )
    return f'<div class="pictures">{shown}</div>'


def _classes(report: PrecisionReport, compared: Sequence[PrecisionFigures]) -> str:
    rows = []
    for item in report.bundle.codebook.classes:
        red, green, blue = item.color
        found = [each.agreement.iou[item.id] for each in compared if each.agreement is not None]
        if any(value is not None for value in found):
            rows.append(
                [
                    f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'
                    f"{escape(item.name)}",
                    *("-" if value is None else _percent(value) for value in found),
                ]
            )
    heads = ["class", *(escape(each.title) for each in compared)]
    return "<h2>IoU with fp32, class by class</h2>" + _table(heads, rows)


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay cells out; they are HTML already."""
    head = "".join(f"<th>{each}</th>" for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


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


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return counts / max(1, int(counts.sum()))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
