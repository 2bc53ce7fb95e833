"""Sources give frames in order, and say what is wrong where they cannot."""

from __future__ import annotations

import logging
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources import open_source
from aeseg_edge.sources.capture import open_video
from aeseg_edge.sources.images import Pictures
from aeseg_edge.sources.recorded import ImageSource

cv2 = pytest.importorskip("cv2")

CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}


def grey_levels(count: int) -> list[int]:
    return [10 + 16 * index for index in range(count)]


def write_video(path: Path, frames: int = 12, noise: bool = False) -> Path:
    """Frame i is plain, of the i-th grey level; noise makes it large."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter_fourcc(*CODECS[path.suffix]), 10.0, (64, 48)
    )
    for level in grey_levels(frames):
        image = np.full((48, 64, 3), level % 256, np.uint8)
        writer.write(rng.integers(0, 256, image.shape, np.uint8) if noise else image)
    writer.release()
    return path


def write_image(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def plain(level: int, *shape: int) -> np.ndarray:
    return np.full(shape or (4, 6, 3), level, np.uint8)


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


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    with open_source(f"file://{write_video(tmp_path / 'a.avi', 2)}") as source:
        assert len(list(source)) == 2


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


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
    assert f"states 40 frames, and {len(frames)} could be read" in caplog.text


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


def test_a_wrong_path_is_named_with_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.mp4 does not exist\. Give a video, an image"):
        open_source(str(tmp_path / "none.mp4"))


@pytest.mark.parametrize("uri", ["gopher://host/a", "://", "rtp:///x", "file://", "test://"])
def test_an_unknown_scheme_is_refused(uri: str) -> None:
    with pytest.raises(SourceError, match="unknown scheme"):
        open_source(uri)


def test_a_folder_is_read_in_natural_order_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for number in (10, 9, 1, 100):
        write_image(tmp_path / f"frame{number}.png", plain(number))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "more").mkdir()
    with open_source(str(tmp_path)) as source:
        frames = list(source)
    assert source.total == 4
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 9, 10, 100]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert {frame.timestamp for frame in frames} == {None}


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no images or videos, but no files"):
        open_source(str(tmp_path))


def test_a_folder_of_text_files_is_refused_with_their_number(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("x")
    with pytest.raises(SourceError, match="holds no images or videos, but 3 other files"):
        open_source(str(tmp_path))


def test_unreadable_images_among_good_ones_are_skipped_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(tmp_path / "1.png", plain(1))
    (tmp_path / "2.png").write_bytes(b"this is text")
    (tmp_path / "3.jpg").write_bytes(b"")
    cut(write_image(tmp_path / "4.png", plain(4)), 0.3)
    write_image(tmp_path / "5.png", plain(5))
    with caplog.at_level(logging.WARNING), open_source(str(tmp_path)) as source:
        frames = list(source)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 5]
    assert [frame.index for frame in frames] == [0, 1]
    assert isinstance(source, ImageSource)
    assert [Path(name).name for name in source.skipped] == ["2.png", "3.jpg", "4.png"]
    assert "2.png is skipped: it is not an image" in caplog.text


def test_an_image_that_is_gone_when_its_turn_comes_is_skipped(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", plain(1))
    write_image(tmp_path / "2.png", plain(2))
    with open_source(str(tmp_path)) as source:
        (tmp_path / "2.png").unlink()
        assert len(list(source)) == 1
    assert isinstance(source, ImageSource)
    assert len(source.skipped) == 1


def test_nothing_but_unreadable_images_is_an_error(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"this is text")
    with (
        open_source(str(tmp_path)) as source,
        pytest.raises(SourceError, match=r"none of the 2 images .* can be read"),
    ):
        list(source)


def only(path: Path, channels: int = 3) -> np.ndarray:
    with open_source(str(path), channels=channels) as source:
        (frame,) = source
    assert frame.image.dtype == np.uint8
    return frame.image


def test_an_image_of_one_pixel_is_a_frame(tmp_path: Path) -> None:
    image = only(write_image(tmp_path / "a.png", plain(7, 1, 1, 3)))
    assert image.tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize(("value", "expected"), [(65535, 255), (0, 0), (257 * 100, 100)])
def test_16_bits_are_scaled_to_8(tmp_path: Path, value: int, expected: int) -> None:
    path = write_image(tmp_path / "a.png", np.full((2, 2, 3), value, np.uint16))
    assert set(only(path).ravel().tolist()) == {expected}


@pytest.mark.parametrize(
    ("have", "want", "expected"),
    [
        ((50,), 3, (50, 50, 50)),
        ((50,), 1, (50,)),
        ((10, 20, 30, 40), 3, (10, 20, 30)),
        ((10, 20, 30, 40), 4, (10, 20, 30, 40)),
        # 0.114 blue + 0.587 green + 0.299 red, ITU-R BT.601.
        ((200, 100, 50), 1, (96,)),
        ((200, 100, 50, 0), 1, (96,)),
    ],
)
def test_channels_become_what_the_bundle_wants(
    tmp_path: Path, have: tuple[int, ...], want: int, expected: tuple[int, ...]
) -> None:
    image = np.broadcast_to(np.array(have, np.uint8), (3, 5, len(have)))
    frame = only(write_image(tmp_path / "a.png", np.ascontiguousarray(image)), want)
    assert frame.shape == (3, 5, want)
    assert frame[1, 2].tolist() == list(expected)


def test_colour_images_do_not_grow_a_fourth_channel(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_image(tmp_path / "a.png", plain(1))
    with (
        open_source(str(path), channels=4) as source,
        caplog.at_level(logging.WARNING),
        pytest.raises(SourceError, match="none of the 1 images"),
    ):
        list(source)
    assert "has 3 channels, 4 are wanted" in caplog.text


def test_a_glob_takes_images_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9):
        (tmp_path / f"day{number}").mkdir()
        write_image(tmp_path / f"day{number}" / "a.png", plain(number))
    (tmp_path / "day9" / "b.txt").write_text("x")
    (tmp_path / "day9" / "folder.png").mkdir()
    with open_source(str(tmp_path / "day*" / "*")) as source:
        assert [int(frame.image[0, 0, 0]) for frame in source] == [9, 10]
    assert isinstance(source, ImageSource)
    assert (source.total, source.skipped) == (2, [])


def test_a_glob_without_an_image_says_how_many_files_it_matched(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SourceError, match=r"\*\.txt matches 1 files and no image"):
        open_source(str(tmp_path / "*.txt"))


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path: Path) -> None:
    assert only(write_image(tmp_path / "a[1].png", plain(3)))[0, 0, 0] == 3


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

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return (True, plain(5)) if self.left >= 0 else (False, None)

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


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_test_scene_moves_and_repeats(channels: int) -> None:
    def take() -> list[np.ndarray]:
        with open_source("test://96x64@15", channels=channels) as source:
            assert source.fps == 15
            return [frame.image for frame, _ in zip(source, range(3), strict=False)]

    first, again = take(), take()
    assert first[0].shape == (64, 96, channels)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[2])


def test_the_test_scene_ends_when_it_is_closed() -> None:
    source = open_source("test://8x8")
    frames = iter(source)
    assert next(frames).timestamp == 0
    assert next(frames).timestamp == pytest.approx(1 / 30)
    source.close()
    assert list(frames) == []


@pytest.mark.parametrize("rest", ["640", "0x480", "640x480@0", "axb", "640x480@x", "99999x9"])
def test_a_test_scene_of_no_size_or_rate_is_refused(rest: str) -> None:
    with pytest.raises(SourceError, match="is not a size and rate"):
        open_source(f"test://{rest}")


def test_a_video_is_decoded_as_it_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 30)
    source = open_video(path, 3)
    reads = 0
    capture = source._capture

    class Counting:
        def read(self) -> tuple[bool, np.ndarray]:
            nonlocal reads
            reads += 1
            return capture.read()

        def release(self) -> None:
            capture.release()

    source._capture = Counting()
    frames = iter(source)
    for _ in range(3):
        next(frames)
    assert reads == 2  # the first was read on opening
    source.close()


def test_an_empty_source_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.png", plain(1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="the source is empty"):
        open_source("")


@pytest.mark.parametrize("before", ["", "localhost"])
def test_a_file_uri_may_be_percent_encoded_and_have_a_host(tmp_path: Path, before: str) -> None:
    (tmp_path / "a b").mkdir()
    write_image(tmp_path / "a b" / "1.png", plain(9))
    (frame,) = open_source(f"file://{before}{tmp_path}/a%20b")
    assert frame.image.min() == 9


def test_a_percent_sign_in_a_name_is_itself(tmp_path: Path) -> None:
    write_image(tmp_path / "a%20b.png", plain(9))
    assert len(list(open_source(f"file://{tmp_path}/a%20b.png"))) == 1


def jpeg(height: int = 40, width: int = 60) -> bytes:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", image)[1])


def with_exif(data: bytes, orientation: int, thumbnail: bytes = b"") -> bytes:
    """Put an EXIF segment with one entry, Orientation (0x112), behind the start marker."""
    entry = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + thumbnail
    body = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def test_a_picture_taken_with_a_turned_camera_is_upright(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(with_exif(jpeg(40, 60), orientation=6))
    (frame,) = open_source(str(tmp_path))
    assert frame.image.shape == (60, 40, 3)


@pytest.mark.parametrize("thumbnail", [b"", jpeg(8, 8)])
def test_a_jpeg_cut_short_is_skipped_also_where_its_thumbnail_is_whole(
    tmp_path: Path, thumbnail: bytes
) -> None:
    whole = with_exif(jpeg(), 1, thumbnail)
    (tmp_path / "1.jpg").write_bytes(whole)
    (tmp_path / "2.jpg").write_bytes(whole[: -len(jpeg()) // 2])
    names = (str(tmp_path / "1.jpg"), str(tmp_path / "2.jpg"))
    source = ImageSource(Pictures("made", "images", names), 3)
    assert len(list(source)) == 1
    assert source.skipped == [str(tmp_path / "2.jpg")]


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
