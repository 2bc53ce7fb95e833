"""Ranges that cut off cut where they say, and cost no more memory with more frames."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper  # noqa: E402

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.calibration.graphs.deployed import detach_head  # noqa: E402
from aeseg_edge.calibration.graphs.int8 import quantize_for_cpu, quantize_for_tensorrt  # noqa: E402
from aeseg_edge.calibration.graphs.ranges import observe  # noqa: E402
from aeseg_edge.errors import CalibrationError  # noqa: E402

FRAMES = [np.zeros((1, 1, 3), np.uint8)] * 3


def ranges(values: np.ndarray, method: str, *, unsigned: bool = False) -> tuple[float, float]:
    """The range of values that come in three frames."""
    parts = iter([*np.array_split(values.astype(np.float32), 3)] * 2)
    found = observe(lambda _: {"x": next(parts)}, FRAMES, method=method, unsigned=unsigned)
    return tuple(float(end) for end in found["x"])


def test_a_percentile_leaves_so_many_magnitudes_out() -> None:
    values = np.linspace(-1, 1, 200_001)
    values[-1] = 50.0
    low, high = ranges(values, "percentile")
    assert low == -1
    # One bin of 2048 is the resolution.
    assert 1 <= high <= 1 + 2 * 50 / 2048
    values = np.linspace(0, 1, 100_001)
    assert ranges(values, "percentile") == (0.0, pytest.approx(0.9999, abs=1 / 2048))


def test_entropy_cuts_rare_tails_and_leaves_even_values_alone() -> None:
    even = np.linspace(-1, 1, 300_000)
    assert ranges(even, "entropy") == (-1.0, 1.0)
    normal = np.random.default_rng(0).normal(size=300_000)
    normal[:3] = 100.0
    low, high = ranges(normal, "entropy")
    assert 3 < high < 30
    assert low == pytest.approx(normal.min())
    rectified = np.maximum(normal, 0)
    low, high = ranges(rectified, "entropy", unsigned=True)
    assert low == 0
    assert 3 < high < 30


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_values_that_are_all_alike_keep_their_range(method: str) -> None:
    assert ranges(np.zeros(9), method) == (0.0, 0.0)
    assert ranges(np.full(9, 2.0), method) == (2.0, 2.0)
    assert ranges(np.full(9, -2.0), method) == (-2.0, -2.0)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_values_that_are_not_finite_are_refused(method: str) -> None:
    with pytest.raises(CalibrationError, match="range of x is not finite"):
        ranges(np.array([0.0, np.inf, 1.0]), method)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_nothing_of_a_frame_stays_in_memory_but_counts(method: str) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    generator = np.random.default_rng(0)

    def look(_: np.ndarray) -> dict[str, np.ndarray]:
        # Those of the frame before may be held until the next ones are there.
        assert [each() is None for each in made[:-2]] == [True] * max(0, len(made) - 2)
        values = {name: generator.normal(size=500).astype(np.float32) for name in "ab"}
        made.extend(weakref.ref(each) for each in values.values())
        return values

    observe(look, FRAMES * 4, method=method, unsigned=True)
    assert len(made) == 2 * 2 * 12


@pytest.mark.parametrize("quantize", [quantize_for_cpu, quantize_for_tensorrt])
def test_the_three_ways_give_three_graphs_and_none_is_wider_than_all_values(
    quantize: object, v1_bundle: Path
) -> None:
    graph = Bundle.open(v1_bundle).graph("fp32", "onnxruntime")
    encoder = detach_head(onnx.load_from_string(graph))
    frames = list(np.random.default_rng(0).integers(0, 256, (6, 64, 96, 3), np.uint8))
    told: list[float] = []
    scales = {}
    for method in ("minmax", "percentile", "entropy"):
        told.clear()
        model = quantize(  # type: ignore[operator]
            encoder, frames, method=method, progress=lambda _, done: told.append(done)
        )
        assert told == sorted(told)
        assert told[-1] == 1.0
        held = {item.name: item for item in model.graph.initializer}
        scales[method] = {
            node.input[0]: float(numpy_helper.to_array(held[node.input[1]]))
            for node in model.graph.node
            if node.op_type == "QuantizeLinear" and not held[node.input[1]].dims
        }
    assert len(scales["minmax"]) >= 2
    for method in ("percentile", "entropy"):
        assert scales[method].keys() == scales["minmax"].keys()
        share = [scales[method][name] / scales["minmax"][name] for name in scales[method]]
        assert max(share) <= 1.001
        assert min(share) < 0.99
    assert scales["percentile"] != scales["entropy"]
