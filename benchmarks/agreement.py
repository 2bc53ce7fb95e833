"""Agreement of every graph of a bundle with fp32, on a folder of images.

``python benchmarks/agreement.py street.aeseg IMAGES [--every 4] [--json FILE]``. Graphs for
TensorRT are emulated on the CPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.calibration.score.agreement import compare_entries
from aeseg_edge.sources.registry import open_source


def main() -> None:
    """Measure and print one line a graph."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images")
    parser.add_argument("--every", type=int, default=1, help="use every n-th image")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    with open_source(options.images, channels=bundle.manifest.geometry.channels) as source:
        frames = [frame.image for frame in source if frame.index % options.every == 0]
    found = compare_entries(bundle, frames)
    print(f"{options.bundle.name}: {len(frames)} frames, {bundle.manifest.clusters} clusters")
    for (precision, backend), agreement in found.items():
        lowest = agreement.minimum_iou
        equal, worst = agreement.labels_equal, agreement.worst_labels_equal
        print(
            f"  {precision} for {backend:<12} {100 * equal:6.2f} % of labels equal, worst frame "
            f"{100 * worst:6.2f} %, lowest IoU of a class {100 * (lowest or 0):5.1f} %"
        )
    if options.json:
        record = {f"{p}/{b}": value.to_json() for (p, b), value in found.items()}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
