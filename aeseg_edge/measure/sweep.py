"""One table over precisions, backends and thread counts of one bundle on this machine."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.precisions import BACKENDS, FLOAT, ONNXRUNTIME, PRECISIONS
from aeseg_edge.errors import AesegError
from aeseg_edge.measure.bench import BenchReport, bench, check_counts, hold
from aeseg_edge.measure.machine import environment
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.support.files import write_bytes
from aeseg_edge.support.require import optional
from aeseg_edge.support.text import as_text, to_json

_log = logging.getLogger(__name__)

COLUMNS = (
    "Format",
    "Size MB",
    "ms p50",
    "p95",
    "p99",
    "FPS",
    "Agreement",
    "W",
    "FPS/W",
)


@dataclass(frozen=True)
class SweepRow:
    """One way to run the bundle, measured or not.

    Attributes:
        precision: fp32, fp16 or int8.
        backend: onnxruntime or tensorrt.
        threads: Threads inside one operation; None for TensorRT.
        agreement: Share of labels equal to fp32's, 0..1, as the bundle states; None for the
            reference and where it was not measured.
        reference: Whether the others are compared with this graph.
        report: What was measured; None where it cannot run here.
        reason: Why it cannot run; empty where it can.
    """

    precision: str
    backend: str
    threads: int | None
    agreement: float | None = None
    reference: bool = False
    report: BenchReport | None = None
    reason: str = ""

    @property
    def format(self) -> str:
        """Such as "int8 onnxruntime, 1 thread"."""
        if self.threads is None:
            return f"{self.precision} {self.backend}"
        return f"{self.precision} {self.backend}, {self.threads} thread{'s'[: self.threads > 1]}"

    def cells(self) -> tuple[str, ...]:
        """One text a column."""
        report = self.report
        if report is None:
            return (self.format, *["-"] * (len(COLUMNS) - 1))
        total = report.stages["total"]
        watts, each = report.power.total_watts, report.fps_per_watt
        agreement = "-" if self.agreement is None else f"{100 * self.agreement:.2f} %"
        return (
            self.format,
            f"{report.entry_bytes / 1e6:.2f}",
            f"{total.p50:.2f}",
            f"{total.p95:.2f}",
            f"{total.p99:.2f}",
            f"{report.fps:.1f}",
            "reference" if self.reference else agreement,
            "-" if watts is None else f"{watts:.2f}",
            "-" if each is None else f"{each:.2f}",
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything, with raw samples, as JSON types."""
        return {
            "format": self.format,
            "precision": self.precision,
            "backend": self.backend,
            "threads": self.threads,
            "agreement": self.agreement,
            "reason": self.reason or None,
            "report": None if self.report is None else self.report.to_json(),
        }


@dataclass(frozen=True)
class Sweep:
    """All rows of a bundle, by precision, backend, threads, and the machine before the first."""

    name: str
    rows: tuple[SweepRow, ...]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return every row as JSON types."""
        return {
            "bundle": self.name,
            "environment": self.environment,
            "rows": [row.to_json() for row in self.rows],
        }

    def to_markdown(self) -> str:
        """Return the table, what could not run, and the machine, for a README."""
        lines = [f"| {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
        lines += [f"| {' | '.join(row.cells())} |" for row in self.rows]
        measured = next((row.report for row in self.rows if row.report is not None), None)
        notes = []
        if measured is not None:
            sizes = ", ".join(f"{width}x{height}" for width, height in measured.frame_sizes)
            notes.append(
                f"{self.name}, frames {sizes} ({measured.source}), {measured.frames} a row after "
                "a warm-up. ms and FPS are of the whole path: frame in, full-size label map out."
            )
        notes.append(self._machine())
        notes += [f"{row.format}: {row.reason}." for row in self.rows if row.report is None]
        return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])

    def draw(self) -> bytes | None:
        """Draw the distribution of every row's total time; None without matplotlib."""
        samples = {
            row.format: row.report.samples["total"] for row in self.rows if row.report is not None
        }
        return draw_distributions(samples, f"{self.name}: latency")

    def write(self, prefix: Path) -> list[Path]:
        """Write PREFIX.md, PREFIX.json and, where matplotlib is installed, PREFIX.png; say which.

        AesegError where the folder is missing or read-only, or the disk is full.
        """
        text = to_json(self.to_json(), indent=1, allow_nan=False) + "\n"
        contents = {
            ".md": as_text(self.to_markdown()).encode(),
            ".json": text.encode(),
            ".png": self.draw(),
        }
        written = []
        for suffix, content in contents.items():
            if content is None:
                _log.info("no picture of the sweep: matplotlib is not installed (extra host)")
                continue
            target = prefix.with_name(prefix.name + suffix)
            write_bytes(target, content, error=AesegError)
            written.append(target)
        return written

    def _machine(self) -> str:
        machine = self.environment
        jetson, cpu = machine["jetson"], machine["cpu"]
        parts = [f"{cpu['model'] or 'unknown processor'}, {cpu['usable'] or cpu['cores']} cores"]
        if jetson is not None:
            clocks = {True: "jetson_clocks on", False: "jetson_clocks off"}
            parts = [
                f"{jetson['model']}, power mode {jetson['power_mode'] or 'unknown'}",
                clocks.get(jetson["jetson_clocks"], "jetson_clocks unknown"),
            ]
        parts += [f"{gpu['name']}" for gpu in machine["gpu"] or []]
        versions = {**machine["packages"], "tensorrt": machine["tensorrt"]}
        parts += [f"{name} {versions[name]}" for name in BACKENDS if versions[name]]
        return "; ".join(parts) + "."


