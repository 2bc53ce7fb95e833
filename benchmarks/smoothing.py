"""What temporal smoothing does on a labelled sequence and on a fixed camera's video.

Flicker (label changes where the picture did not change), agreement with the labels without
smoothing where it did, and mIoU of the sequence with clusters named by majority on other frames.

    python benchmarks/smoothing.py edge27.aeseg --camvid DIR --video vtest.avi

DIR holds ``val``, ``valannot``, ``train``, ``trainannot`` and ``classes.txt``; what is missing is
skipped with the reason. The data is not part of this repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import default_classes
from aeseg_edge.calibration.score.counts import ConfusionMatrix, Scores, fold, majority_map, score
from aeseg_edge.calibration.score.evaluation import find_pairs, read_classes, read_image, read_mask
from aeseg_edge.measure.flicker import FlickerMeter
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.segment.smoothing import default_strength
from aeseg_edge.sources.registry import open_source

IGNORE = 11


def main() -> int:
    """Measure and print; figures as JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--camvid", type=Path)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--frames", type=int, help="of the video")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--smooth", type=float, action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = {"bundle": options.bundle.name}
    with Segmenter.load(
        options.bundle, precision=options.precision, backend="onnxruntime", threads=1
    ) as segmenter:
        strengths = [0.0, *(options.smooth or [default_strength(segmenter.manifest)])]
        # Each cluster shows as a class of its own, so that naming plays no part.
        clusters = segmenter.codebook.clusters
        if clusters > 255:
            print("skipped: labels of more than 255 clusters do not fit into bytes")
            return 1
        segmenter.set_codebook(
            replace(
                segmenter.codebook,
                remap=np.arange(clusters).astype(np.uint8),
                classes=default_classes(clusters),
            )
        )
        figures["precision"] = segmenter.entry.precision
        for name, folder, measure in (
            ("sequence", options.camvid, sequence),
            ("video", options.video, video),
        ):
            if folder is None or not folder.exists():
                print(f"{name} skipped: {folder} is not there", file=sys.stderr)
                continue
            figures[name] = measure(segmenter, folder, strengths, options)
            print(name)
            for row in figures[name]:
                print("  " + "  ".join(f"{key} {value}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def percent(value: float | None) -> float | None:
    """In percent, as it is printed."""
    return None if value is None else round(100 * value, 2)


def video(
    segmenter: Segmenter, path: Path, strengths: list[float], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Flicker and agreement on a video, all strengths in one pass."""
    meters = [FlickerMeter() for _ in strengths]
    with open_source(str(path)) as source:
        for frame in islice(source, options.frames):
            segment(segmenter, frame.image, strengths, meters)
    segmenter.reset()
    return [row(strength, meter) for strength, meter in zip(strengths, meters, strict=True)]


def sequence(
    segmenter: Segmenter, folder: Path, strengths: list[float], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The same on a labelled sequence, and mIoU."""
    classes = read_classes(folder / "classes.txt")
    clusters = segmenter.codebook.clusters
    segmenter.smooth = 0.0
    fitted = ConfusionMatrix(len(classes), clusters, ignore=IGNORE)
    for pair in find_pairs(folder / "train", folder / "trainannot")[::4]:
        labels = segmenter(read_image(pair.image)).labels
        fitted.update(read_mask(pair.mask), labels.astype(np.int64))
        segmenter.reset()
    names = majority_map(fitted.counts)
    meters = [FlickerMeter() for _ in strengths]
    tables = [ConfusionMatrix(len(classes), clusters, ignore=IGNORE) for _ in strengths]
    for pair in find_pairs(folder / "val", folder / "valannot"):
        found = segment(segmenter, read_image(pair.image), strengths, meters)
        mask = read_mask(pair.mask)
        for table, labels in zip(tables, found, strict=True):
            table.update(mask, labels.astype(np.int64))
    segmenter.reset()
    return [
        row(strength, meter) | {"miou": percent(scores(table, names).miou)}
        for strength, meter, table in zip(strengths, meters, tables, strict=True)
    ]


def scores(table: ConfusionMatrix, names: NDArray[np.int64]) -> Scores:
    """Scores of clusters that have names."""
    return score(*fold(table.counts, names))


def segment(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    strengths: list[float],
    meters: list[FlickerMeter],
) -> list[NDArray[np.uint8]]:
    """One frame at every strength, each on a stream of its own."""
    found: list[NDArray[np.uint8]] = []
    for stream, (strength, meter) in enumerate(zip(strengths, meters, strict=True)):
        segmenter.smooth = strength
        found.append(segmenter(image, stream=stream).labels)
        meter.add(image, found[-1], found[0] if stream else None)
    return found


def row(strength: float, meter: FlickerMeter) -> dict[str, Any]:
    """One strength's figures in percent."""
    result = meter.result()
    return {
        "smooth": strength,
        "unchanged": percent(result.unchanged),
        "flicker": percent(result.flicker),
        "agreement": percent(result.agreement),
    }


if __name__ == "__main__":
    sys.exit(main())
