"""Results for other programs: JSON lines, a Unix socket, a GStreamer pipeline."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import VOID, ClassInfo, palette
from aeseg_edge.errors import SinkError
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.sinks import gstreamer as gst_sink
from aeseg_edge.sinks import open_sink, open_sinks
from aeseg_edge.sinks.base import Routed, Sink
from aeseg_edge.sinks.json import JsonSink
from aeseg_edge.sinks.unix import UnixSink
from aeseg_edge.sources.base import Frame
from tests.doubles.loop import wait_for

CLASSES = (
    ClassInfo(0, "sky", (80, 160, 240)),
    ClassInfo(1, "straße", (90, 90, 90)),
    ClassInfo(2, "sky", (0, 0, 255)),
)


def result(labels: np.ndarray) -> tuple[Frame, Segmentation]:
    frame = Frame(np.full((*labels.shape, 3), 128, np.uint8), 7, 100.0, "csi://0")
    return frame, Segmentation(labels, CLASSES, palette(CLASSES), frame_age=0.0184)


def quarters() -> np.ndarray:
    labels = np.zeros((4, 6), np.uint8)
    labels[:2, :3], labels[:2, 3:], labels[2:, :3], labels[2:, 3:] = 0, 1, 2, VOID
    return labels


def write_many(sink: Sink, labels: np.ndarray) -> None:
    for _ in range(50):
        sink.write(*result(labels))


# --- json -----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("json:", "names no file"),
        ("unix:", "names no file"),
        ("json:a?view=mask", "unknown options"),
        ("unix:a?append=1", "unknown options"),
        ("json:/nowhere/at/all.jsonl", "cannot be written"),
        ("unix:/nowhere/at/all.sock", "cannot be written"),
        ("unix:/tmp/" + "x" * 120, "too long"),
    ],
)
def test_what_cannot_be_a_file_or_socket_is_refused(uri: str, problem: str) -> None:
    with pytest.raises(SinkError, match=problem):
        open_sink(uri)


# --- unix -----------------------------------------------------------------------------------------


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    # Names of sockets end at about 107 bytes; pytest's folders may be longer.
    return Path(os.path.relpath(tmp_path / "s"))


def connect(sink: UnixSink, path: Path) -> socket.socket:
    before = len(sink._readers)
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(20)
    link.connect(str(path))
    wait_for(lambda: len(sink._readers) == before + 1)
    return link


def read(link: socket.socket) -> tuple[dict[str, object], np.ndarray]:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = link.recv(count - len(data))
            assert part, "the sink hung up"
            data += part
        return data

    magic, length, height, width = struct.unpack("<4sIII", exactly(16))
    assert magic == b"AES1"
    about = json.loads(exactly(length))
    return about, np.frombuffer(exactly(height * width), np.uint8).reshape(height, width)


def test_labels_reach_every_reader(socket_path: Path) -> None:
    sink = UnixSink(socket_path)
    sink.write(*result(quarters()))
    links = [connect(sink, socket_path) for _ in range(3)]
    frame, segmentation = result(quarters())
    sink.write(replace(frame, index=8), segmentation)
    for link in links:
        about, labels = read(link)
        assert (about["source"], about["index"], about["captured"]) == ("csi://0", 8, 100.0)
        assert about["age_ms"] == 18.4
        assert about["classes"]["1"] == {"name": "straße", "color": [90, 90, 90]}  # type: ignore[index]
        np.testing.assert_array_equal(labels, quarters())
        link.close()
    sink.close()
    sink.close()
    assert not socket_path.exists()


def test_a_reader_that_does_not_read_slows_nobody_and_gets_the_newest_next(
    socket_path: Path,
) -> None:
    sink = UnixSink(socket_path)
    slow, quick = connect(sink, socket_path), connect(sink, socket_path)
    frame, segmentation = result(np.zeros((1000, 1000), np.uint8))
    for index in range(20):
        sink.write(replace(frame, index=index), segmentation)
        assert read(quick)[0]["index"] == index
    # One message was on its way already; all between it and the last were dropped.
    first, last = read(slow)[0]["index"], read(slow)[0]["index"]
    assert (first, last) == (0, 19)
    slow.close()
    quick.close()
    sink.close()


def test_a_reader_that_goes_away_is_forgotten(socket_path: Path) -> None:
    sink = UnixSink(socket_path)
    connect(sink, socket_path).close()
    wait_for(lambda: sink.write(*result(quarters())) or not sink._readers)
    link = connect(sink, socket_path)
    sink.write(*result(quarters()))
    assert read(link)[0]["index"] == 7
    link.close()
    sink.close()


def test_the_last_message_is_delivered_before_hanging_up(socket_path: Path) -> None:
    sink = UnixSink(socket_path)
    link = connect(sink, socket_path)
    sink.write(*result(quarters()))
    sink.close()
    assert read(link)[0]["index"] == 7
    assert link.recv(1) == b""
    link.close()


def test_a_socket_in_use_is_left_alone_and_a_dead_one_is_replaced(socket_path: Path) -> None:
    sink = UnixSink(socket_path)
    with pytest.raises(SinkError, match="in use by another process"):
        UnixSink(socket_path)
    sink.close()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    assert socket_path.exists()
    UnixSink(socket_path).close()
    socket_path.write_text("mine")
    with pytest.raises(SinkError, match="is no socket"):
        UnixSink(socket_path)
    assert socket_path.read_text() == "mine"


def test_the_reader_in_the_documentation_works(socket_path: Path, repository: Path) -> None:
    text = (repository / "docs" / "sinks.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(script.splitlines()) <= 20
    sink = UnixSink(socket_path)
    reader = subprocess.Popen(
        [sys.executable, "-X", "utf8", "-c", script, str(socket_path)],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    wait_for(lambda: sink._readers)
    sink.write(*result(np.ones((4, 6), np.uint8)))
    sink.close()
    out, _ = reader.communicate(timeout=30)
    assert out == "csi://0 7 6x4 straße\n"
    assert reader.returncode == 0


# --- gst ------------------------------------------------------------------------------------------

launch = pytest.mark.skipif(
    shutil.which("gst-launch-1.0") is None,
    reason="gst-launch-1.0 is not installed (gstreamer1.0-tools, -plugins-base, -plugins-good)",
)


@launch
@pytest.mark.parametrize("size", [(48, 64), (30, 50)])
def test_a_pipeline_gets_every_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    pytest.importorskip("cv2")
    path = tmp_path / "raw.bgr"
    text = f"gst://appsrc ! videoconvert ! video/x-raw,format=RGB ! filesink location={path}"
    drawn = []
    with open_sink(text, fps=12.5, view="mask", legend=False) as sink:
        for value in (0, 1, VOID):
            frame, segmentation = result(np.full(size, value, np.uint8))
            sink.write(frame, segmentation)
            drawn.append(segmentation.palette[value])
    height, width = size
    stride = -(-3 * width // 4) * 4
    data = np.frombuffer(path.read_bytes(), np.uint8).reshape(3, height, stride)
    pictures = data[:, :, : 3 * width].reshape(3, height, width, 3)[..., ::-1]
    for picture, colour in zip(pictures, drawn, strict=True):
        assert (picture == colour).all()


@launch
def test_a_frame_of_another_size_is_fitted_into_the_first(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    path = tmp_path / "raw"
    with open_sink(f"gst://appsrc ! filesink location={path}", legend=False) as sink:
        sink.write(*result(np.zeros((48, 64), np.uint8)))
        sink.write(*result(np.zeros((96, 64), np.uint8)))
    assert path.stat().st_size == 2 * 48 * 64 * 3


@launch
def test_a_pipeline_that_fails_is_an_error_with_its_reason(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    sink = open_sink("gst://appsrc ! nosuchelement")
    with pytest.raises(SinkError, match='no element "nosuchelement"'):
        write_many(sink, np.zeros((480, 640), np.uint8))
    sink.close()
    sink = open_sink(f"gst://appsrc ! filesink location={tmp_path}/none/x")
    sink.write(*result(np.zeros((4, 6), np.uint8)))
    with pytest.raises(SinkError, match=r"failed: .*none/x"):
        sink.close()


@launch
def test_a_pipeline_that_hangs_is_interrupted_from_another_thread() -> None:
    pytest.importorskip("cv2")
    sink = open_sink("gst://appsrc ! identity sleep-time=100000000 ! fakesink")
    failed: list[BaseException] = []

    def write() -> None:
        try:
            write_many(sink, np.zeros((480, 640), np.uint8))
        except SinkError as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    wait_for(lambda: sink._child)  # type: ignore[attr-defined]
    # More than the pipe holds is on its way.
    thread.join(0.3)
    assert thread.is_alive()
    sink.interrupt()  # type: ignore[attr-defined]
    thread.join(20)
    assert "failed" in str(failed[0])
    sink.abort()
    assert sink._child.process.poll() is not None  # type: ignore[attr-defined]


@launch
def test_an_aborted_pipeline_leaves_no_process(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    sink = open_sink(f"gst://appsrc ! filesink location={tmp_path}/x")
    sink.write(*result(np.zeros((4, 6), np.uint8)))
    sink.abort()
    sink.abort()
    assert sink._child.process.poll() is not None  # type: ignore[attr-defined]


def test_a_pipeline_that_cannot_run_is_refused_on_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(SinkError, match="does not start at appsrc"):
        open_sink("gst://videoconvert ! fakesink")
    monkeypatch.setattr(gst_sink, "has_launch", lambda: True)
    with pytest.raises(SinkError, match="open quote"):
        open_sink('gst://appsrc ! filesink location="x')
    monkeypatch.setattr(gst_sink, "has_launch", lambda: False)
    monkeypatch.setattr(gst_sink, "opencv_has_gstreamer", lambda: False)
    with pytest.raises(SinkError, match=r"not installed\. Install them: apt install"):
        open_sink("gst://appsrc ! fakesink")


# --- several sources ------------------------------------------------------------------------------

TWO = [("csi://0", 30.0), ("csi://1", 15.0)]


def test_a_sink_with_the_source_in_its_name_is_one_for_each(tmp_path: Path) -> None:
    sinks = open_sinks(f"{tmp_path}/out-{{source}}.mp4", TWO)
    assert [each.source for each in sinks if isinstance(each, Routed)] == ["csi://0", "csi://1"]
    names = [each.sink.name for each in sinks if isinstance(each, Routed)]
    assert names == [f"{tmp_path}/out-csi-0.mp4", f"{tmp_path}/out-csi-1.mp4"]
    for each in sinks:
        assert isinstance(each, Routed)
        each.sink.abort()


@pytest.mark.parametrize("uri", ["null://", "json:{folder}/a.jsonl"])
def test_what_names_the_source_of_each_result_takes_all(uri: str, tmp_path: Path) -> None:
    (sink,) = open_sinks(uri.replace("{folder}", str(tmp_path)), TWO)
    assert not isinstance(sink, Routed)
    sink.close()


@pytest.mark.parametrize("uri", ["out.mp4", "out/%d.png", "gst://appsrc ! fakesink"])
def test_pictures_of_several_sources_are_not_mixed(uri: str) -> None:
    with pytest.raises(SinkError, match=r"mix the pictures of 2 sources\. Put \{source\}"):
        open_sinks(uri, TWO)


def test_one_source_needs_no_routing(tmp_path: Path) -> None:
    (sink,) = open_sinks(f"{tmp_path}/{{source}}.avi", TWO[:1])
    assert not isinstance(sink, Routed)
    assert sink.name.endswith("csi-0.avi")
    sink.abort()


def test_one_sink_that_fails_closes_those_before_it(tmp_path: Path) -> None:
    (tmp_path / "out-csi-1.mp4").mkdir()
    with pytest.raises(SinkError, match="out-csi-1"):
        open_sinks(f"{tmp_path}/out-{{source}}.mp4", TWO)
    assert [path.name for path in tmp_path.iterdir()] == ["out-csi-1.mp4"]
