"""JSON lines say what is in the picture, and are whole."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.json import JsonSink
from aeseg_edge.sinks.registry import open_sink, open_sinks
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
        "captured": "1970-01-01T00:16:39.750000+00:00",
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


def line_of(file: Path, **where: object) -> dict[str, object]:
    frame, segmentation = result(quarters())
    with open_sink(f"json:{file}") as sink:
        sink.write(replace(frame, **where), segmentation)
    found: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_a_line_says_where_in_a_recording_it_belongs(tmp_path: Path) -> None:
    line = line_of(tmp_path / "a", timestamp=12.48, recording="b.mp4")
    assert (line["position"], line["recording"]) == (12.48, "b.mp4")
    assert "captured" not in line


def test_a_line_of_a_picture_says_which_file_it_is(tmp_path: Path) -> None:
    line = line_of(tmp_path / "a", path=Path("photos/cam_3.png"))
    assert line["path"] == "photos/cam_3.png"
    assert not {"captured", "position"} & set(line)


def test_a_dash_is_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_sink("json:-") as sink:
        sink.write(*result(quarters()))
        sink.write(*result(quarters()))
    assert [json.loads(line)["index"] for line in capfd.readouterr().out.splitlines()] == [7, 7]
    assert not list(tmp_path.iterdir())


DASH = """
from aeseg_edge.sinks.registry import open_sink
from tests.doubles.labelled import quarters, result
with open_sink("json:-") as sink:
    while not sink.closed_by_user:
        sink.write(*result(quarters()))
"""


def test_a_reader_of_standard_output_that_has_enough_ends_the_run(repository: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DASH], cwd=repository, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["index"] == 7
        process.stdout.close()
        assert process.wait(60) == 0


def test_a_pipe_that_nobody_reads_is_an_error_and_no_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    sink = JsonSink(tmp_path / "p", patience=0.0)
    with pytest.raises(SinkError, match=r"p is a pipe that nobody reads\. Start its reader first"):
        sink.write(*result(quarters()))
    sink.abort()


def test_whoever_waits_for_a_pipe_can_be_woken_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    sink = JsonSink(tmp_path / "p", patience=1e9)
    said: list[str] = []

    def write() -> None:
        try:
            sink.write(*result(quarters()))
        except SinkError as problem:
            said.append(str(problem))

    thread = threading.Thread(target=write)
    thread.start()
    assert sink.interrupt()
    thread.join(60)
    assert "nobody reads" in said[0]


def test_a_pipe_takes_lines_until_its_reader_is_full_and_can_be_woken_up_then(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "p")
    sink = JsonSink(tmp_path / "p")
    reader = os.open(tmp_path / "p", os.O_RDONLY | os.O_NONBLOCK)
    sink.write(*result(quarters()))
    sink.interrupt()  # the next time that it waits
    with pytest.raises(SinkError, match="takes no more lines"):
        write_many(sink, quarters(), 10_000)
    assert json.loads(os.read(reader, 1 << 16).partition(b"\n")[0])["index"] == 7
    sink.close()
    os.close(reader)


def test_a_reader_that_goes_away_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    reader = os.open(tmp_path / "p", os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonSink(tmp_path / "p")
    sink.write(*result(quarters()))
    os.close(reader)
    with pytest.raises(SinkError, match=r"the reader of json:.* went away"):
        sink.write(*result(quarters()))
    sink.abort()
