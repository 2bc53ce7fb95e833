"""The short form of `make soak`: a camera that stalls, dies, is away and changes size."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from aeseg_edge.segment.segmenter import Segmenter

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", repository / "tools" / "soak.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_camera_that_misbehaves_costs_no_frame_no_thread_and_no_order(
    tool: ModuleType, v1_bundle: Path
) -> None:
    with Segmenter.load(v1_bundle, backend="onnxruntime", threads=1) as segmenter:
        # The clip comes with `make demo` and `make soak`; here the scene is drawn.
        outcome = tool.soak(
            segmenter, frames=400, fps=200, every=90, clips=tool.read_clips("drawn")
        )
    assert (outcome.stalls, outcome.reconnects) == (2, 6)
    # What depends on how busy the machine is, is for the long form to judge.
    calm = replace(outcome, age_p95_ms=0.0, slope_kib=0.0)
    assert calm.failures(slope_kib=32) == []


def test_every_figure_that_may_fail_does(tool: ModuleType) -> None:
    good = tool.Outcome(
        frames=100,
        frames_in=110,
        dropped=10,
        stalls=1,
        reconnects=2,
        lost_wakeups=0,
        unaccounted=0,
        out_of_order=0,
        segment_ms=3.0,
        segment_p95_ms=5.0,
        interval_ms=10.0,
        age_p50_ms=4.0,
        age_p95_ms=19.0,
        age_p99_ms=30.0,
        age_max_ms=60.0,
        waited_p99_ms=3.0,
        memory_mib=100.0,
        memory_end_mib=100.1,
        slope_kib=5.0,
        threads=0,
        seconds=1.0,
    )
    assert good.failures(slope_kib=32) == []
    for wrong in (
        {"lost_wakeups": 1},
        {"unaccounted": 1},
        {"out_of_order": 1},
        {"threads": 1},
        {"age_p95_ms": 21.0},
        {"slope_kib": 40.0},
        {"reconnects": 0},
        {"stalls": 0},
    ):
        assert len(replace(good, **wrong).failures(slope_kib=32)) == 1
    # Slower than the source: two segmentations are the bound.
    slow = replace(good, segment_ms=25.0, segment_p95_ms=30.0, age_p95_ms=49.0, waited_p99_ms=-2.0)
    assert slow.failures(slope_kib=32) == []
    assert len(replace(slow, age_p95_ms=51.0).failures(slope_kib=32)) == 1
    assert len(replace(slow, waited_p99_ms=0.5).failures(slope_kib=32)) == 1
