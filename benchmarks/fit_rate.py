"""How fast centres are fitted, against scikit-learn's own, and what memory it takes.

``python benchmarks/fit_rate.py B.aeseg drive.mp4 --frames 400``: latents of all frames are made
once and given to each way of fitting; encoding, the same for all, is not timed with them. The
rate is the footage's latents over the seconds of processor time that fitting takes: with one thread
that is its duration on an idle machine. The mean squared distance of every
latent to its centre says what the speed costs. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.geometry import fit_frame
from aeseg_edge.calibration.clusters.latents import EncoderSession, draw_samples
from aeseg_edge.calibration.clusters.methods import cluster
from aeseg_edge.calibration.graphs.deployed import detach_head
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.measure.machine import environment
from aeseg_edge.sources.registry import open_source

Latents = NDArray[np.float32]


class Recorded:
    """Gives latents that were made before, in the place of an encoder."""

    def __init__(self, latents: Sequence[Latents]) -> None:
        self._latents = latents

    def __call__(self, frame: NDArray[np.uint8]) -> Latents:
        """Give the latents [D, h, w] of the frame with this number."""
        return self._latents[int(frame)]


class Repeated(Sequence[NDArray[np.uint8]]):
    """Frames of a recording of any length, made when they are asked for."""

    def __init__(self, frames: Sequence[NDArray[np.uint8]], count: int) -> None:
        self._frames, self._count = frames, count

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[np.uint8]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Make one."""
        if isinstance(index, slice) or not 0 <= index < self._count:
            raise IndexError(index)
        return self._frames[index % len(self._frames)].copy()


def main() -> None:
    """Measure, print a table and optionally JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--clusters", type=int, default=27)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    geometry = bundle.manifest.geometry
    with open_source(options.source, channels=geometry.channels) as source:
        images = [fit_frame(f.image, geometry) for f in islice(source, options.frames)]
    encoder = detach_head(onnx.load_from_string(bundle.graph("fp32", "onnxruntime")))
    session = EncoderSession(encoder, threads=1)
    with threadpool_limits(1):
        started = time.process_time()
        latents = [session(image) for image in images]
        encoding = time.process_time() - started
        rows = compare(latents, options.clusters)
        memory = [peak(session, images, count) for count in (len(images), 4 * len(images))]
    total = sum(each[0].size for each in latents)
    print(f"{len(images)} frames, {total} latents of {latents[0].shape[0]} channels, one thread")
    print(f"encoding: {total / encoding:,.0f} latents a second")
    print(f"{'K = ' + str(options.clusters):<44}{'seconds':>9}{'latents/s':>13}{'distance':>10}")
    for row in rows:
        print(
            f"{row['way']:<44}{row['seconds']:>9.2f}{row['rate']:>13,.0f}{row['distance']:>10.4f}"
        )
    for count, most in memory:
        print(f"memory while latents of {count} frames are drawn: {most / 1e6:.1f} MB at most")
    if options.json:
        record = {
            "frames": len(images),
            "latents": total,
            "encoding_seconds": encoding,
            "fits": rows,
            "memory": [{"frames": count, "bytes": most} for count, most in memory],
            "environment": environment(),
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def compare(latents: Sequence[Latents], clusters: int) -> list[dict[str, Any]]:
    """Time each way of fitting on the same latents [D, h, w] of each frame."""
    settings = FitSettings(clusters=clusters)
    every = np.concatenate([flat(each) for each in latents])

    def ours(restarts: int) -> Latents:
        numbers = [np.array(i) for i in range(len(latents))]
        drawn = draw_samples(
            cast(EncoderSession, Recorded(latents)),
            cast("Sequence[NDArray[np.uint8]]", numbers),
            count=settings.samples,
            seed=0,
        )
        return cluster(drawn.latents, clusters, restarts=restarts).centres

    def streamed() -> Latents:
        fit = MiniBatchKMeans(clusters, random_state=0, n_init=1)
        for each in latents:
            fit.partial_fit(flat(each))
        return np.asarray(fit.cluster_centers_, np.float32)

    ways: list[tuple[str, Callable[[], Latents]]] = [
        (
            f"aeseg, {settings.starts(clusters)} starts on {settings.samples} drawn",
            lambda: ours(settings.starts(clusters)),
        ),
        ("aeseg, 1 start", lambda: ours(1)),
        (
            "scikit-learn KMeans, 1 start, all latents",
            lambda: np.asarray(
                KMeans(clusters, n_init=1, random_state=0).fit(every).cluster_centers_, np.float32
            ),
        ),
        (
            "scikit-learn MiniBatchKMeans, all latents",
            lambda: np.asarray(
                MiniBatchKMeans(clusters, random_state=0, n_init=3).fit(every).cluster_centers_,
                np.float32,
            ),
        ),
        ("scikit-learn MiniBatchKMeans, frame by frame", streamed),
    ]
    rows = []
    for way, run in ways:
        started = time.process_time()
        centres = run()
        seconds = time.process_time() - started
        rows.append(
            {
                "way": way,
                "seconds": seconds,
                "rate": len(every) / seconds,
                "distance": distance(every, centres),
            }
        )
    return rows


def flat(latents: Latents) -> Latents:
    """[D, h, w] -> [n, D]."""
    return np.ascontiguousarray(latents.reshape(len(latents), -1).T)


def distance(points: Latents, centres: Latents) -> float:
    """Mean squared distance of each point [n, D] to the nearest centre [K, D]."""
    half = 0.5 * (centres**2).sum(axis=1)
    parts = (
        (part**2).sum(axis=1) - 2 * (part @ centres.T - half).max(axis=1) for part in chunks(points)
    )
    return float(np.concatenate(list(parts)).mean())


def chunks(points: Latents, size: int = 65_536) -> Iterator[Latents]:
    """Cut into parts."""
    return (points[i : i + size] for i in range(0, len(points), size))


def peak(
    session: EncoderSession, images: Sequence[NDArray[np.uint8]], count: int
) -> tuple[int, int]:
    """Most bytes that Python and numpy hold while latents of ``count`` frames are drawn."""
    tracemalloc.start()
    draw_samples(session, Repeated(images, count), count=FitSettings().samples, seed=0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return count, most


if __name__ == "__main__":
    main()
