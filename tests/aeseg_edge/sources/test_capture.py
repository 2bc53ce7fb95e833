"""Videos and cameras through OpenCV: every frame in order, and what is wrong where they cannot."""

from __future__ import annotations

import logging
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources import gstreamer
from aeseg_edge.sources.registry import open_source
from aeseg_edge.sources.video import VideoSource, open_video
from tests.doubles.captures import SettableCamera
from tests.doubles.pictures import CODECS, cut, grey_levels, jpeg, plain, with_exif, write_video

cv2 = pytest.importorskip("cv2")


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_gives_every_frame_once_and_in_order(tmp_path: Path, suffix: str) -> None:
    before = time.monotonic()
    with open_source(str(write_video(tmp_path / f"a{suffix}"))) as source:
        frames = list(source)
    assert (source.fps, source.total, source.live) == (10.0, 12, False)
    assert [frame.index for frame in frames] == list(range(12))
    means = [float(frame.image.mean()) for frame in frames]
    np.testing.assert_allclose(means, grey_levels(12), atol=6)
    assert [frame.timestamp for frame in frames] == pytest.approx([i / 10 for i in range(12)])
    assert all(frame.image.shape == (48, 64, 3) for frame in frames)
    captured = [frame.captured for frame in frames]
    assert captured == sorted(captured)
    assert before <= captured[0] <= captured[-1] <= time.monotonic()


def test_a_video_is_given_in_grey_where_one_channel_is_wanted(tmp_path: Path) -> None:
    with open_source(str(write_video(tmp_path / "a.mp4", 2)), channels=1) as source:
        assert [frame.image.shape for frame in source] == [(48, 64, 1)] * 2


def test_a_video_has_no_fourth_channel(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", 2))
    with pytest.raises(SourceError, match="has 3 channels, the bundle wants 4"):
        open_source(path, channels=4)


def test_a_numbered_video_is_not_taken_for_a_series_of_images(tmp_path: Path) -> None:
    write_video(tmp_path / "clip_02.mp4", 3)
    with open_source(str(write_video(tmp_path / "clip_01.mp4", 5))) as source:
        assert len(list(source)) == 5


def test_a_closed_video_ends(tmp_path: Path) -> None:
    source = open_source(str(write_video(tmp_path / "a.avi")))
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert list(frames) == []


def test_an_mp4_cut_in_half_is_refused(tmp_path: Path) -> None:
    path = cut(write_video(tmp_path / "a.mp4"), 0.5)
    with pytest.raises(SourceError, match=r"a\.mp4 cannot be opened as a video\. Play it"):
        open_source(str(path))


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_other_videos_cut_in_half_give_what_they_have_and_say_so(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = cut(write_video(tmp_path / f"a{suffix}", 40, noise=True), 0.5)
    with caplog.at_level(logging.WARNING), open_source(str(path)) as source:
        frames = list(source)
    assert 0 < len(frames) < 36
    size = path.stat().st_size
    assert re.search(rf"{path} is cut short: {size} of \d+ bytes are there", caplog.text)


def test_a_whole_video_or_the_first_part_of_it_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "a.avi", 40)
    with caplog.at_level(logging.WARNING):
        with open_source(str(path)) as source:
            assert len(list(source)) == 40
        with open_source(str(path)) as source:
            frames = iter(source)
            next(frames)
            source.close()
            assert list(frames) == []
    assert not caplog.records


def test_a_video_without_a_whole_frame_is_refused(tmp_path: Path) -> None:
    path = cut(write_video(tmp_path / "a.mkv", 40, noise=True), 0.02)
    with pytest.raises(SourceError, match=r"no frame that can be decoded|cannot be opened"):
        open_source(str(path))


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "notes.md", "notes.csv"])
@pytest.mark.parametrize("content", [b"", b"Dear diary,\n" * 300])
def test_what_is_no_video_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match="cannot be opened as a video"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("name", ["notes.txt", "data.bin", "README.NFO"])
def test_text_is_not_played_as_a_terminals_picture(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"Dear diary,\n" * 300)
    with pytest.raises(SourceError, match="is neither an image nor a video"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("uri", ["199", "99999999999999", "v4l2:///dev/no-such-camera"])
def test_a_camera_that_does_not_exist_says_what_to_check(uri: str) -> None:
    with pytest.raises(SourceError, match=r"cannot be opened\. Check that /dev/"):
        open_source(uri)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="V4L2 is Linux's")
def test_a_file_is_not_a_camera(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"camera .* cannot be opened"):
        open_source(f"v4l2://{write_video(tmp_path / 'a.avi', 2)}")


class FakeCamera:
    """An OpenCV capture that gives some frames and then fails, as an unplugged camera does."""

    def __init__(self, frames: int) -> None:
        self.left = frames
        self.released = False

    def isOpened(self) -> bool:
        return True

    def get(self, _: int) -> float:
        return 0.0

    def grab(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, plain(5)

    def release(self) -> None:
        self.released = True


def test_a_camera_that_stops_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = FakeCamera(3)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: camera)
    frames = []

    def run() -> None:
        with open_source("0") as source:
            assert (source.live, source.fps, source.total) == (True, None, None)
            frames.extend(source)

    with pytest.raises(SourceError, match="camera 0 stopped after 3 frames"):
        run()
    assert len(frames) == 3
    assert camera.released


def test_a_camera_without_a_frame_is_refused_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = FakeCamera(0)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: camera)
    with pytest.raises(SourceError, match="camera 0 gives no frame"):
        open_source("0")
    assert camera.released


def test_a_video_is_decoded_as_it_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 30)
    source = open_video(path, 3)
    assert isinstance(source, VideoSource)
    assert source._decoder is not None
    reads = 0
    read = source._decoder.read

    def counting() -> np.ndarray | None:
        nonlocal reads
        reads += 1
        return read()

    source._decoder.read = counting  # type: ignore[method-assign]
    frames = iter(source)
    for _ in range(3):
        next(frames)
    assert reads == 2  # the first was read on opening
    source.close()


def test_a_picture_taken_with_a_turned_camera_is_upright(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(with_exif(jpeg(40, 60), orientation=6))
    (frame,) = open_source(str(tmp_path))
    assert frame.image.shape == (60, 40, 3)


def test_an_opencv_without_ffmpeg_uses_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    capture = cv2.VideoCapture
    path = write_video(tmp_path / "a.avi")
    monkeypatch.setattr(cv2.videoio_registry, "getStreamBackends", lambda: (cv2.CAP_GSTREAMER,))
    monkeypatch.setattr(
        cv2, "VideoCapture", lambda name, how: asked.append(how) or capture(name, how)
    )
    assert len(list(open_source(str(path)))) == 12
    assert asked == [cv2.CAP_ANY]


@pytest.mark.parametrize("uri", ["v4l2:///dev/video0", "0"])
def test_a_camera_is_asked_for_format_size_and_rate_in_that_order(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera, opened = SettableCamera(), []
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
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: SettableCamera(largest=640))
    with caplog.at_level(logging.WARNING):
        open_source("0?size=1280x480").close()
    assert caplog.messages == ["camera 0: asked for width 1280, it gives 640"]


@pytest.mark.parametrize("uri", ["0", "rtsp://cam/1"])
def test_a_camera_with_other_channels_is_refused_at_once_and_not_opened_again(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = SettableCamera()
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: False)
    monkeypatch.setattr(gstreamer, "has_element", lambda name: False)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: camera)
    with pytest.raises(SourceError, match="has 3 channels, the bundle wants 4"):
        open_source(uri, channels=4)
    assert camera.released
