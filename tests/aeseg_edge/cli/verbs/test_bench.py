"""The verb bench: its modes, what goes together, and the files it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.cli import main

Output = pytest.CaptureFixture[str]
FAST = ("--frames", "6", "--warmup", "0")


def bench(bundle: Path, *more: str) -> int:
    return main(["bench", str(bundle), *FAST, *more])


def test_a_rate_makes_the_loop_open(v1_bundle: Path, capsys: Output) -> None:
    assert bench(v1_bundle, "--rate", "1000", "--threads", "1", "--json", "-") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rate"], report["arrived"]) == (1000, 6)
    assert report["segmented"] + report["dropped"] == 6
    assert set(report["parts_ms"]) == {"waiting", "segmenting", "age"}
    assert report["environment"]["cpu"]["cores"] >= 1
    assert bench(v1_bundle, "--rate", "500") == 0
    assert "at 500 a second" in capsys.readouterr().out


def test_a_sweep_prints_markdown_and_writes_three_files(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "table"
    only = ("--precision", "int8", "--backend", "onnxruntime", "--sweep-threads", "1,2")
    assert bench(v1_bundle, "--sweep", *only, "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| Format | Size MB |")
    assert printed.count("int8 onnxruntime") == 2
    assert (tmp_path / "table.md").read_text().strip() == printed.strip()
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "table.json", "table.png"}


def test_a_sweep_that_cannot_be_written_fails_before_it_measures(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    assert bench(v1_bundle, "--sweep", "--out", str(tmp_path / "no" / "table")) == 1
    assert "onnxruntime, 1 thread" not in capsys.readouterr().err


def test_the_split_path_is_timed_beside_the_bundle(v1_bundle: Path, capsys: Output) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("onnx")
    assert bench(v1_bundle, "--split", "--rounds", "4", "--json", "-") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["threads"] == 1
    assert report["bundle"] == ["v1.aeseg int8, whole path", "v1.aeseg int8, inference"]
    assert report["others"][0].startswith("split path (")
    assert report["frames"] == 2  # in each of 4 rounds: at least the 6 that were asked for
    assert len(report["milliseconds"]["v1.aeseg int8, inference"]) == 4


def test_without_scikit_learn_the_split_path_names_its_extra(
    v1_bundle: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    assert bench(v1_bundle, "--split") == 1
    assert "[calibrate]'" in capsys.readouterr().err


def test_without_onnx_the_split_path_names_its_extra(
    v1_bundle: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in [name for name in sys.modules if name.startswith("aeseg_edge.calibration")]:
        monkeypatch.delitem(sys.modules, name)
    assert bench(v1_bundle, "--split") == 1
    assert "[calibrate]'" in capsys.readouterr().err


def test_the_nodes_of_the_graph_are_listed(v1_bundle: Path, capsys: Output) -> None:
    pytest.importorskip("onnx")
    assert bench(v1_bundle, "--nodes") == 0
    assert "% of the nodes' time" in capsys.readouterr().out
    assert bench(v1_bundle, "--nodes", "--json", "-") == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["head_share"] < 1
    assert {node["head"] for node in report["nodes"]} == {True, False}


def test_imgsz_is_heeded_in_every_mode(v1_bundle: Path, capsys: Output) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("onnx")
    size = ("--imgsz", "64x32", "--json", "-")
    assert bench(v1_bundle, *size) == 0
    assert json.loads(capsys.readouterr().out)["frame_sizes"] == ["64x32"]
    assert bench(v1_bundle, *size, "--rate", "900") == 0
    assert json.loads(capsys.readouterr().out)["frame_sizes"] == ["64x32"]
    assert bench(v1_bundle, *size, "--split") == 0
    assert json.loads(capsys.readouterr().out)["frame_sizes"] == ["64x32"]
    only = ("--sweep", "--precision", "fp32", "--backend", "onnxruntime", "--sweep-threads", "1")
    assert bench(v1_bundle, *size, *only) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["report"]["frame_sizes"] == ["64x32"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate", "30", "--sweep"], "do not go together"),
        (["--split", "--nodes"], "do not go together"),
        (["--rate", "0"], "is not a rate above 0"),
        (["--rate", "fast"], "is not a rate above 0"),
        (["--warmup", "-1"], "is not a time"),
        (["--out", "table"], "go with --sweep"),
        (["--sweep-threads", "1"], "go with --sweep"),
        (["--sweep", "--threads", "1"], "--sweep-threads"),
        (["--sweep", "--sweep-threads", "1,0"], "thread count of 0"),
        (["--sweep", "--sweep-threads", "two"], "not a whole number"),
        (["--split", "--backend", "tensorrt"], "run on ONNX Runtime"),
        (["--nodes", "--backend", "tensorrt"], "runs on ONNX Runtime"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: list[str], words: str, v1_bundle: Path, capsys: Output
) -> None:
    assert main(["bench", str(v1_bundle), *options]) == 2
    assert words in capsys.readouterr().err


def read(captured: Output) -> Any:
    """What is on standard output, all of it, is one JSON text."""
    return json.loads(captured.readouterr().out)


def test_bench_gives_percentiles_of_every_stage(v1_bundle: Path, capsys: Output) -> None:
    command = ["bench", str(v1_bundle), "--frames", "10", "--warmup", "0", "--threads", "1"]
    assert main([*command, "--json", "-"]) == 0
    report = read(capsys)
    assert report["frames"] == 10
    stages = ["preprocess", "copy_in", "inference", "copy_out", "postprocess", "total"]
    assert list(report["stages_ms"]) == stages
    for summary in report["stages_ms"].values():
        assert {"p50", "p90", "p95", "p99", "mean", "max"} <= set(summary)
        assert summary["p50"] <= summary["p99"] <= summary["max"]
    assert report["fps"] > 0
    assert report["precision"] == "int8"
    assert report["settings"]["threads"] == 1


def test_bench_takes_a_source_and_a_precision(
    v1_bundle: Path, street: Path, capsys: Output
) -> None:
    command = ["bench", str(v1_bundle), str(street / "images"), "--frames", "4", "--warmup", "0"]
    assert main([*command, "--precision", "fp32"]) == 0
    out = capsys.readouterr().out
    assert "fp32 on onnxruntime" in out
    assert "120x80" in out
