"""Bounds are what one can work out by hand, and never above what a quieter count gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.calibration.graphs.deployed import attach_head  # noqa: E402
from aeseg_edge.calibration.graphs.int8 import quantize_for_tensorrt  # noqa: E402
from aeseg_edge.calibration.graphs.layers import Layer, layers_of  # noqa: E402
from aeseg_edge.calibration.report import cpu as cpu_peak  # noqa: E402
from aeseg_edge.calibration.report.devices import CPU, DEVICES, NAMES, Device  # noqa: E402
from aeseg_edge.calibration.report.roofline import roofline, rooflines  # noqa: E402
from aeseg_edge.cli.main import main  # noqa: E402
from aeseg_edge.errors import UsageError  # noqa: E402
from aeseg_edge.measure.profile import node_times  # noqa: E402
from tests.doubles.graph import SPEC, codebook, deployed, encoder  # noqa: E402

# One operation and one byte a millisecond: bounds are counts.
UNIT = Device("unit", "a device", {"int8": 1e3, "fp16": 1e3, "fp32": 1e3}, 1e3, "made up")
SLOW_MEMORY = replace(UNIT, bandwidth=1.0)


@pytest.fixture(scope="module")
def bundle(v1_bundle: Path) -> Bundle:
    return Bundle.open(v1_bundle)


def test_operations_and_values_are_those_of_the_shapes() -> None:
    layers = layers_of(onnx.load_from_string(deployed()), SPEC, clusters=5)
    cells = (32 // 4) * (48 // 4)
    first, project, head = layers
    assert first == Layer(
        name="first",
        kind="Conv",
        part="encoder",
        operations=2 * 8 * cells * 3 * 4 * 4,
        weights=8 * 3 * 4 * 4,
        inputs=3 * 32 * 48,
        outputs=8 * cells,
        reads_frame=True,
    )
    assert (project.operations, project.weights) == (2 * 4 * cells * 8, 32)
    assert (project.part, project.reads_frame) == ("encoder", False)
    assert (head.part, head.operations) == ("head", 2 * 5 * 8 * cells)
    assert (head.weights, head.inputs, head.outputs) == (5 * 8, 8 * cells, 5 * cells)


def test_more_clusters_and_a_larger_frame_cost_what_they_should() -> None:
    model = onnx.load_from_string(deployed())
    small = layers_of(model, SPEC, clusters=5)
    wide = layers_of(model, replace(SPEC, width=96), clusters=10)
    assert [b.operations / a.operations for a, b in zip(small, wide, strict=True)] == [2, 2, 4]


def test_the_bytes_of_the_frame_are_bytes_in_every_precision() -> None:
    first = layers_of(onnx.load_from_string(deployed()), SPEC, clusters=5)[0]
    frame, rest = 3 * 32 * 48, first.weights + first.outputs
    assert [first.bytes_at(p) for p in ("int8", "fp16", "fp32")] == [
        frame + rest,
        frame + 2 * rest,
        frame + 4 * rest,
    ]


def test_grouped_convolutions_multiply_within_their_group(bundle: Bundle) -> None:
    node = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], name="depthwise", kernel_shape=[3, 3], group=6, pads=[1] * 4
    )
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [tensor("x", 1, [1, 6, 5, 7])],
        [tensor("y", 1, [1, 6, 5, 7])],
        [onnx.numpy_helper.from_array(np.zeros((6, 1, 3, 3), np.float32), "w")],
    )
    (layer,) = layers_of(onnx.helper.make_model(graph), SPEC, 5)
    assert layer.operations == 2 * 6 * 5 * 7 * 9


def test_a_layer_takes_the_longer_of_its_operations_and_its_bytes(bundle: Bundle) -> None:
    for device, limit in ((UNIT, "operations"), (SLOW_MEMORY, "bytes")):
        found = roofline(bundle, device, "fp16")
        convolution = max(found.layers, key=lambda each: each.layer.operations)
        assert convolution.limit == limit
        assert convolution.milliseconds == max(convolution.operations_ms, convolution.bytes_ms)
        assert found.milliseconds() == pytest.approx(sum(x.milliseconds for x in found.layers))
        assert found.milliseconds() == pytest.approx(
            found.milliseconds("encoder") + found.milliseconds("head")
        )


def test_what_holds_for_any_implementation_is_not_above_the_count_layer_by_layer(
    bundle: Bundle,
) -> None:
    for device in (*DEVICES.values(), UNIT, SLOW_MEMORY):
        for found in rooflines(bundle, device):
            assert 0 < found.fused_milliseconds() <= found.milliseconds()


def test_what_an_int8_graph_leaves_in_floating_point_counts_as_that(bundle: Bundle) -> None:
    runs_in = {each.layer.name: each.precision for each in roofline(bundle, UNIT, "int8").layers}
    *convolutions, projection, head = runs_in.values()
    assert set(convolutions) == {"int8"}
    assert (projection, head) == ("fp16", "fp32")
    cpu = replace(UNIT, name="cpu")
    assert [each.precision for each in roofline(bundle, cpu, "int8").layers][-2:] == ["fp32"] * 2


def test_an_excluded_layer_makes_the_bound_larger(bundle: Bundle) -> None:
    """The doubles' encoder, because v1's graphs were made long ago."""
    frames = [np.random.default_rng(i).integers(0, 256, (32, 48, 3), np.uint8) for i in range(2)]
    graphs = dict(bundle.graphs)
    graphs["graphs/fp32.onnx"] = deployed()
    bounds = []
    for exclude in ((), ("first",)):
        model = quantize_for_tensorrt(encoder(), frames, exclude=exclude)
        graphs["graphs/int8-tensorrt.onnx"] = attach_head(model, SPEC).SerializeToString()
        manifest = replace(
            bundle.manifest,
            geometry=replace(bundle.manifest.geometry, width=48, height=32),
            latent_dim=4,
            multiple=4,
            stride=4,
            output_stride=2,
            spread=None,
        )
        made = Bundle.build(manifest, codebook(), graphs)
        bounds.append(roofline(made, DEVICES["orin-nano"], "int8").milliseconds())
    assert bounds[1] > bounds[0]


def test_the_figures_of_devices_are_dense_and_cite_a_data_sheet() -> None:
    nano, agx = DEVICES["orin-nano"], DEVICES["agx-orin"]
    assert (nano.operations["int8"], agx.operations["int8"]) == (20e12, 85e12)
    assert nano.bandwidth == pytest.approx(68e9, rel=0.01)
    for device in DEVICES.values():
        assert device.operations["int8"] / device.operations["fp16"] == pytest.approx(2, rel=0.05)
        assert "NVIDIA" in device.source
    assert {*DEVICES, CPU} == set(NAMES)


# --- this CPU -------------------------------------------------------------------------------------


def test_peaks_of_this_cpu_are_found_and_the_faster_copy_is_used() -> None:
    told: list[float] = []
    peaks = cpu_peak.measure_peaks(seconds=0.0, progress=told.append)
    assert peaks.int8 > 0 < peaks.fp32
    device = peaks.device()
    assert device.bandwidth == max(peaks.cached, peaks.memory)
    assert set(device.operations) == {"int8", "fp32"}
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_copy_that_stays_within_the_cache_is_said_to() -> None:
    peaks = cpu_peak.CpuPeaks(1.0, 1.0, (1, 1, 1), (1, 1, 1), 2.0, 1.0, 100, 300, "1")
    assert peaks.beyond_cache is False
    assert replace(peaks, copied=200).beyond_cache is True
    assert replace(peaks, last_level=None).beyond_cache is None


def test_the_last_level_cache_is_the_largest_that_the_system_names(tmp_path: Path) -> None:
    for index, text in enumerate(("48K", "2048K", "30M", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(text + "\n")
    assert cpu_peak.last_level_cache(tmp_path) == 30 << 20
    assert cpu_peak.last_level_cache(tmp_path / "none") is None


def events(*frames: dict[str, float]) -> list[dict[str, Any]]:
    """A profile as ONNX Runtime writes it, times in microseconds."""
    made: list[dict[str, Any]] = []
    for frame in frames:
        for name, spent in frame.items():
            made.append(
                {
                    "cat": "Node",
                    "name": f"{name}_kernel_time",
                    "dur": spent,
                    "args": {"op_name": "Conv"},
                }
            )
        made.append({"cat": "Session", "name": "model_run", "dur": sum(frame.values())})
    return made


def test_a_profile_is_added_up_frame_by_frame() -> None:
    usual = {"conv": 1000.0, "reorder": 200.0, "head/argmax": 300.0}
    cold = dict.fromkeys(usual, 90_000.0)
    slow = {**usual, "conv": 7000.0}
    times, _ = node_times(events(cold, slow, usual, slow), warmup=1)
    encoder, head = cpu_peak.encoder_times(times, {"head/argmax"})
    found = float(np.median(encoder)), encoder.min(), float(np.median(head))
    assert found == pytest.approx((7.2, 1.2, 0.3))
    medians = tuple((name, float(np.median(spent))) for (name, _), spent in times.items())
    assert medians == (("conv", 7.0), ("reorder", 0.2), ("head/argmax", 0.3))


def test_the_encoder_of_the_cpu_graph_is_set_against_its_bound(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_profiled = cpu_peak.run_profiled

    def timed_by_no_clock(*given: Any, **options: Any) -> tuple[list[dict[str, Any]], set[str]]:
        """The real nodes, each of which takes a millisecond."""
        events, head = run_profiled(*given, **options)
        return [{**event, "dur": 1000.0} for event in events], head

    monkeypatch.setattr(cpu_peak, "run_profiled", timed_by_no_clock)
    peaks = cpu_peak.CpuPeaks(1e9, 1e9, (1, 1, 1), (1, 1, 1), 1e9, 1e9, 1, None, "1")
    found = cpu_peak.cpu_share(bundle, peaks=peaks, runs=3)
    assert found.bound_ms == roofline(bundle, peaks.device(), "int8").milliseconds("encoder")
    assert found.share == pytest.approx(found.bound_ms / found.measured_ms)
    assert found.fastest_share == pytest.approx(found.share)
    names = [name for name, _ in found.layers_ms]
    assert any(name.startswith("head/") for name in names)
    assert found.measured_ms + found.head_ms == pytest.approx(
        sum(spent for _, spent in found.layers_ms)
    )
    assert found.head_ms > 0
    assert found.measured_ms > 2  # of more nodes than the first and the last


# --- the command ----------------------------------------------------------------------------------


def test_the_command_says_bound_and_that_no_jetson_was_used(
    v1_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bound.json"
    command = ["roofline", str(v1_bundle), "--device", "agx-orin", "--json", str(target)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "LOWER BOUNDS on latency, not predictions" in said
    assert "Nothing was run on a Jetson" in said
    assert "DS-10662-001" in said
    data = json.loads(target.read_text())
    assert data["run_on_the_device"] is False
    assert set(data["precisions"]) == {"fp32", "fp16", "int8"}
    assert data["total"]["bound_ms"] == pytest.approx(
        sum(layer["bound_ms"] for layer in data["layers"])
    )
    assert data["precisions"]["int8"]["bound_ms"] == pytest.approx(data["total"]["bound_ms"])


def test_a_larger_size_has_a_larger_bound(
    v1_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for more in ([], ["--imgsz", "192x128"]):
        command = ["roofline", str(v1_bundle), "--device", "orin-nano", "--json", "-", *more]
        assert main(command) == 0
        found.append(json.loads(capsys.readouterr().out)["total"]["operations"])
    assert found[1] == 4 * found[0]


def test_a_cpu_has_no_fp16(bundle: Bundle, v1_bundle: Path) -> None:
    with pytest.raises(UsageError, match="no fp16"):
        roofline(bundle, Device("cpu", "", {"int8": 1.0, "fp32": 1.0}, 1.0, ""), "fp16")
    assert main(["roofline", str(v1_bundle), "--device", "cpu", "--precision", "fp16"]) == 2
