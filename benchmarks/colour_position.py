"""The baseline that a label-free method must beat: K-means on colour and position.

``python benchmarks/colour_position.py --data camvid --clusters 11``. Lab colour (OpenCV) of a
2x2-averaged frame and the pixel's place, each of the five axes standardised.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from aeseg_edge.calibration.evaluation import evaluate, find_pairs, format_table, read_classes
from aeseg_edge.io.sources import open_source


def features(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [h, w, 5] of a frame, at half size."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_BGR2LAB).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    place = np.stack((y / height, x / width), axis=-1)
    return np.concatenate((lab, place), axis=-1)


def main() -> None:
    """Fit on train frames without labels, score on test."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--clusters", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = options.data
    generator = np.random.default_rng(options.seed)
    samples = []
    with open_source(str(data / "train")) as source:
        for frame in source:
            points = features(frame.image).reshape(-1, 5)
            samples.append(points[generator.choice(len(points), 200, replace=False)])
    points = np.concatenate(samples)
    mean, scale = points.mean(axis=0), points.std(axis=0)
    fit = KMeans(options.clusters, n_init=4, random_state=options.seed)
    fit.fit((points - mean) / scale)

    def predict(frame: NDArray[np.uint8]) -> NDArray[np.int64]:
        found = features(frame)
        scaled = (found.reshape(-1, 5) - mean) / scale
        labels = fit.predict(scaled).reshape(found.shape[:2]).astype(np.uint8)
        size = (frame.shape[1], frame.shape[0])
        grown = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(grown, np.int64)

    report = evaluate(
        predict,
        find_pairs(data / "test", data / "testannot"),
        read_classes(data / "classes.txt"),
        clusters=options.clusters,
        ignore=11,
        fit_pairs=find_pairs(data / "train", data / "trainannot"),
        fit_every=4,
    )
    print(format_table(report))
    if options.json:
        options.json.write_text(json.dumps(report.to_json(), indent=1) + "\n")


if __name__ == "__main__":
    main()
