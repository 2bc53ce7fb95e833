"""Pipelines: what can run here runs; what cannot says what is missing."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources import gstreamer
from aeseg_edge.sources.base import Source
from aeseg_edge.sources.gstreamer import (
    LaunchedSource,
    csi_pipeline,
    i420_to_bgr,
    open_pipeline,
    rtsp_pipeline,
)
from aeseg_edge.sources.registry import open_source
from tests.doubles.captures import SettableCamera

cv2 = pytest.importorskip("cv2")


launch = pytest.mark.skipif(
    shutil.which("gst-launch-1.0") is None,
    reason="gst-launch-1.0 is not installed (gstreamer1.0-tools, -plugins-base, -plugins-good)",
)


def test_a_csi_uri_becomes_a_pipeline_of_the_jetson() -> None:
    assert csi_pipeline("csi://1?size=1920x1080&fps=29.97&flip=2") == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),format=NV12,width=1920,"
        "height=1080,framerate=29970/1000 ! nvvidconv flip-method=2 ! video/x-raw,format=BGRx ! "
        "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )


def test_a_csi_camera_elsewhere_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer, "has_element", lambda name: False)
    with pytest.raises(SourceError, match=r"nvarguscamerasrc, which is not there.*JetPack"):
        open_source("csi://0")


def test_an_rtsp_address_becomes_a_pipeline_with_the_device_decoder() -> None:
    plain, jetson = (rtsp_pipeline("rtsp://u:p@cam/1", jetson=value) for value in (False, True))
    assert plain.startswith('rtspsrc location="rtsp://u:p@cam/1" protocols=tcp latency=100 !')
    assert "nvvidconv" in jetson
    assert jetson.replace("nvvidconv ! video/x-raw,format=BGRx ! ", "") == plain


@pytest.mark.parametrize("uri", ["gst://videotestsrc ! appsink", "rtsp://host/1"])
def test_without_gstreamer_the_missing_piece_and_the_fix_are_named(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: False)
    monkeypatch.setattr(gstreamer, "has_launch", lambda: False)
    monkeypatch.setattr(cv2.videoio_registry, "getStreamBackends", lambda: [])
    with pytest.raises(SourceError, match=r"gst-launch-1\.0.*apt install gstreamer1\.0-tools"):
        open_source(uri)


def test_an_opencv_with_gstreamer_is_given_the_pipeline_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: True)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *how: opened.append(how) or SettableCamera())
    with open_source("gst://videotestsrc ! appsink") as source:
        assert source.live
    assert opened == [("videotestsrc ! appsink", cv2.CAP_GSTREAMER, [])]


def test_rtsp_uses_the_ffmpeg_of_an_opencv_that_has_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: False)
    monkeypatch.setattr(gstreamer, "has_element", lambda name: False)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *how: opened.append(how) or SettableCamera())
    with open_source("rtsp://user:secret@cam:554/1") as source:
        assert source.name == "rtsp://cam:554/1"
    assert opened[0][:2] == ("rtsp://user:secret@cam:554/1", cv2.CAP_FFMPEG)


def test_an_rtsp_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(SourceError, match=r"rtsp://127\.0\.0\.1:1/x cannot be opened"):
        open_source("rtsp://user:secret@127.0.0.1:1/x")


def pipeline(caps: str, frames: int = 4, pattern: str = "white") -> str:
    return (
        f"videotestsrc num-buffers={frames} pattern={pattern} ! "
        f"video/x-raw,format=BGR,{caps} ! videoconvert ! appsink"
    )


@launch
@pytest.mark.parametrize("size", [(64, 48), (50, 30), (101, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_child_delivers_every_frame_of_a_pipeline(size: tuple[int, int], channels: int) -> None:
    width, height = size
    caps = f"width={width},height={height},framerate=25/1"
    source = LaunchedSource("gst://videotestsrc", pipeline(caps, pattern="smpte"), channels)
    with source:
        frames = list(source)
        assert source.fps == 25
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert {frame.image.shape for frame in frames} == {(height, width, channels)}
    # SMPTE bars: white, then cyan as the third of seven; blue is the last.
    top = frames[1].image[height // 4].astype(int)
    assert top[width // 14, 0] == 255
    if channels == 3:
        assert np.abs(top[5 * width // 14] - (255, 255, 0)).max() < 8
        assert np.abs(top[13 * width // 14] - (255, 0, 0)).max() < 8


@launch
def test_a_size_that_changes_in_the_stream_is_a_lost_source_and_never_noise() -> None:
    text = (
        "videotestsrc num-buffers=2 ! video/x-raw,format=I420,width=64,height=48 ! both. "
        "videotestsrc num-buffers=3 ! video/x-raw,format=I420,width=32,height=80 ! both. "
        "concat name=both ! videoconvert ! appsink"
    )
    shapes = []
    with (
        LaunchedSource("gst://two", text, 3) as source,
        pytest.raises(SourceError, match="changed its size"),
    ):
        shapes.extend(frame.image.shape for frame in source)
    assert shapes == [(48, 64, 3)] * 2


@launch
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nosuchelement ! appsink", 'no element "nosuchelement"'),
        ("filesrc location=http://u:secret@cam/x ! appsink", '"http://cam/x"'),
        ("filesrc location=/none.mkv ! decodebin ! appsink", "none.mkv"),
        ("videotestsrc num-buffers=0 ! appsink", "ended before its first frame"),
        ('videotestsrc name="x ! appsink', "open quote"),
    ],
)
def test_a_pipeline_that_fails_says_why(text: str, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        LaunchedSource("gst://x", text, 3)


@launch
def test_a_child_that_dies_is_a_lost_source_and_one_that_ends_is_not() -> None:
    source = LaunchedSource("gst://x", "videotestsrc is-live=true ! appsink drop=true", 3)
    frames = iter(source)
    next(frames)
    source._child.process.kill()
    with pytest.raises(SourceError, match="gst://x stopped"):
        list(frames)
    source.close()
    source.close()


@launch
def test_a_child_that_hangs_is_interrupted_from_another_thread() -> None:
    # One frame, and then nothing for hours.
    text = "videotestsrc is-live=true ! video/x-raw,framerate=1/3600 ! appsink"
    source = LaunchedSource("gst://x", text, 3)
    frames = iter(source)
    next(frames)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            next(frames)
        except SourceError as error:
            ended.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    source.interrupt()
    thread.join(20)
    assert len(ended) == 1
    source.close()


@launch
def test_four_channels_are_refused_before_anything_is_started() -> None:
    with pytest.raises(SourceError, match="the bundle wants 4"):
        open_pipeline("gst://x", "videotestsrc ! appsink", 4)


def test_odd_sides_are_converted_as_even_ones_are() -> None:
    chance = np.random.default_rng(0)
    luma = chance.integers(16, 236, (6, 8), dtype=np.uint8)
    u, v = np.full((3, 4), 90, np.uint8), np.full((3, 4), 160, np.uint8)
    chroma = u.tobytes() + v.tobytes()
    whole = i420_to_bgr(luma.tobytes() + chroma, 6, 8)
    odd = i420_to_bgr(luma[:5, :7].tobytes() + chroma, 5, 7)
    padded = i420_to_bgr(luma.tobytes() + chroma, 5, 7)
    assert whole is not None
    for found in (odd, padded):
        np.testing.assert_array_equal(found, whole[:5, :7])
    assert i420_to_bgr(luma.tobytes(), 6, 8) is None


SERVER = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true pattern=red ! video/x-raw,width=64,height=48,framerate=30/1 "
    "! vp8enc deadline=1 keyframe-max-dist=10 ! rtpvp8pay name=pay0 )"
)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture
def rtsp() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A network camera in a process of its own, on Debian's packages."""
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip("no system Python for an RTSP server")
    server = subprocess.Popen(
        [SYSTEM_PYTHON, "-c", SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    if not port:
        server.wait()
        pytest.skip("no RTSP server (gir1.2-gst-rtsp-server-1.0, python3-gi)")
    yield f"rtsp://127.0.0.1:{port}/live", server
    server.kill()
    server.communicate()


def is_red(image: np.ndarray) -> bool:
    blue, green, red = image.reshape(-1, 3).mean(axis=0)
    return bool(red > 200 and green < 40 and blue < 40)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["opencv", "child"])
def test_an_rtsp_camera_gives_pictures_until_it_is_gone(
    rtsp: tuple[str, subprocess.Popen[str]], way: str
) -> None:
    uri, server = rtsp
    if way == "child":
        if shutil.which("gst-launch-1.0") is None:
            pytest.skip("gst-launch-1.0 is not installed")
        source: Source = LaunchedSource(uri, rtsp_pipeline(uri, jetson=False), 3, endless=True)
    else:
        source = open_source(uri)
    with source:
        frames = iter(source)
        for _ in range(5):
            image = next(frames).image
            assert image.shape == (48, 64, 3)
            assert is_red(image)
        server.kill()
        # What was decoded already may still come; then it is lost, and nothing is made up.
        pictures = []
        with pytest.raises(SourceError, match="stopped"):
            pictures.extend(frame.image for frame in frames)
        assert all(is_red(image) for image in pictures)
