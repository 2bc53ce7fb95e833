"""Every row of the table of targets, measured on this machine in one run.

    python benchmarks/targets.py street.aeseg

writes docs/performance/targets.json and the table in docs/performance.md, and prints it. One
thread, ONNX Runtime, int8 unless a row says otherwise; what is compared takes turns (A B A B), and
a ratio is the median over pairs. Peers come from ``make peers``. Leave the machine alone
meanwhile: everything else on it shows.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from target_rows import MEASURES, ROOT, Found, Run

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.errors import AesegError
from aeseg_edge.measure.machine import environment

OUT = ROOT / "docs" / "performance" / "targets.json"
PAGE = ROOT / "docs" / "performance.md"
START, END = "<!-- targets -->", "<!-- end targets -->"


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        key: Short name, for ``--only``.
        what: As the table has it.
        must: What it must reach.
        hope: What it would be good to reach; None where the table has none.
        unit: times, %, s or MB; empty for a row that is measured elsewhere.
        more: Whether more is better.
    """

    key: str
    what: str
    must: float | None = None
    hope: float | None = None
    unit: str = ""
    more: bool = False

    def reached(self, value: float, limit: float | None) -> bool | None:
        """Whether a value is on the good side of a limit; None without one."""
        if limit is None:
            return None
        return value >= limit if self.more else value <= limit

    def show(self, value: float | None) -> str:
        """A value with its unit."""
        if value is None:
            return "-"
        return f"{value:.3g} {self.unit}" if self.unit == "s" else f"{value:.4g} {self.unit}"


TARGETS = (
    Target("fcn", "`edge` against FCN-ResNet18 at stride 32", 5, 10, "times", True),
    Target("lraspp", "`edge` against LR-ASPP MobileNetV3", 2, 4, "times", True),
    Target("int8", "the CPU int8 graph against fp32, one thread", 2.5, 3.5, "times", True),
    Target("roofline", "share of the CPU int8 bound reached by the encoder", 45, 70, "%", True),
    Target("rest", "everything but inference, as share of the total", 10, 5, "%"),
    Target("head", "assignment, upsampling, margin, smoothing as share of inference", 12, 5, "%"),
    Target("split", "the fused graph against the split path, whole frame", 1.3, 2, "times", True),
    Target("start", "`aeseg run` from start to first label map, warm disk", 1.0, 0.4, "s"),
    Target("memory", "resident memory of the runtime in int8", 160, 100, "MB"),
    Target("pixels", "growth of the cost of a pixel, 240x180 to 1920x1080", 15, None, "%"),
    Target("clusters", "growth of cost, K = 16 to 256 at output stride r", 15, 5, "%"),
    Target("quality", "quality while doing so"),
)  # fmt: skip


def peers_of(folder: Path) -> Any:
    """What `make peers` says of them; None without any."""
    path = folder / "peers.json"
    return json.loads(path.read_text()) if path.is_file() else None


def machine() -> dict[str, Any]:
    """What a reader needs to compare, and nothing that names a host."""
    known = environment()
    return {
        "cpu": {key: known["cpu"][key] for key in ("model", "cores", "usable", "quota", "int8")},
        "governor": known["cpu"]["governor"],
        "memory_bytes": known["memory"]["total"] if known["memory"] else None,
        "machine": platform.machine(),
        "system": known["os"]["name"],
        "python": known["python"],
        "packages": {
            name: known["packages"][name]
            for name in ("numpy", "opencv", "onnxruntime", "onnx", "scikit-learn")
        },
        "jetson": known["jetson"],
        "throttling": known["throttling"],
        "load_before": known["load"],
    }


def to_row(target: Target, found: Found) -> dict[str, Any]:
    """One row as JSON types."""
    value = found.value
    return {
        "key": target.key,
        "what": target.what,
        "must": target.must,
        "hope": target.hope,
        "unit": target.unit,
        "more_is_better": target.more,
        "outcome": None if value is None else round(value, 4),
        "low": None if found.low is None else round(found.low, 4),
        "high": None if found.high is None else round(found.high, 4),
        "passed": None if value is None else target.reached(value, target.must),
        "hoped": None if value is None else target.reached(value, target.hope),
        "note": found.note,
        "details": dict(found.details),
    }


def to_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    known = {target.key: target for target in TARGETS}
    lines = ["| what | must reach | hope for | outcome | |", "|---|---|---|---|---|"]
    for row in rows:
        target = known[row["key"]]
        outcome = target.show(row["outcome"])
        if row["low"] is not None:
            outcome += f" ({row['low']:.4g} to {row['high']:.4g})"
        verdict = {True: "pass", False: "FAIL", None: "not measured"}[row["passed"]]
        if row["hoped"]:
            verdict = "pass, as hoped"
        lines.append(
            f"| {row['what']} | {target.show(target.must)} | {target.show(target.hope)} "
            f"| {outcome} | {verdict} |"
        )
    notes = [f"- {row['what']}: {row['note']}" for row in rows if row["note"]]
    return "\n".join([*lines, "", *notes])


def on_page(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Put the table between its markers.

    Raises:
        ValueError: If the page has none.
    """
    before, rest = text.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n{to_table(rows)}\n{END}{after}"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--frames", type=int, default=10, help="of each candidate in a round")
    parser.add_argument("--starts", type=int, default=9, help="fresh processes")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), metavar="ROW")
    parser.add_argument("--out", type=Path, help="default: docs/performance/targets.json")
    options = parser.parse_args()
    out = options.out or (None if options.only else OUT)
    bundle = Bundle.open(options.bundle)
    run = Run(
        bundle,
        options.bundle.resolve(),
        options.peers,
        options.rounds,
        options.frames,
        options.starts,
    )
    before = machine()
    rows = []
    for target in TARGETS:
        if options.only and target.key not in options.only:
            continue
        print(target.what, file=sys.stderr, flush=True)
        try:
            found = MEASURES[target.key](run)
        except AesegError as error:
            found = Found(None, note=error.problem)
        rows.append(to_row(target, found))
    print(to_table(rows))
    if out is not None:
        given = f"--rounds {run.rounds} --frames {run.frames} --starts {run.starts}"
        manifest = bundle.manifest
        record = {
            "command": f"python benchmarks/targets.py {options.bundle.name} {given}",
            "date": date.today().isoformat(),
            "bundle": {
                "name": options.bundle.name,
                "size": f"{manifest.geometry.width}x{manifest.geometry.height}",
                "clusters": manifest.clusters,
                "stride": manifest.stride,
                "output_stride": manifest.output_stride,
                "created_with": manifest.created_with,
                "graphs": {
                    f"{entry.precision} {entry.backend}": manifest.files[entry.graph].sha256[:16]
                    for entry in manifest.entries
                },
            },
            "peers": peers_of(run.peers),
            "machine": before,
            "rows": rows,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {out}", file=sys.stderr)
        if out == OUT:
            PAGE.write_text(on_page(PAGE.read_text(), rows))
    return 1 if any(row["passed"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
