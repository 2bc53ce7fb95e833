"""The table of targets: what passes, what is told, and that its rows can be measured."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def rows(repository: Path) -> ModuleType:
    load(repository / "benchmarks" / "stand_ins.py")
    return load(repository / "benchmarks" / "target_rows.py")


@pytest.fixture(scope="module")
def tool(repository: Path, rows: ModuleType) -> ModuleType:
    """The script; it finds its neighbour as it does when it is run."""
    return load(repository / "benchmarks" / "targets.py")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def row(tool: ModuleType, key: str, value: float | None) -> dict:
    target = next(each for each in tool.TARGETS if each.key == key)
    return tool.to_row(target, tool.Found(value))


@pytest.mark.parametrize(
    ("key", "value", "passed", "hoped"),
    [
        ("fcn", 4.9, False, False),
        ("fcn", 5.0, True, False),
        ("fcn", 12.0, True, True),
        ("memory", 161.0, False, False),
        ("memory", 160.0, True, False),
        ("memory", 80.0, True, True),
        ("pixels", 14.0, True, None),
        ("fcn", None, None, None),
    ],
)
def test_a_row_passes_on_the_good_side_of_its_limit(
    tool: ModuleType, key: str, value: float | None, passed: bool | None, hoped: bool | None
) -> None:
    found = row(tool, key, value)
    assert (found["passed"], found["hoped"]) == (passed, hoped)


def test_the_table_says_pass_fail_and_not_measured(tool: ModuleType) -> None:
    found = [row(tool, *each) for each in (("fcn", 4.0), ("start", 0.9), ("head", 4.0))]
    found.append(row(tool, "quality", None))
    lines = tool.to_table(found).splitlines()[2:]
    verdicts = [line.split("|")[-2].strip() for line in lines[:4]]
    assert verdicts == ["FAIL", "pass", "pass, as hoped", "not measured"]
    assert "| 5 times | 10 times | 4 times |" in lines[0]
    assert "| 1 s | 0.4 s | 0.9 s |" in lines[1]


def test_every_row_of_the_table_has_a_measure_and_one_limit_at_most_is_missing(
    tool: ModuleType,
) -> None:
    assert [target.key for target in tool.TARGETS] == list(tool.MEASURES)
    assert [target.key for target in tool.TARGETS if target.must is None] == ["quality"]


def test_without_peers_their_rows_say_how_to_make_them(
    tool: ModuleType, v1_bundle: Path, tmp_path: Path
) -> None:
    run = tool.Run(tool.Bundle.open(v1_bundle), v1_bundle, tmp_path, 1, 1, 1)
    found = tool.MEASURES["fcn"](run)
    assert found.value is None
    assert "no fcn-resnet18-fp32.onnx and no fcn-resnet18-int8.onnx" in found.note
    assert found.note.endswith("make peers")


def test_the_memory_of_a_process_is_in_megabytes(rows: ModuleType) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("Linux only")
    assert 10 < rows.resident_mb(os.getpid()) < 100_000
    assert rows.resident_mb(2**22 + 1) is None


def test_the_dearest_pixel_is_found_whichever_size_it_is_of(
    rows: ModuleType, v1_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rows.Run(rows.Bundle.open(v1_bundle), v1_bundle, v1_bundle.parent, 1, 1, 1)
    monkeypatch.setattr(rows, "SIZES", ((32, 32), (64, 32), (64, 64)))
    times = {"32x32": (1.0, 1.0, 9.0), "64x32": (3.0, 3.0, 27.0), "64x64": (4.0, 4.0, 36.0)}
    monkeypatch.setattr(rows, "alternate_sizes", lambda run, sizes: rows.Comparison(times, 1))
    found = rows.measure_pixels(run)
    assert (found.value, found.low, found.high) == pytest.approx((50.0, 50.0, 50.0))
    assert "a pixel of 64x32 over one of 32x32" in found.note


@pytest.mark.slow
def test_every_row_is_measured_and_written(
    tool: ModuleType,
    rows: ModuleType,
    v1_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "folder" / "targets.json"
    few = ["--rounds", "1", "--frames", "1", "--starts", "1"]
    where = ["--out", str(out), "--peers", str(tmp_path)]
    monkeypatch.setattr(rows, "SIZES", ((32, 32), (64, 32)))
    monkeypatch.setattr(sys, "argv", ["targets.py", str(v1_bundle), *few, *where])
    code = tool.main()
    record = json.loads(out.read_text())
    outcomes = {each["key"]: each["outcome"] for each in record["rows"]}
    unmeasured = {key for key, value in outcomes.items() if value is None}
    assert unmeasured == {"fcn", "lraspp", "quality"}
    assert 0 < outcomes["roofline"] < 100
    assert code == (1 if any(each["passed"] is False for each in record["rows"]) else 0)
    assert 0 < outcomes["start"] < 60
    assert 20 < outcomes["memory"] < 1000
    assert 0 < outcomes["head"] < 100
    assert 0 < outcomes["rest"] < 100
    assert record["command"].startswith("python benchmarks/targets.py v1.aeseg --rounds 1")
    assert "/" not in record["command"].replace("benchmarks/", "")
    assert record["machine"]["packages"]["numpy"]
    assert "kernel" not in json.dumps(record["machine"])
    assert capsys.readouterr().out.count("| not measured |") == 3


def test_a_row_alone_is_printed_and_not_written(
    tool: ModuleType,
    v1_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tool, "OUT", tmp_path / "targets.json")
    monkeypatch.setattr(
        tool, "MEASURES", {**tool.MEASURES, "memory": lambda run: tool.Found(99.0, note="n")}
    )
    monkeypatch.setattr(sys, "argv", ["targets.py", str(v1_bundle), "--only", "memory"])
    assert tool.main() == 0
    assert "| 99 MB | pass, as hoped |" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_page_has_the_table_of_its_file(tool: ModuleType) -> None:
    page = tool.PAGE.read_text()
    rows = json.loads(tool.OUT.read_text())["rows"]
    assert tool.on_page(page, rows) == page
    rows[0]["outcome"] = 99.0
    assert "99 times" in tool.on_page(page, rows)
