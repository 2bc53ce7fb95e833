"""How much faster int8 is than fp32 on this CPU: ``python benchmarks/precision_ratio.py B.aeseg``.

Both run in one process, one thread, in turn (A B A B); the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from stand_ins import random_codebook

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.measure.bench import alternate, synthetic_frame
from aeseg_edge.measure.machine import environment
from aeseg_edge.segment.segmenter import Segmenter


def main() -> None:
    """Measure, print a table and optionally JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, default=20, help="frames a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clusters", type=int, nargs="*", default=[], help="other K to time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    bundle = Bundle.open(options.bundle)
    geometry = bundle.manifest.geometry
    frames = [synthetic_frame(geometry.height, geometry.width, geometry.channels)] * options.frames
    segmenters = {
        precision: Segmenter.load(bundle, precision=precision, backend="onnxruntime", threads=1)
        for precision in ("fp32", "int8")
    }
    for clusters in options.clusters:
        segmenters[f"int8 K={clusters}"] = Segmenter.load(
            bundle.with_codebook(random_codebook(clusters, bundle.manifest.latent_dim)),
            precision="int8",
            backend="onnxruntime",
            threads=1,
        )
    found = alternate(segmenters, frames, options.rounds)
    print(f"{options.bundle.name} {geometry.width}x{geometry.height}, one thread")
    for name in segmenters:
        print(f"  {name:<12} {np.median(found.milliseconds[name]):7.2f} ms a frame")
    for name in segmenters:
        if name != "fp32":
            ratio = found.ratio("fp32", name)
            print(f"  fp32 / {name:<10} {ratio.median:5.2f}  ({ratio.low:.2f} to {ratio.high:.2f})")
    if options.json:
        record = {"bundle": options.bundle.name, **found.to_json(), "environment": environment()}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
