"""Motion JPEG over HTTP: pictures until it stops, and never half of one."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources import open_source
from aeseg_edge.sources.mjpeg import MjpegSource

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