Open = Callable[..., Segmenter]
"""``Segmenter.load``, or something that takes the same."""


def sweep(
    bundle: Bundle,
    *,
    threads: Sequence[int],
    precisions: Sequence[str] = PRECISIONS,
    backends: Sequence[str] = BACKENDS,
    source_frames: Iterable[NDArray[np.uint8]] | None = None,
    source: str | None = None,
    frames: int = 300,
    warmup_seconds: float = 2.0,
    cache_dir: Path | None = None,
    load: Open = Segmenter.load,
    tell: Callable[[str], None] | None = None,
) -> Sweep:
    """Measure every way to run a bundle, one after the other.

    Args:
        bundle: Opened; at the size it is to run at.
        threads: Thread counts for ONNX Runtime, each a row.
        precisions: Of the rows.
        backends: Of the rows.
        source_frames: As for ``bench``; the same frames for every row.
        source: Name of the source.
        frames: Frames to time in each row.
        warmup_seconds: Before each row.
        cache_dir: Where TensorRT engines are kept.
        load: Opens one row's segmenter.
        tell: Called with the name of each row before it runs.

    Returns:
        All rows; what cannot run is a row with its reason. Raises as ``bench`` does.
    """
    check_counts(frames, warmup_seconds)
    machine = environment()
    held, source = hold(bundle.manifest.geometry, source_frames, source)
    rows = []
    for backend in backends:
        for precision in precisions:
            for count in threads if backend == ONNXRUNTIME else [None]:
                row = SweepRow(precision, backend, count)
                if tell is not None:
                    tell(row.format)
                try:
                    with load(
                        bundle,
                        precision=precision,
                        backend=backend,
                        threads=count,
                        cache_dir=cache_dir,
                    ) as segmenter:
                        report = bench(
                            segmenter,
                            held,
                            frames=frames,
                            warmup_seconds=warmup_seconds,
                            source=source,
                            settings={"threads": count},
                        )
                        found = segmenter.entry.agreement
                except AesegError as error:
                    rows.append(replace(row, reason=error.problem))
                    continue
                rows.append(
                    replace(
                        row,
                        agreement=None if found is None else float(found["labels_equal"]),
                        reference=precision == FLOAT and found is None,
                        report=report,
                    )
                )
    return Sweep(bundle.path.name if bundle.path else "bundle", tuple(rows), machine)


# Source: P. Tol, Colour Schemes, SRON/EPS/TN/09-002 (2021): "bright" and "muted", told apart by
# people who see colours differently.
_COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#332288", "#999933")
_STYLES = ("-", "--", ":")


def draw_distributions(samples: Mapping[str, Sequence[float]], title: str) -> bytes | None:
    """Draw how many frames took at most how long: one empirical distribution a name.

    Any percentile can be read from such a curve, also the tail; a histogram hides it. `samples` are
    milliseconds by name, those without any are left out. A PNG of 900x550 pixels; None where
    matplotlib (extra ``host``) is not installed.
    """
    plot = optional("matplotlib.figure")
    if plot is None:
        return None
    # No pyplot: it keeps global state and may want a display.
    figure = plot.Figure(figsize=(9, 5.5), dpi=100, layout="constrained")
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
