"""Time by node: which belong to the head, and how events become figures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aeseg_edge.backends.session import label_feed
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.pretrained import pretrained_path
from aeseg_edge.errors import BackendError
from aeseg_edge.measure.bench import synthetic_frame
from aeseg_edge.measure.profile import (
    format_table,
    head_nodes,
    inner_nodes,
    profile_nodes,
    summarise_profile,
)


def node(name: str, inputs: str, outputs: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, input=inputs.split(), output=outputs.split())


def event(name: str, microseconds: int, op: str = "Conv") -> dict[str, Any]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": microseconds,
        "args": {"op_name": op},
    }


def run(microseconds: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "dur": microseconds}


def test_whatever_follows_the_encoded_tensor_is_head_whatever_its_name() -> None:
    nodes = [
        node("conv", "frame weight", "reordered"),
        node("ReorderOutput", "reordered", "encoded"),
        node("fused_by_somebody", "encoded previous", "mixed"),
        node("head/head_grid", "previous", "grid"),  # does not follow it, but is named so
        node("another", "mixed grid", "labels"),
    ]
    assert head_nodes(nodes) == {"fused_by_somebody", "head/head_grid", "another"}


def test_medians_leave_the_warm_up_out_and_shares_add_up() -> None:
    events = [
        event("conv", 900), event("head/a", 500), run(2000),
        event("conv", 300), event("head/a", 100), run(450),
        event("conv", 310), event("head/a", 110), run(460),
        event("conv", 290), event("head/a", 90), run(440),
        {"cat": "Session", "name": "session_initialization", "dur": 9},
        {"cat": "Node", "name": "conv_fence_before", "dur": 9, "args": {"op_name": "Conv"}},
    ]  # fmt: skip
    found = summarise_profile(events, {"head/a"}, warmup=1)
    assert [(each.name, each.milliseconds, each.head) for each in found.nodes] == [
        ("conv", 0.3, False),
        ("head/a", 0.1, True),
    ]
    assert found.head_share == pytest.approx(0.25)
    assert found.run_milliseconds == pytest.approx(0.45)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["nodes"][0] == {"name": "conv", "op": "Conv", "head": False, "ms": 0.3, "runs": 3}
    text = format_table(found, most=1)
    assert "1 more nodes" in text
    assert "head 0.10 ms (25.0 % of the nodes' time)" in text


def test_nodes_that_share_a_name_are_added_up() -> None:
    events = [event("Reorder", 10), event("Reorder", 30), run(50)] * 2
    found = summarise_profile(events, set(), warmup=1)
    assert [each.milliseconds for each in found.nodes] == [0.04]


def test_a_profile_without_nodes_is_an_error() -> None:
    with pytest.raises(BackendError, match="times no node"):
        summarise_profile([run(5)], set(), warmup=0)
    with pytest.raises(BackendError, match="times no node"):
        summarise_profile([event("conv", 5), run(5)], set(), warmup=1)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_real_graph_has_convolutions_in_the_encoder_and_the_argmax_in_the_head(
    v1_bundle: Path, precision: str
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    bundle = Bundle.open(v1_bundle)
    geometry = bundle.manifest.geometry
    frame = synthetic_frame(geometry.height, geometry.width, 3)
    found = profile_nodes(bundle, frame, precision=precision, frames=3, warmup=1)
    head = {each.op for each in found.nodes if each.head}
    encoder = {each.op for each in found.nodes if not each.head}
    assert {"ArgMax", "Resize"} <= head
    assert any("Conv" in op for op in encoder)
    assert not any("Conv" in op for op in head)
    assert "ArgMax" not in encoder
    assert 0 < found.head_share < 1
    assert {each.runs for each in found.nodes} == {3}


def test_what_runs_inside_a_branch_is_counted_with_the_branch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from aeseg_edge.calibration.graphs.deployed import attach_head
    from tests.doubles import graph as double

    made = attach_head(double.encoder(), double.SPEC, gate=0.5, layout="cpu")
    inner = inner_nodes(made.graph.node)
    assert {"head/head_gate", "head/head_best"} <= inner
    assert inner.isdisjoint({each.name for each in made.graph.node})
    bundle = Bundle.open(pretrained_path())
    geometry = bundle.manifest.geometry
    frame = synthetic_frame(geometry.height, geometry.width, 3)
    fed: list[bool] = []

    def noted(*given: Any, **options: Any) -> dict[str, Any]:
        feed = label_feed(*given, **options)
        fed.append(bool(feed["extras"][0]))
        return feed

    monkeypatch.setattr("aeseg_edge.measure.profile.label_feed", noted)
    for everything in (False, True):
        found = profile_nodes(
            bundle, frame, precision="int8", frames=2, warmup=1, everything=everything
        )
        names = {each.name for each in found.nodes}
        assert "head/if_extras" in names
        assert names.isdisjoint(inner)
    assert fed == [False, True]
