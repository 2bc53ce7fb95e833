"""JSON lines say what is in the picture, and are whole."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks import open_sink, open_sinks
from aeseg_edge.sinks.json import JsonSink
from tests.doubles.labelled import TWO, quarters, result, write_many


def test_a_line_says_when_how_old_and_what_is_in_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonSink(path, wall=lambda: 1000.0, clock=lambda: 100.25)
    sink.write(*result(quarters()))
    # It is there before the sink is closed.
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "time": 999.75,
        "source": "csi://0",
        "index": 7,
        "age_ms": 18.4,
        "shares": {"sky": 0.5, "straße": 0.25, "void": 0.25},
    }
    assert "straße" in line
    sink.close()
    sink.close()
    with pytest.raises(SinkError, match="is closed"):
        sink.write(*result(quarters()))


def test_a_class_that_is_not_in_the_picture_has_no_share_and_void_is_left_out(
    tmp_path: Path,
) -> None:
    with open_sink(f"json:{tmp_path}/a.jsonl") as sink:
        sink.write(*result(np.zeros((2, 2), np.uint8)))
    line = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))
    assert line["shares"] == {"sky": 1.0, "straße": 0.0}


@pytest.mark.parametrize(("query", "lines"), [("", 1), ("?append=0", 1), ("?append=1", 2)])
def test_a_file_is_begun_anew_unless_it_is_appended_to(
    tmp_path: Path, query: str, lines: int
) -> None:
    for uri in (f"json:{tmp_path}/a.jsonl", f"json:{tmp_path}/a.jsonl{query}"):
        with open_sink(uri) as sink:
            sink.write(*result(quarters()))
    assert len((tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()) == lines


@pytest.mark.parametrize("there", ['{"cut": 1', '{"whole": 1}\n', ""])
def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path, there: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(there)
    with open_sink(f"json:{path}?append=1") as sink:
        sink.write(*result(quarters()))
    text = path.read_text(encoding="utf-8")
    assert text.startswith(there)
    *before, last = text.splitlines()
    assert before == there.splitlines()
    assert json.loads(last)["index"] == 7


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    sink = JsonSink(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(SinkError, match=r"a\.jsonl cannot be written"):
            write_many(sink, quarters())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sink.abort()
    lines = path.read_bytes()
    assert lines.endswith(b"}\n")
    assert len(lines) > 200
    assert all(json.loads(line)["index"] == 7 for line in lines.splitlines())


def test_one_sink_that_fails_closes_those_before_it(tmp_path: Path) -> None:
    (tmp_path / "out-csi-1.mp4").mkdir()
    with pytest.raises(SinkError, match="out-csi-1"):
        open_sinks(f"{tmp_path}/out-{{source}}.mp4", TWO)
    assert [path.name for path in tmp_path.iterdir()] == ["out-csi-1.mp4"]
