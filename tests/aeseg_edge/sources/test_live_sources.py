"""Cameras, streams and pipelines: what can run here runs; what cannot says what is missing."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sinks import gstreamer as gst_sink
from aeseg_edge.sources import gstreamer, open_source
from aeseg_edge.sources.base import Source
from aeseg_edge.sources.gstreamer import (
    LaunchedSource,
    csi_pipeline,
    i420_to_bgr,
    open_pipeline,
    rtsp_pipeline,
)
from aeseg_edge.sources.mjpeg import MjpegSource
from aeseg_edge.sources.recorded import RealTime
from aeseg_edge.support.text import without_password

cv2 = pytest.importorskip("cv2")

launch = pytest.mark.skipif(
    shutil.which("gst-launch-1.0") is None,
    reason="gst-launch-1.0 is not installed (gstreamer1.0-tools, -plugins-base, -plugins-good)",
)


# --- V4L2 -----------------------------------------------------------------------------------------


class FakeCamera:
    """An OpenCV capture that takes some settings and clips others."""

    def __init__(self, largest: int = 10_000) -> None:
        self.asked: list[tuple[int, float]] = []
        self.values: dict[int, float] = {}
        self.largest = largest
        self.released = False

    def isOpened(self) -> bool:
        return True

    def set(self, number: int, value: float) -> bool:
        self.asked.append((number, value))
        self.values[number] = min(value, self.largest)
        return True

    def get(self, number: int) -> float:
        return self.values.get(number, 0.0)

    def read(self) -> tuple[bool, np.ndarray]:
        return True, np.zeros((8, 8, 3), np.uint8)

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize("uri", ["v4l2:///dev/video0", "0"])
def test_a_camera_is_asked_for_format_size_and_rate_in_that_order(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera, opened = FakeCamera(), []
    monkeypatch.setattr(cv2, "VideoCapture", lambda *how: opened.append(how) or camera)
    with open_source(f"{uri}?size=1280x720&fps=30&format=MJPG") as source:
        assert (source.live, source.fps) == (True, 30)
    assert camera.asked == [
        (cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG")),
        (cv2.CAP_PROP_FRAME_WIDTH, 1280),
        (cv2.CAP_PROP_FRAME_HEIGHT, 720),
        (cv2.CAP_PROP_FPS, 30),
    ]
    expected = ("/dev/video0", cv2.CAP_V4L2) if ":" in uri else (0, cv2.CAP_ANY)
    assert opened == [expected]


def test_a_camera_that_chooses_otherwise_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: FakeCamera(largest=640))
    with caplog.at_level(logging.WARNING):
        open_source("0?size=1280x480").close()
    assert caplog.messages == ["camera 0: asked for width 1280, it gives 640"]


@pytest.mark.parametrize("uri", ["0", "rtsp://cam/1"])
def test_a_camera_with_other_channels_is_refused_at_once_and_not_opened_again(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = FakeCamera()
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: False)
    monkeypatch.setattr(gstreamer, "has_element", lambda name: False)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: camera)
    with pytest.raises(SourceError, match="has 3 channels, the bundle wants 4"):
        open_source(uri, channels=4)
    assert camera.released


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("v4l2:///dev/video0?size=big", "no size or rate"),
        ("v4l2:///dev/video0?size=0x480", "no size or rate"),
        ("0?fps=0", "no size or rate"),
        ("0?format=JPEG2", "the format 'JPEG2'"),
        ("0?rate=30", r"unknown options \['rate'\]"),
        ("csi://x", "no sensor number"),
        ("csi://0?flip=9", "no sensor number"),
        ("csi://0?format=MJPG", r"unknown options \['format'\]"),
        ("gst://videotestsrc ! fakesink", "does not end in appsink"),
        ('rtsp://host/a"b', "characters that an address cannot have"),
        ("rtsps://host", "unknown scheme"),
    ],
)
def test_a_uri_that_says_nothing_sensible_is_refused(uri: str, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        open_source(uri)


# --- pipelines ------------------------------------------------------------------------------------


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
    monkeypatch.setattr(cv2, "VideoCapture", lambda *how: opened.append(how) or FakeCamera())
    with open_source("gst://videotestsrc ! appsink") as source:
        assert source.live
    assert opened == [("videotestsrc ! appsink", cv2.CAP_GSTREAMER, [])]


def test_rtsp_uses_the_ffmpeg_of_an_opencv_that_has_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: False)
    monkeypatch.setattr(gstreamer, "has_element", lambda name: False)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *how: opened.append(how) or FakeCamera())
    with open_source("rtsp://user:secret@cam:554/1") as source:
        assert source.name == "rtsp://cam:554/1"
    assert opened[0][:2] == ("rtsp://user:secret@cam:554/1", cv2.CAP_FFMPEG)


def test_an_rtsp_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(SourceError, match=r"rtsp://127\.0\.0\.1:1/x cannot be opened"):
        open_source("rtsp://user:secret@127.0.0.1:1/x")


# --- a gst-launch-1.0 child -----------------------------------------------------------------------


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


# --- Motion JPEG over HTTP ------------------------------------------------------------------------


def jpeg(value: int) -> bytes:
    done, data = cv2.imencode(".jpg", np.full((16, 24, 3), value, np.uint8))
    assert done
    return bytes(data)


class Camera(ThreadingHTTPServer):
    """A network camera on this machine; `parts` are the values of its pictures."""

    daemon_threads = True
    parts: tuple[int | bytes, ...] = (50, 100, 150)
    lengths = True
    kind = "multipart/x-mixed-replace; boundary=--frame"
    authorization = None
    status = b""
    moved = ""
    chunked = False


class Handler(BaseHTTPRequestHandler):
    server: Camera

    def do_GET(self) -> None:
        self.server.authorization = self.headers.get("Authorization")
        if self.server.status:
            self.wfile.write(self.server.status)
            return
        if self.server.moved and self.path == "/old":
            self.send_response(302)
            self.send_header("Location", self.server.moved)
            self.end_headers()
            return
        self.protocol_version = "HTTP/1.1" if self.server.chunked else "HTTP/1.0"
        self.send_response(200)
        self.send_header("Content-Type", self.server.kind)
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.close_connection = True
        self.end_headers()
        if self.server.chunked:
            # One chunk that announces more than ever comes.
            self.wfile.write(b"100000\r\n")
        for part in self.server.parts:
            data = part if isinstance(part, bytes) else jpeg(part)
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
            if self.server.lengths:
                self.wfile.write(b"Content-Length: %d\r\n" % len(data))
            self.wfile.write(b"\r\n" + data + b"\r\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def camera() -> Iterator[Camera]:
    server = Camera(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("lengths", [True, False], ids=["with lengths", "without"])
def test_pictures_of_an_http_stream_come_until_it_stops(camera: Camera, lengths: bool) -> None:
    camera.lengths = lengths
    port = camera.server_port
    with open_source(f"http://me:s%20ecret@127.0.0.1:{port}/v.mjpg") as source:
        assert isinstance(source, MjpegSource)
        assert source.name == f"http://127.0.0.1:{port}/v.mjpg"
        values: list[int] = []
        with pytest.raises(SourceError, match="the camera hung up"):
            values.extend(int(frame.image.mean().round()) for frame in source)
    assert values == [50, 100, 150]
    assert camera.authorization == "Basic bWU6cyBlY3JldA=="


def test_a_damaged_picture_is_left_out_and_never_filled_with_grey(camera: Camera) -> None:
    camera.parts = (50, jpeg(90)[:-40], b"", 150)
    values: list[int] = []
    with (
        open_source(f"http://127.0.0.1:{camera.server_port}/") as source,
        pytest.raises(SourceError),
    ):
        values.extend(int(frame.image.mean().round()) for frame in source)
    assert values == [50, 150]


def test_a_stream_without_pictures_is_refused(camera: Camera) -> None:
    camera.parts = (b"not a picture",) * 40
    with pytest.raises(SourceError, match="is not an image"):
        open_source(f"http://127.0.0.1:{camera.server_port}/")


def test_a_page_is_not_a_camera(camera: Camera) -> None:
    camera.kind, camera.parts = "text/html", (b"<p>hello",)
    with pytest.raises(SourceError, match="gives text/html, not a stream of JPEGs"):
        open_source(f"http://127.0.0.1:{camera.server_port}/")


def test_nobody_at_an_address_is_said() -> None:
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:1/ cannot be opened"):
        open_source("http://u:p@127.0.0.1:1/")


@pytest.mark.parametrize("address", ["http://cam:abc/x", "http://127.0.0.1:1/a b", "http://[bad/x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(SourceError, match=re.escape(f"{address} cannot be opened")):
        open_source(address)


def test_a_peer_that_speaks_something_else_is_refused(camera: Camera) -> None:
    camera.status = b"RTSP/1.0 400 Bad Request\r\n\r\n"
    with pytest.raises(SourceError, match=r"cannot be opened: RTSP/1\.0 400"):
        open_source(f"http://127.0.0.1:{camera.server_port}/")


@pytest.mark.parametrize("lengths", [True, False], ids=["with lengths", "without"])
def test_a_chunk_that_is_cut_short_is_a_lost_source(camera: Camera, lengths: bool) -> None:
    camera.chunked, camera.lengths, camera.parts = True, lengths, (50, 100)
    values: list[int] = []
    with (
        open_source(f"http://127.0.0.1:{camera.server_port}/") as source,
        pytest.raises(SourceError, match="stopped"),
    ):
        values.extend(int(frame.image.mean().round()) for frame in source)
    assert values == [50, 100]


def test_a_video_behind_an_address_is_left_to_ffmpeg(tmp_path: Path, camera: Camera) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (32, 24))
    for value in (50, 100, 150):
        writer.write(np.full((24, 32, 3), value, np.uint8))
    writer.release()
    content = (tmp_path / "a.avi").read_bytes()

    class Video(Handler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/x-msvideo")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    camera.RequestHandlerClass = Video
    with open_source(f"http://127.0.0.1:{camera.server_port}/a.avi") as source:
        first = next(iter(source))
    assert first.image.shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://u:p@h:554/a?b=1", "rtsp://h:554/a?b=1"),
        ("http://h/a", "http://h/a"),
        ("http://u:p%40x@h", "http://h"),
        ("test://640x480@30", "test://640x480@30"),
        ("pairs://visible=a@b,thermal=c", "pairs://visible=a@b,thermal=c"),
        (
            "gst://rtspsrc location=rtsp://u:p@h/1 ! appsink",
            "gst://rtspsrc location=rtsp://h/1 ! appsink",
        ),
        (
            "gst://rtspsrc user-id=u user-pw='p w' location=rtsp://h ! a",
            "gst://rtspsrc location=rtsp://h ! a",
        ),
        ("gst://x name=a@b ! appsink", "gst://x name=a@b ! appsink"),
        ("cannot open http://u:p@h/a", "cannot open http://h/a"),
    ],
)
def test_a_password_is_never_part_of_a_name(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


def test_a_password_in_a_pipeline_is_no_part_of_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    monkeypatch.setattr(gstreamer, "open_pipeline", lambda *given: opened.append(given))
    text = "rtspsrc location=rtsp://u:se!cret@h/1 ! decodebin ! appsink"
    open_source(f"gst://{text}")
    assert opened == [("gst://rtspsrc location=rtsp://h/1", text, 3)]


def test_a_password_in_a_pipeline_is_no_part_of_the_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gst_sink, "opencv_has_gstreamer", lambda: True)
    text = "appsrc ! rtspclientsink location=rtsp://u:secret@h/1"
    sink = gst_sink.GstSink(text, fps=25, view="mask", alpha=0.5, legend=False)
    assert sink.name == "gst://appsrc ! rtspclientsink location=rtsp://h/1"


def test_an_address_of_an_unknown_kind_is_named_without_its_password() -> None:
    with pytest.raises(SourceError, match="rtsps://host/1 has an unknown scheme"):
        open_source("rtsps://u:secret@host/1")


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_redirect_takes_the_password_no_further_than_the_camera(
    camera: Camera, elsewhere: bool
) -> None:
    first = Camera(("127.0.0.1", 0), Handler) if elsewhere else camera
    first.moved = f"http://127.0.0.1:{camera.server_port}/new"
    thread = threading.Thread(target=first.handle_request)
    if elsewhere:
        thread.start()
    with open_source(f"http://u:p@127.0.0.1:{first.server_port}/old"):
        assert camera.authorization == (None if elsewhere else "Basic dTpw")
    if elsewhere:
        assert first.authorization == "Basic dTpw"
        thread.join()
        first.server_close()


# --- recordings at their own rate -----------------------------------------------------------------


def test_a_recording_plays_at_its_own_rate() -> None:
    now, waits = [50.0], []

    def wait(seconds: float) -> None:
        waits.append(round(seconds, 6))
        now[0] += seconds

    source = RealTime(open_source("test://8x8@10"), clock=lambda: now[0], wait=wait)
    frames = iter(source)
    assert [next(frames).captured for _ in range(3)] == pytest.approx([50.0, 50.1, 50.2])
    # The reader was away for a while: frames that are due come at once, with their own times.
    now[0] += 0.25
    assert [next(frames).captured for _ in range(3)] == pytest.approx([50.3, 50.4, 50.5])
    assert waits == [0.1, 0.1, 0.05]
    assert not source.live


def test_closing_wakes_whoever_waits_for_the_next_frame() -> None:
    source = open_source("test://8x8@0.001", realtime=True)
    frames = iter(source)
    next(frames)
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.extend(frames))
    thread.start()
    source.interrupt()  # type: ignore[attr-defined]
    thread.join(20)
    assert got == []
    source.close()


def test_pictures_have_no_rate(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(SourceError, match=r"has no rate.*--realtime"):
        open_source(str(tmp_path), realtime=True)


# --- RTSP -----------------------------------------------------------------------------------------

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
