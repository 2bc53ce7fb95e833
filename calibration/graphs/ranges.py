"""Ranges of activations: of all values, or cut off where that costs less than it gains.

Frames are looked at one by one, twice: once for the largest values, once for histograms up to
them. What is kept is a histogram a tensor, however many frames there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from aeseg_edge.backends.session import open_session
from aeseg_edge.bundle.contract import FRAME
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.progress import Tick

CUT = ("percentile", "entropy")
"""Ways that cut off; with ``minmax`` onnxruntime's own calibration needs no more."""

PERCENTILE = 99.99
"""Of the magnitudes; what is above is cut off."""

BINS = 2048
"""Of the magnitudes' histograms."""

STEP = 8
"""Bins from one range that is tried to the next, 0.4 % of the largest."""

EMPTY = 1e-4
"""Count of a bin that has none, for values that are cut to it."""

_BETWEEN = ("Relu", "Clip")
"""What takes the place of a convolution's output where it is all that reads it."""

Look = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[np.float32]]]
"""A frame, uint8 [H, W, C], to activations by name."""

Range = tuple[np.float32, np.float32]


def cut_ranges(
    model: onnx.ModelProto,
    frames: Sequence[NDArray[np.uint8]],
    operations: Sequence[str],
    *,
    method: str,
    unsigned: bool,
    tick: Tick,
) -> dict[str, Range]:
    """Find the range of every activation that ``operations`` read or write.

    ``model`` is an encoder with shapes inferred, ``method`` one of ``CUT``; ``unsigned``: values
    that are never negative get all 256 levels and not half of them.
    """
    names = _activations(model, operations)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {item.name: item for item in watched.graph.value_info}
    there = {item.name for item in (*watched.graph.output, *watched.graph.input)}
    watched.graph.output.extend(known[name] for name in names if name not in there)
    session = open_session(watched.SerializeToString(), threads=None, spin=True, extra="calibrate")

    def look(frame: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(names, session.run(names, {FRAME: frame[None]}), strict=True))

    found = observe(look, frames, method=method, unsigned=unsigned, tick=tick)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type in _BETWEEN and node.op_type in operations:
            before = node.input[0]
            if before in found and len(readers[before]) == 1:
                found[before] = found[node.output[0]]
    return found


def observe(
    look: Look,
    frames: Sequence[NDArray[np.uint8]],
    *,
    method: str,
    unsigned: bool,
    tick: Tick = lambda fraction: None,
) -> dict[str, Range]:
    """Find the range of each activation that ``look`` gives; see ``cut_ranges``."""
    lowest: dict[str, np.float32] = {}
    highest: dict[str, np.float32] = {}
    for index, frame in enumerate(frames):
        for name, values in look(frame).items():
            least, most = values.min(), values.max()
            if not (np.isfinite(least) and np.isfinite(most)):
                raise CalibrationError(
                    f"the int8 range of {name} is not finite",
                    fix="Train again with a lower learning rate.",
                )
            lowest[name] = min(lowest.get(name, least), least)
            highest[name] = max(highest.get(name, most), most)
        tick((index + 1) / (2 * len(frames)))
    ends = {name: max(-lowest[name], highest[name]) for name in lowest}
    counts = {name: np.zeros(BINS, np.int64) for name in lowest}
    for index, frame in enumerate(frames):
        for name, values in look(frame).items():
            if ends[name] > 0:
                counts[name] += np.histogram(np.abs(values), BINS, (0.0, float(ends[name])))[0]
        tick((len(frames) + index + 1) / (2 * len(frames)))
    found = {}
    for name, end in ends.items():
        levels = 256 if unsigned and lowest[name] >= 0 else 128
        bins = _bins(counts[name], method, levels) if end > 0 else BINS
        limit = np.float32(end * bins / BINS)
        found[name] = (max(-limit, lowest[name]), min(limit, highest[name]))
    return found


def _bins(counts: NDArray[np.int64], method: str, levels: int) -> int:
    """Say how many bins of a histogram of magnitudes lie within the range."""
    if method == "percentile":
        share = np.cumsum(counts) / counts.sum()
        return min(BINS, int(np.searchsorted(share, PERCENTILE / 100)) + 1)
    return _least_divergence(counts.astype(np.float64), levels)


def _least_divergence(counts: NDArray[np.float64], levels: int) -> int:
    """Find the range within which quantised values stay closest to what they were, in bins.

    For every range the values cut to it are one distribution and the same ones at ``levels`` levels
    another; the range with the smallest Kullback-Leibler divergence is taken. Source: Migacz, 8-bit
    Inference with TensorRT, GTC 2017 (S7310); as there, the bin of zeros, which rectifiers fill,
    counts no more than its neighbour.
    """
    counts = counts.copy()
    counts[0] = counts[1]
    last = np.flatnonzero(counts)
    if not len(last):
        return BINS
    total, best, chosen = counts.sum(), np.inf, BINS
    for bins in range(levels, BINS + 1, STEP):
        inside = counts[:bins]
        cut = inside.copy()
        cut[-1] += total - inside.sum()
        # Each level's counts are spread over those of its bins that have any.
        level = np.arange(bins) * levels // bins
        filled = inside > 0
        held = np.bincount(level, inside, levels)
        spread = held / np.maximum(np.bincount(level, filled, levels), 1)
        coarse = np.where(filled, spread[level], EMPTY)
        there = cut > 0
        p, q = cut[there] / total, coarse[there] / coarse.sum()
        divergence = float((p * np.log(p / q)).sum())
        if divergence < best:
            best, chosen = divergence, bins
    return chosen


def _activations(model: onnx.ModelProto, operations: Sequence[str]) -> list[str]:
    """Name what operations read or write as float32, in graph order."""
    floats = {
        item.name
        for item in (*model.graph.value_info, *model.graph.output)
        if item.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    fixed = {item.name for item in model.graph.initializer}
    names = [
        name
        for node in model.graph.node
        if node.op_type in operations
        for name in (*node.input, *node.output)
        if name in floats and name not in fixed
    ]
    return list(dict.fromkeys(names))
