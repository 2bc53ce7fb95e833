"""Writes the tables of docs/quality.md from docs/quality/*.json, between its markers.

``python tools/quality_table.py`` rewrites the file; with ``--check`` it only says whether
the file is up to date (exit 1 if not). No figure of those tables is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("edge", "lite", "edge-taught", "shallow", "deep", "supervised-lite", "supervised-edge")

Record = Mapping[str, Any]


def read(folder: Path) -> dict[str, list[Record]]:
    """Read all rows, by name, seeds in order."""
    rows: dict[str, list[Record]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows.setdefault(record["row"], []).append(record)
    known = [name for name in ORDER if name in rows]
    return {name: rows[name] for name in (*known, *sorted(set(rows) - set(known)))}


def spread(values: Sequence[float]) -> str:
    """Mean, and how far the seeds lie apart."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{round(mean, 1) + 0.0:.1f}"
    return f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"


def column(records: Iterable[Record], get: Callable[[Mapping[str, Any]], float]) -> str:
    """One cell: over the seeds that have the figure."""
    values = []
    for record in records:
        try:
            values.append(float(get(record["figures"])))
        except (KeyError, TypeError):
            continue
    return spread(values)


def miou(figure: str, way: str, graph: str = "fp32") -> Callable[[Mapping[str, Any]], float]:
    """Find a mean IoU among a row's figures."""
    return lambda figures: figures[f"{figure}.{graph}"][way]["miou"]


LABEL_FREE = (
    ("11 clusters, Hungarian", miou("11", "hungarian")),
    ("27 clusters, majority of 92 frames", miou("27", "majority")),
    ("256 clusters, majority of 10 frames", miou("256-named", "named")),
    ("linear codebook, 10 frames", miou("linear", "named")),
)
WAYS = (("11", "hungarian"), ("27", "majority"), ("256-named", "named"), ("linear", "named"))


def worst_loss(graph: str) -> Callable[[Mapping[str, Any]], float]:
    """Largest loss of mean IoU of one int8 graph against fp32, over the ways of scoring."""

    def find(figures: Mapping[str, Any]) -> float:
        losses = []
        for figure, way in (*WAYS, ("supervised", "named")):
            if f"{figure}.{graph}" in figures and f"{figure}.fp32" in figures:
                pair = [miou(figure, way, kind)(figures) for kind in ("fp32", graph)]
                losses.append(pair[0] - pair[1])
        if not losses:
            raise KeyError(graph)
        return max(losses)

    return find


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Format as Markdown."""
    rows = [list(head), ["---"] * len(head), *(list(line) for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def build(rows: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Make every table, by the name of its marker."""
    little = {name: found for name, found in rows.items() if found[0]["recipe"]["little"]}
    rows = {name: found for name, found in rows.items() if name not in little}
    free = {name: found for name, found in rows.items() if not found[0]["recipe"]["supervised"]}
    taught = {name: found for name, found in rows.items() if found[0]["recipe"]["supervised"]}
    minutes = [
        ("minutes of training", lambda found: spread([r["seconds"]["train"] / 60 for r in found]))
    ]
    made = {
        "label-free": table(
            ["row", "seeds", *(title for title, _ in LABEL_FREE), minutes[0][0]],
            (
                [
                    found[0]["title"],
                    str(len(found)),
                    *(column(found, get) for _, get in LABEL_FREE),
                    minutes[0][1](found),
                ]
                for found in free.values()
            ),
        ),
        "deployment": table(
            [
                "row",
                "int8 for the CPU loses at most",
                "int8 for TensorRT loses at most",
                "labels unchanged: noise / brightness / shift",
                "ARI of two clusterings",
                "ms fp32 / int8, one thread",
                "MB",
            ],
            (
                [
                    found[0]["title"],
                    column(found, worst_loss("int8")),
                    column(found, worst_loss("int8-tensorrt")),
                    steady(found),
                    ari(found),
                    milliseconds(found),
                    column(found, lambda figures: figures["megabytes"]),
                ]
                for found in rows.values()
            ),
        ),
        "commands": "```sh\n"
        + "\n\n".join(
            f"# {found[0]['title']}\n" + "\n".join(commands(found[0])) for found in rows.values()
        )
        + "\n```",
    }
    if little:
        made["little"] = table(
            [
                "row",
                "seeds",
                LABEL_FREE[0][0],
                LABEL_FREE[1][0],
                "labels unchanged: noise / brightness / shift",
            ],
            (
                [
                    found[0]["title"],
                    str(len(found)),
                    *(column(found, get) for _, get in LABEL_FREE[:2]),
                    steady(found),
                ]
                for found in little.values()
            ),
        )
    if taught:
        made["supervised"] = table(
            ["row", "seeds", "mIoU", "pixel accuracy", minutes[0][0]],
            (
                [
                    found[0]["title"],
                    str(len(found)),
                    column(found, miou("supervised", "named")),
                    column(found, lambda f: f["supervised.fp32"]["named"]["pixel_accuracy"]),
                    minutes[0][1](found),
                ]
                for found in taught.values()
            ),
        )
    return made


def ari(found: Sequence[Record]) -> str:
    """Mean ARI and its range, two digits after the point."""
    values = [r["figures"]["ari"] for r in found if "ari" in r["figures"]]
    if not values:
        return ""
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def steady(found: Sequence[Record]) -> str:
    """Mean share of labels that stay the same, for each kind of change."""
    known = [r["figures"]["steady"] for r in found if "steady" in r["figures"]]
    if not known:
        return ""
    kinds = ("noise", "brightness", "shift")
    return " / ".join(f"{sum(k[kind] for k in known) / len(known):.1f}" for kind in kinds)


def milliseconds(found: Sequence[Record]) -> str:
    """Times of the first seed that was timed."""
    for record in found:
        times = record["figures"].get("milliseconds")
        if times:
            return f"{times['fp32']:.1f} / {times['int8']:.1f}"
    return ""


def commands(record: Record) -> list[str]:
    """The commands of one seed, in the order in which they are run."""
    wanted = ("train", "export-11.aeseg", "export-256.aeseg", "name-256", "linear")
    return [record["commands"][name] for name in wanted if name in record["commands"]]


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Put tables between their markers."""
    for name, made in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        if start in text and end in text:
            before, _, rest = text.partition(start)
            _, _, after = rest.partition(end)
            text = f"{before}{start}\n{made}\n{end}{after}"
    return text


def main() -> int:
    """Rewrite or check docs/quality.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    page = ROOT / "docs" / "quality.md"
    text = page.read_text(encoding="utf-8")
    fresh = fill(text, build(read(ROOT / "docs" / "quality")))
    if options.check:
        if fresh != text:
            print("docs/quality.md is not what its JSON files say: run tools/quality_table.py")
            return 1
        return 0
    page.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
