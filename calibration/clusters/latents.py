"""Latents of frames, from the encoder's ONNX graph: no torch needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.backends.session import open_session
from aeseg_edge.bundle.contract import ENCODED, FRAME
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.evenly import evenly
from aeseg_edge.support.progress import Tick

Boxes = Sequence[tuple[int, int, int, int]]
"""Top, left, rows and columns of each frame's picture in the graph's input: no bars."""


class EncoderSession:
    """Runs an encoder's ONNX graph (``frame`` -> ``encoded``) on the CPU."""

    def __init__(self, encoder: onnx.ModelProto, *, threads: int | None = None) -> None:
        self._session = open_session(
            encoder.SerializeToString(), threads=threads, spin=True, extra="calibrate"
        )

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode uint8 [H, W, C] at a multiple of the deepest stride: float32 [D, H/r, W/r]."""
        encoded: NDArray[np.float32] = self._session.run([ENCODED], {FRAME: frame[None]})[0][0]
        return encoded


@dataclass(frozen=True)
class Samples:
    """Latents, float32 [n, D], and the index of each one's frame, int64 [n], ascending."""

    latents: NDArray[np.float32]
    frames: NDArray[np.int64]

    def centred(self, mean: NDArray[np.floating]) -> Samples:
        """Subtract a mean, float [D]."""
        return replace(self, latents=(self.latents - mean).astype(np.float32))

    def pick(self, count: int, seed: int) -> Samples:
        """Draw so many without replacement, in order; all of them when there are no more."""
        if len(self.latents) <= count:
            return self
        generator = np.random.default_rng(seed)
        return self.where(np.sort(generator.choice(len(self.latents), count, replace=False)))

    def where(self, chosen: NDArray[Any]) -> Samples:
        """Take some: a mask or indices."""
        return Samples(self.latents[chosen], self.frames[chosen])


def sample_latents(
    session: EncoderSession,
    frames: Sequence[NDArray[np.uint8]],
    *,
    count: int,
    seed: int,
    region: NDArray[np.uint8] | None = None,
    boxes: Boxes | None = None,
    tick: Tick | None = None,
) -> NDArray[np.float32]:
    """Draw latents as ``draw_samples`` does, and forget where they are from."""
    drawn = draw_samples(
        session, frames, count=count, seed=seed, region=region, boxes=boxes, tick=tick
    )
    return drawn.latents


def draw_samples(
    session: EncoderSession,
    frames: Sequence[NDArray[np.uint8]],
    *,
    count: int,
    seed: int,
    region: NDArray[np.uint8] | None = None,
    boxes: Boxes | None = None,
    tick: Tick | None = None,
) -> Samples:
    """Draw at most ``count`` latents evenly from frames, without replacement within a frame.

    Only those count whose cell's centre lies in ``region`` (uint8 [H, W], above 127) and in no bar
    around ``boxes``. CalibrationError if there are none, or they are not finite.
    """
    if not len(frames):
        raise CalibrationError("there are no frames to take latents from", fix="Give footage.")
    generator = np.random.default_rng(seed)
    # One latent of each frame at least, and no more frames than latents are wanted.
    chosen = evenly(len(frames), count)
    share = -(-count // len(chosen))
    samples = np.empty((0, 0), np.float32)
    origins = np.empty(0, np.int64)
    filled = 0
    for done, index in enumerate(chosen.tolist()):
        latents = session(frames[index])
        dim, rows, columns = latents.shape
        flat = latents.reshape(dim, -1)
        inside = cells_seen(index, frames[index].shape, (rows, columns), region, boxes)
        if inside is not None:
            flat = flat[:, inside.ravel()]
        size = flat.shape[1]
        if size > share:
            flat = flat[:, np.sort(generator.choice(size, share, replace=False))]
        if not samples.size:
            # What is held does not grow with the footage.
            most = len(chosen) * min(share, rows * columns)
            samples, origins = np.empty((most, dim), np.float32), np.empty(most, np.int64)
        taken = slice(filled, filled + flat.shape[1])
        samples[taken], origins[taken] = flat.T, index
        filled = taken.stop
        if tick is not None:
            tick((done + 1) / len(chosen))
    samples, origins = samples[:filled], origins[:filled]
    if not samples.size:
        what, fix = "region of interest holds", "Use a mask with a larger white part."
        if region is None:
            what, fix = "pictures between their bars hold", "Use --resize stretch or larger images."
        raise CalibrationError(f"the {what} no latents", fix=fix)
    if not np.isfinite(samples).all():
        raise CalibrationError(
            "the encoder gives latents that are not finite",
            fix="Train again with a lower learning rate.",
        )
    drawn = Samples(samples, origins)
    if len(samples) > count:
        drawn = drawn.where(np.sort(generator.choice(len(samples), count, replace=False)))
    return drawn


def cells_inside(region: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.bool_]:
    """Tell whose cell's centre is in a region (uint8, above 127): bool [rows, columns]."""
    y = (np.arange(rows) * 2 + 1) * region.shape[0] // (2 * rows)
    x = (np.arange(columns) * 2 + 1) * region.shape[1] // (2 * columns)
    inside: NDArray[np.bool_] = region[y][:, x] > 127
    return inside


def cells_seen(
    index: int,
    shape: Sequence[int],
    grid: Sequence[int],
    region: NDArray[np.uint8] | None,
    boxes: Boxes | None,
) -> NDArray[np.bool_] | None:
    """Tell which latents of a frame count, as when it is segmented: bool [rows, columns].

    Those of cells whose centre lies in the region and in no bar; None where all do.
    """
    rows, columns = grid
    inside = None if region is None else cells_inside(region, rows, columns)
    if boxes is None or boxes[index] == (0, 0, shape[0], shape[1]):
        return inside
    top, left, height, width = boxes[index]
    y = (np.arange(rows) + 0.5) * shape[0] / rows - top
    x = (np.arange(columns) + 0.5) * shape[1] / columns - left
    picture: NDArray[np.bool_] = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    return picture if inside is None else picture & inside


def boxes_of(geometry: Geometry, sizes: NDArray[np.int64] | None) -> Boxes | None:
    """Give where each frame's picture lies between bars; None without any, or where not known."""
    if sizes is None or geometry.resize == "stretch":
        return None
    return [geometry.box(rows, columns) for rows, columns in sizes.tolist()]
