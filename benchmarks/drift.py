"""How far frames of other kinds are from the footage that a bundle was made from.

    python benchmarks/drift.py edge27.aeseg known=DIR/val day=DIR/visible thermal=DIR/thermal

Each folder gives the mean of ``frame_drift`` (what the loop's drift is a running mean of), how many
frames are beyond what is usual, and how well the figure alone tells its frames from those of the
first folder (area under the ROC curve).
``--night LEVEL`` splits each folder but the first by the mean grey value of its frames. A folder
that is not there is skipped with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.sources.registry import open_source

WANT = frozenset({"distance"})


def measure(segmenter: Segmenter, folder: str, every: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """How unlike the footage each frame is, and its mean grey value."""
    found, grey = [], []
    with open_source(folder, channels=segmenter.manifest.geometry.channels) as source:
        for frame in source:
            if frame.index % every:
                continue
            found.append(segmenter(frame.image, want=WANT).frame_drift)
            grey.append(float(frame.image.mean()))
    return np.array(found, float), np.array(grey)


def separation(known: NDArray[Any], other: NDArray[Any]) -> float:
    """Area under the ROC curve: the chance that a frame of `other` has the larger figure."""
    larger = (other[:, None] > known[None]).mean()
    return float(larger + 0.5 * (other[:, None] == known[None]).mean())


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--night", type=float, metavar="LEVEL", help="mean grey value, 0..255")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use every N-th frame")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    groups: list[tuple[str, NDArray[Any]]] = []
    with Segmenter.load(
        options.bundle, precision=options.precision, backend="onnxruntime", threads=1
    ) as segmenter:
        if not segmenter.measures_distance:
            print(f"skipped: {options.bundle} knows no distances; calibrate it again")
            return 1
        usual = segmenter.manifest.spread.usual if segmenter.manifest.spread else 1.0
        for item in options.folders:
            name, _, folder = item.partition("=")
            if not Path(folder).is_dir():
                print(f"{name} skipped: {folder} is not there", file=sys.stderr)
                continue
            found, grey = measure(segmenter, folder, options.every)
            if options.night is None or not groups:
                groups.append((name, found))
            else:
                for part, chosen in (
                    ("dark", grey < options.night),
                    ("bright", grey >= options.night),
                ):
                    if chosen.any():
                        groups.append((f"{name}, {part}", found[chosen]))
    print(f"usual: up to {usual}")
    figures = {
        name: {
            "frames": len(found),
            "unlike": round(float(found.mean()), 4),
            "unusual": round(float((found > usual).mean()), 4),
            "auc": round(separation(groups[0][1], found), 4),
        }
        for name, found in groups
    }
    for name, row in figures.items():
        print(f"{name:<20}" + "".join(f"  {key} {value:<7}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
