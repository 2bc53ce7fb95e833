"""A pipeline gets every picture, and what goes wrong in it is told."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.errors import SinkError
from aeseg_edge.sinks import gstreamer as gst_sink
from aeseg_edge.sinks.registry import open_sink
from tests.doubles.labelled import result, write_many
from tests.doubles.loop import wait_for

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
def test_a_camera_of_ten_frames_a_second_fills_a_stream_of_thirty(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    path = tmp_path / "raw"
    with open_sink(f"gst://appsrc ! filesink location={path}", fps=30, legend=False) as sink:
        for index in range(21):
            frame, segmentation = result(np.zeros((8, 8), np.uint8))
            sink.write(replace(frame, captured=7 + index / 10), segmentation)
    assert path.stat().st_size == (1 + 3 * 20) * 8 * 8 * 3


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
