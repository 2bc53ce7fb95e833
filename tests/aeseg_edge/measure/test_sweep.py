"""The table over precisions, backends and threads; what cannot run stays a row."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.errors import BackendError, SourceError, UsageError
from aeseg_edge.measure.power import PowerRecord
from aeseg_edge.measure.sweep import COLUMNS, Sweep, draw_distributions, sweep


@pytest.fixture(scope="module")
def bundle(v1_bundle: Path) -> Bundle:
    return Bundle.open(v1_bundle)


@pytest.fixture(scope="module")
def found(bundle: Bundle) -> Sweep:
    told: list[str] = []
    made = sweep(bundle, threads=[1, 2], frames=5, warmup_seconds=0, tell=told.append)
    assert told == [row.format for row in made.rows]
    return made


def test_every_precision_backend_and_thread_count_is_a_row(found: Sweep) -> None:
    assert [(row.precision, row.backend, row.threads) for row in found.rows] == [
        ("fp32", "onnxruntime", 1),
        ("fp32", "onnxruntime", 2),
        ("fp16", "onnxruntime", 1),
        ("fp16", "onnxruntime", 2),
        ("int8", "onnxruntime", 1),
        ("int8", "onnxruntime", 2),
        ("fp32", "tensorrt", None),
        ("fp16", "tensorrt", None),
        ("int8", "tensorrt", None),
    ]
    assert found.rows[1].format == "fp32 onnxruntime, 2 threads"


def test_what_cannot_run_says_why_and_the_others_are_measured(found: Sweep) -> None:
    measured = {row.format for row in found.rows if row.report is not None}
    wanted = {f"{p} onnxruntime, {t}" for p in ("fp32", "int8") for t in ("1 thread", "2 threads")}
    assert wanted <= measured
    half = found.rows[2]
    assert (half.report, half.reason) == (None, "the bundle has no fp16 graph for onnxruntime")
    assert half.cells() == (half.format, *["-"] * (len(COLUMNS) - 1))


def test_the_markdown_is_a_table_with_its_reasons_and_machine_below(found: Sweep) -> None:
    lines = found.to_markdown().splitlines()
    head = "| Format | Size MB | ms p50 | p95 | p99 | FPS | Agreement | W | FPS/W |"
    assert lines[0] == head
    assert len({line.count("|") for line in lines[: 2 + len(found.rows)]}) == 1
    first = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert first[0] == "fp32 onnxruntime, 1 thread"
    assert first[6:] == ["reference", "-", "-"]
    int8 = [cell.strip() for cell in lines[6].split("|")[1:-1]]
    assert int8[6].endswith(" %")
    text = "\n".join(lines[2 + len(found.rows) :])
    assert "- fp16 onnxruntime, 1 thread: the bundle has no fp16 graph for onnxruntime." in text
    assert "onnxruntime 1." in text
    assert "frames 96x64 (synthetic), 5 a row" in text


def test_power_fills_its_columns_where_it_is_measured(found: Sweep) -> None:
    row = found.rows[0]
    assert row.report is not None
    record = PowerRecord((0.0, 1.0), {"VDD_IN": (4.0, 6.0)}, {}, None)
    cells = replace(row, report=replace(row.report, fps=100.0, power=record)).cells()
    assert cells[5:] == ("100.0", "reference", "5.00", "20.00")


def test_three_files_are_written_under_one_prefix(found: Sweep, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = found.write(tmp_path / "street.v2")
    assert [path.name for path in written] == ["street.v2.md", "street.v2.json", "street.v2.png"]
    data = json.loads(written[1].read_text())
    assert len(data["rows"][0]["report"]["samples_ms"]["total"]) == 5
    assert data["rows"][2]["reason"].startswith("the bundle has no fp16")
    assert written[0].read_text() == found.to_markdown()


def test_without_matplotlib_there_is_no_picture_and_no_failure(
    found: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert [path.suffix for path in found.write(tmp_path / "s")] == [".md", ".json"]


def test_a_row_that_fails_on_the_way_keeps_its_reason(bundle: Bundle) -> None:
    def load(*_args: object, **_options: object) -> Any:
        raise BackendError("the device is gone", fix="Restart it.")

    made = sweep(
        bundle, threads=[1], precisions=["int8"], backends=["onnxruntime"], load=load, frames=1
    )
    assert [row.reason for row in made.rows] == ["the device is gone"]


def test_a_source_without_frames_fails_at_once(bundle: Bundle) -> None:
    with pytest.raises(SourceError, match="empty"):
        sweep(bundle, threads=[1], source_frames=[], source="empty")
    with pytest.raises(UsageError, match="0 frames"):
        sweep(bundle, threads=[1], frames=0)


def test_the_picture_has_a_curve_for_each_name() -> None:
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("matplotlib")

    def draw(samples: dict[str, list[float]]) -> np.ndarray:
        png = draw_distributions(samples, "latency")
        assert png is not None
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)

    one = draw({"a": [1.0, 2.0, 3.0]})
    assert one.shape == (550, 900, 3)
    two = draw({"a": [1.0, 2.0, 3.0], "b": [5.0, 6.0], "nothing": []})
    blue, red = (170, 119, 68), (119, 102, 238)  # BGR of the first two colours
    assert (one == blue).all(axis=2).sum() > 100
    assert not (one == red).all(axis=2).any()
    assert (two == red).all(axis=2).sum() > 100
    assert draw({}).shape == (550, 900, 3)
