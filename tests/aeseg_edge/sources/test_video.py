"""Videos are read to their end, past what is damaged, and what is missing is said."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources import video
from aeseg_edge.sources.registry import files_of, open_source
from tests.doubles.clips import DATA, damage_jpegs, write_jpegs
from tests.doubles.pictures import cut, plain, write_image, write_video

cv2 = pytest.importorskip("cv2")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_damaged_packets_are_passed_over_counted_and_said(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = damage_jpegs(write_jpegs(tmp_path / f"a{suffix}"), 4, 5, 8)
    with open_source(str(path)) as source:
        frames = list(source)
    levels = [round((float(frame.image.mean()) - 13) / 16) for frame in frames]
    assert levels == [0, 1, 2, 3, 6, 7, 9, 10, 11]
    if suffix != ".avi":
        times = [round(10 * (frame.timestamp or 0.0)) for frame in frames]
        assert times == levels
    assert f"{path}: 3 damaged packets could not be decoded" in caplog.text or (
        f"{path}: about 3 frames are missing" in caplog.text
    )
    assert "cut short" not in caplog.text


def test_a_damaged_end_and_a_whole_video_are_not_waited_for(tmp_path: Path) -> None:
    path = damage_jpegs(write_jpegs(tmp_path / "a.mkv"), 11)
    assert len(list(open_source(str(path)))) == 11


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_file_that_states_more_frames_than_it_has_is_not_called_damaged(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Trimmed files, those with a longer sound and those of a variable rate do."""
    real = cv2.VideoCapture

    class Boasting:
        def __init__(self, *given: object) -> None:
            self._real = real(*given)

        def get(self, number: int) -> float:
            return 240.0 if number == cv2.CAP_PROP_FRAME_COUNT else self._real.get(number)

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

    monkeypatch.setattr(cv2, "VideoCapture", Boasting)
    with open_source(str(write_video(tmp_path / f"a{suffix}"))) as source:
        assert (source.total, len(list(source))) == (240, 12)
    assert not caplog.records


def test_a_codec_that_this_opencv_lacks_is_named_and_nothing_is_called_damaged() -> None:
    path = DATA / "av1.mp4"
    try:
        with open_source(str(path)) as source:
            assert len(list(source)) == 3
    except SourceError as problem:
        said = str(problem)
        version = cv2.__version__
        expected = f"{path} is coded in AV01, which OpenCV {version} cannot decode. Convert it: ffm"
        assert said.startswith(expected)


def test_a_picture_in_avif_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "p.avif"
    path.write_bytes(b"\0\0\0\x1cftypavif" + bytes(100))
    with pytest.raises(SourceError, match=r"AVIF or HEIC|none of the 1 images"):
        list(open_source(str(path)))
    if cv2.haveImageWriter("p.avif"):
        (frame,) = open_source(str(write_image(path, plain(90, 64, 64, 3))))
        assert abs(float(frame.image.mean()) - 90) < 4


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are the superuser's")
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    problem = video._not_opened(str(path), str(path))
    assert str(problem).endswith(
        "opened as a video: Permission denied. Check who may read it (ls -l)."
    )


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no pipes with names")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_pipe_is_read_as_a_video(tmp_path: Path, pipe: Path) -> None:
    data = write_video(tmp_path / "a.mkv").read_bytes()
    thread = threading.Thread(target=lambda: pipe.write_bytes(data))
    thread.start()
    with open_source(str(pipe)) as source:
        assert (source.live, source.name) == (False, str(pipe))
        assert len(list(source)) == 12
    thread.join()


def test_standard_input_is_a_video(
    tmp_path: Path, pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_video(tmp_path / "a.mkv").read_bytes()
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *more: real(pipe if str(path) == "/dev/stdin" else path, *more)
    )
    monkeypatch.setattr(video, "is_pipe", lambda path: True)
    thread = threading.Thread(target=lambda: pipe.write_bytes(data))
    thread.start()
    with open_source("-") as source:
        assert len(list(source)) == 12
    thread.join()
    assert files_of(str(pipe)) == []


def test_a_pipe_that_nobody_writes_into_is_not_waited_for_for_ever(
    pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "_PIPE", 0.01)
    with pytest.raises(SourceError, match=r"pipe gives nothing within 0\.01 s"):
        open_source(str(pipe))


def test_a_pipe_with_something_else_is_refused(pipe: Path) -> None:
    thread = threading.Thread(target=lambda: pipe.write_bytes(b"Dear diary,\n" * 300))
    thread.start()
    with pytest.raises(SourceError, match=r"opened as a video\. Pipes carry MPEG-TS"):
        open_source(str(pipe))
    thread.join()


def test_a_device_that_is_a_camera_is_one() -> None:
    with pytest.raises(SourceError, match="camera /dev/video199 cannot be opened"):
        open_source("/dev/video199")


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_a_file_knows_how_long_it_should_be(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"a{suffix}", 40)
    size = path.stat().st_size
    assert video._stated_size(path) == size
    assert video._stated_size(cut(path, 0.9)) == size
    path.write_bytes(np.random.default_rng(0).bytes(100))
    assert video._stated_size(path) <= 100
