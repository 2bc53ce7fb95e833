"""Motion JPEG over HTTP: pictures until it stops, and never half of one."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources import mjpeg
from aeseg_edge.sources.mjpeg import MjpegSource
from aeseg_edge.sources.registry import open_source
from tests.doubles.pictures import write_video

cv2 = pytest.importorskip("cv2")


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
    delimiter = b"--frame"
    padding = b""
    longer = 0


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
            data = (part if isinstance(part, bytes) else jpeg(part)) + self.server.padding
            self.wfile.write(self.server.delimiter + b"\r\nContent-Type: image/jpeg\r\n")
            if self.server.lengths:
                length = len(data) + self.server.longer
                self.wfile.write(b"Content-Length : %d\r\n" % length)
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


@pytest.mark.parametrize("lengths", [True, False], ids=["with lengths", "without"])
@pytest.mark.parametrize(
    ("boundary", "delimiter"),
    [
        ("boundary=--frame", b"----frame"),
        ("boundary=other", b"--frame"),
        ("boundary=frame", b"frame"),
        ('boundary = "--frame"', b"----frame"),
        ("charset=x", b"--frame"),
    ],
    ids=["as the RFC has it", "another one", "without dashes", "quoted", "none"],
)
def test_what_a_camera_calls_its_boundary_does_not_matter(
    camera: Camera, boundary: str, delimiter: bytes, lengths: bool
) -> None:
    camera.kind, camera.delimiter = f"multipart/x-mixed-replace; {boundary}", delimiter
    camera.lengths = lengths
    assert values_of(camera) == [50, 100, 150]


@pytest.mark.parametrize("padding", [bytes(7), b"\r\n\r\n", b"  padding", b"\xff" * 9])
@pytest.mark.parametrize("lengths", [True, False], ids=["with lengths", "without"])
def test_padded_pictures_are_read(camera: Camera, padding: bytes, lengths: bool) -> None:
    camera.padding, camera.lengths = padding, lengths
    camera.parts = (50, 100, 150, b"")
    assert values_of(camera) == [50, 100, 150]


@pytest.mark.parametrize("longer", [12, 3, -1, -100])
def test_a_length_that_is_wrong_costs_no_picture(camera: Camera, longer: int) -> None:
    camera.longer = longer
    camera.parts = (50, 100, 150, bytes(200))
    assert values_of(camera) == [50, 100, 150]


def test_a_stream_without_a_picture_is_not_read_for_ever(
    camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mjpeg, "_TIMEOUT", 0.05)
    monkeypatch.setattr(mjpeg, "_MAX_BAD", 1 << 40)
    camera.parts = (b"not a picture",) * 100_000
    with pytest.raises(SourceError, match=r"stopped: it gave no picture within 0\.05 s"):
        open_source(f"http://127.0.0.1:{camera.server_port}/")


def values_of(camera: Camera) -> list[int]:
    values: list[int] = []
    with (
        open_source(f"http://127.0.0.1:{camera.server_port}/") as source,
        pytest.raises(SourceError, match="the camera hung up"),
    ):
        values.extend(int(frame.image.mean().round()) for frame in source)
    return values


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


def serve(camera: Camera, content: bytes, kind: str, *, parts: bool = True, sent: int = 1 << 30):
    """Answer with a file; `parts` of it are given where the client asks for them."""

    class File(Handler):
        def do_GET(self) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if parts else None
            first = int(asked[1]) if asked else 0
            self.send_response(206 if asked else 200)
            if parts:
                self.send_header("Accept-Ranges", "bytes")
                end = len(content) - 1
                self.send_header("Content-Range", f"bytes {first}-{end}/{len(content)}")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content[first:sent])

    camera.RequestHandlerClass = File


@pytest.mark.parametrize("parts", [True, False], ids=["with parts", "without"])
@pytest.mark.parametrize("kind", ["video/mp4", "application/octet-stream"])
def test_a_video_behind_an_address_is_a_recording(
    tmp_path: Path, camera: Camera, parts: bool, kind: str
) -> None:
    # An MP4's index is at its end.
    serve(camera, write_video(tmp_path / "a.mp4").read_bytes(), kind, parts=parts)
    name = f"http://127.0.0.1:{camera.server_port}/a.mp4"
    with open_source(name) as source:
        assert (source.live, source.fps, source.total, source.name) == (False, 10.0, 12, name)
        frames = list(source)
    assert [frame.timestamp for frame in frames] == pytest.approx([i / 10 for i in range(12)])
    assert {(frame.source, frame.path) for frame in frames} == {(name, None)}


def test_a_recording_that_breaks_off_while_it_is_fetched_is_refused(
    tmp_path: Path, camera: Camera
) -> None:
    content = write_video(tmp_path / "a.avi").read_bytes()
    serve(camera, content, "video/x-msvideo", parts=False, sent=3000)
    with pytest.raises(SourceError, match=rf"broke off after 3000 of {len(content)} bytes"):
        open_source(f"http://127.0.0.1:{camera.server_port}/a.avi")


def test_a_recording_whose_connection_breaks_is_not_taken_for_whole(
    tmp_path: Path, camera: Camera, caplog: pytest.LogCaptureFixture
) -> None:
    content = write_video(tmp_path / "a.avi", 60, noise=True).read_bytes()
    serve(camera, content, "video/x-msvideo", sent=len(content) // 3)
    with open_source(f"http://127.0.0.1:{camera.server_port}/a.avi") as source:
        assert 0 < len(list(source)) < 40
    assert "of about 60 frames: the connection may have broken" in caplog.text


def test_a_picture_behind_an_address_is_one_picture(camera: Camera) -> None:
    serve(camera, jpeg(90), "image/jpeg")
    with open_source(f"http://127.0.0.1:{camera.server_port}/snapshot") as source:
        assert not source.live
        (frame,) = source
    assert int(frame.image.mean().round()) == 90


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
