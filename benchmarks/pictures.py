"""Frames of test, and what each method makes of them, side by side.

``python benchmarks/pictures.py --data camvid`` writes build/pictures/NAME.png for a few frames:
frame, ground truth, K-means on colour, `shallow`, the best label-free row, the same named by
majority, the same with a linear codebook, supervised. It reads the bundles that
benchmarks/quality.py left in build/quality; a method that is not there yet stays grey.
The pictures come from data that must not be shared: they are never committed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from colour_position import ClusterColours

from aeseg_edge.calibration.score.evaluation import read_mask
from aeseg_edge.segment.segmenter import Segmenter

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = (
    ("shallow, 11 clusters", "shallow-{seed}-11.aeseg"),
    ("lite, 11 clusters", "lite-{seed}-11.aeseg"),
    ("lite, 27 clusters", "lite-{seed}.aeseg"),
    ("lite, 256 named from 10 frames", "lite-{seed}-256-named.aeseg"),
    ("lite, linear from 10 frames", "lite-{seed}-linear.aeseg"),
    ("edge taught, linear from 10", "edge-taught-{seed}-linear.aeseg"),
    ("supervised", "supervised-lite-{seed}.aeseg"),
)
CAMVID = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0),
)  # fmt: skip
"""RGB of the eleven classes, as the data set draws them, and of void."""
WIDTH, HEIGHT, BAR = 320, 240, 22


def titled(picture: Any, title: str) -> Any:
    """Shrink a picture and put its title above it."""
    small = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    bar = np.full((BAR, WIDTH, 3), 255, np.uint8)
    cv2.putText(bar, title, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([bar, small])


def colours(result: Any, classes: list[str]) -> Any:
    """Draw labels: in the data set's colours where a class has one of its names."""
    table = result.palette.copy()
    for item in result.classes:
        if item.name in classes:
            table[item.id] = CAMVID[classes.index(item.name)][::-1]
    return table[result.labels]


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quality")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=6)
    options = parser.parse_args()
    if not (options.data / "test").is_dir():
        print("SKIPPED: the labelled frames are not here (give --data FOLDER)")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    classes = (options.data / "classes.txt").read_text().split("\n")
    classes = [name.strip() for name in classes if name.strip()]
    paths = sorted((options.data / "test").glob("*.jpg"))
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, options.frames).round().astype(int)]
    baseline = ClusterColours.fit(options.data / "train", clusters=11, seed=options.seed)
    rows = []
    palette = np.array(CAMVID, np.uint8)[:, ::-1]
    for path in chosen:
        frame = cv2.imread(str(path))
        truth = read_mask(options.data / "testannot" / f"{path.stem}.png")
        drawn = palette[np.arange(len(palette) - 1)][baseline(frame)]
        rows.append([titled(frame, path.stem), titled(palette[truth], "ground truth")])
        rows[-1].append(titled(drawn, "K-means on colour, position"))
    for title, name in COLUMNS:
        bundle = options.work / name.format(seed=options.seed)
        if not bundle.exists():
            print(f"{bundle} is not there: run make quality")
            for row in rows:
                row.append(titled(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), f"no {title}"))
            continue
        with Segmenter.load(bundle, precision="fp32", backend="onnxruntime") as segmenter:
            for row, path in zip(rows, chosen, strict=True):
                row.append(titled(colours(segmenter(cv2.imread(str(path))), classes), title))
    for row, path in zip(rows, chosen, strict=True):
        half = (len(row) + 1) // 2
        blank = np.full_like(row[0], 255)
        row += [blank] * (2 * half - len(row))
        picture = np.concatenate([np.concatenate(row[:half], 1), np.concatenate(row[half:], 1)])
        cv2.imwrite(str(options.out / f"{path.stem}.png"), picture)
    print(f"{len(rows)} pictures in {options.out}")


if __name__ == "__main__":
    main()
