"""The baseline that a label-free method must beat: K-means on colour and position.

``python benchmarks/colour_position.py --data camvid --clusters 11``. Lab colour (OpenCV) of a
2x2-averaged frame and the pixel's place, each of the five axes standardised.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from aeseg_edge.calibration.score.evaluation import evaluate, find_pairs, format_table, read_classes
from aeseg_edge.sources.registry import open_source


def features(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [h, w, 5] of a frame, at half size."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_BGR2LAB).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    place = np.stack((y / height, x / width), axis=-1)
    return np.concatenate((lab, place), axis=-1)


class ClusterColours:
    """K-means on colour and position.

    Args:
        fit: Fitted on standardised points.
        mean: float [5].
        scale: float [5].
    """

    def __init__(self, fit: KMeans, mean: NDArray[Any], scale: NDArray[Any]) -> None:
        self._fit, self._mean, self._scale = fit, mean, scale

    @classmethod
    def fit(cls, images: Path, *, clusters: int, seed: int) -> ClusterColours:
        """Fit on a folder of images, 200 pixels of each."""
        generator = np.random.default_rng(seed)
        samples = []
        with open_source(str(images)) as source:
            for frame in source:
                points = features(frame.image).reshape(-1, 5)
                samples.append(points[generator.choice(len(points), 200, replace=False)])
        points = np.concatenate(samples)
        mean, scale = points.mean(axis=0), points.std(axis=0)
        means = KMeans(clusters, n_init=4, random_state=seed)
        return cls(means.fit((points - mean) / scale), mean, scale)

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Cluster ids [H, W] of a frame [H, W, 3]."""
        found = features(frame)
        scaled = (found.reshape(-1, 5) - self._mean) / self._scale
        labels = self._fit.predict(scaled).reshape(found.shape[:2]).astype(np.uint8)
        size = (frame.shape[1], frame.shape[0])
        grown = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(grown, np.int64)


def main() -> None:
    """Fit on train frames without labels, score on test."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--clusters", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = options.data
    report = evaluate(
        ClusterColours.fit(data / "train", clusters=options.clusters, seed=options.seed),
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
