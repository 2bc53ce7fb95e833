"""A decoder gives the right picture at the right time, or says what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources import decoding
from aeseg_edge.sources.decoding import Decoder
from aeseg_edge.sources.registry import open_source
from aeseg_edge.sources.video import open_decoder
from tests.doubles.clips import DATA, lengthen_mp4_frame, turn_mp4, write_jpegs
from tests.doubles.pictures import write_video

cv2 = pytest.importorskip("cv2")


@pytest.mark.parametrize("name", ["interlaced.mp4", "turns_interlaced.ts"])
def test_interlaced_pictures_are_right_or_refused_with_the_command_that_helps(name: str) -> None:
    """OpenCV 4.13 and later give memory that nobody wrote, also where it begins in the middle."""
    levels: list[float] = []
    said = ""
    try:
        with open_source(str(DATA / name)) as source:
            levels.extend(float(frame.image.mean()) for frame in source)
    except SourceError as problem:
        said = str(problem)
    if said:
        assert f"{name} is interlaced, which OpenCV {cv2.__version__} cannot read" in said
        assert f"ffmpeg -i {DATA / name} -vf bwdif" in said
    else:
        assert min(levels) > 60


class Scripted:
    """A capture whose retrieve writes lines to standard error, as FFmpeg does."""

    def __init__(self, lines: list[bytes], levels: list[int], **values: float) -> None:
        self.lines, self.levels = lines, levels
        self.values = {getattr(cv2, name): value for name, value in values.items()}
        self.at = -1
        self.asked = 0

    def get(self, number: int) -> float:
        return self.values.get(number, 0.0)

    def set(self, number: int, value: float) -> bool:
        return True

    def grab(self) -> bool:
        self.at += 1
        return self.at < len(self.levels)

    def retrieve(self) -> tuple[bool, np.ndarray]:
        self.asked += 1
        os.write(2, self.lines[self.at])
        return True, np.full((64, 8, 3), self.levels[self.at], np.uint8)


TOLD = b"[swscaler @ 0x1] Cannot convert interlaced to progressive frames or vice versa.\n"


@pytest.fixture
def new_swscale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  swscale:   YES (9.1.100)\n")
    monkeypatch.delenv("OPENCV_FFMPEG_LOGLEVEL", raising=False)


def decoder(capture: Scripted) -> Decoder:
    return Decoder("a.mp4", capture, recorded=True, ffmpeg=True)


@pytest.mark.usefixtures("new_swscale")
@pytest.mark.parametrize("first", [0, 1, 5])
def test_a_picture_that_was_not_converted_is_never_given(first: int) -> None:
    levels = [10 * min(i, max(first - 1, 0)) for i in range(8)]
    reading = decoder(Scripted([b""] * first + [TOLD] * (8 - first), levels))
    for _ in range(first):
        assert reading.read() is not None
    with pytest.raises(SourceError, match="interlaced"):
        reading.read()
    assert reading.index == first + 1


@pytest.mark.usefixtures("new_swscale")
def test_a_still_video_is_read_and_hardly_asked(capfd: pytest.CaptureFixture[str]) -> None:
    capture = Scripted([b"another line\n"] * 100, [0] * 100)
    reading = decoder(capture)
    assert sum(reading.read() is not None for _ in range(101)) == 100
    assert capture.asked < 110
    # What others write there is not swallowed.
    assert capfd.readouterr().err.count("another line") == capture.asked


@pytest.mark.usefixtures("new_swscale")
def test_a_hidden_sign_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")
    decoder(Scripted([], []))
    assert "OPENCV_FFMPEG_LOGLEVEL=-8 hides whether it is interlaced" in caplog.text


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_phones_video_is_upright_whatever_this_opencv_does(tmp_path: Path, degrees: int) -> None:
    path = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (64, 48))
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:24, :32] = 255  # top left
    for _ in range(3):
        writer.write(stored)
    writer.release()
    # The tag says by how much the picture is turned clockwise to be seen.
    shown = np.rot90(stored, -degrees // 90)
    with open_source(str(turn_mp4(path, degrees))) as source:
        for frame in source:
            assert frame.image.shape == shown.shape
            assert np.abs(frame.image.astype(int) - shown)[4:-4, 4:-4].mean() < 10


@pytest.mark.parametrize(("version", "meta"), [("4.6.0", 90), ("4.11.0", 270)])
def test_debians_opencv_states_the_turn_the_other_way_round(
    monkeypatch: pytest.MonkeyPatch, version: str, meta: int
) -> None:
    monkeypatch.setattr(cv2, "__version__", version)
    capture = Scripted([b""], [0], CAP_PROP_ORIENTATION_META=meta)
    assert decoding._turn(capture) == cv2.ROTATE_90_COUNTERCLOCKWISE


def test_the_time_of_a_frame_is_the_streams_own(tmp_path: Path) -> None:
    path = lengthen_mp4_frame(write_jpegs(tmp_path / "a.mp4"), 4, 10)
    with open_source(str(path)) as source:
        times = [frame.timestamp for frame in source]
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, *(1.4 + 0.1 * i for i in range(7))])


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ([66.7, 100.0, 133.4, 0.0, 0.0], [0.0, 0.0333, 0.0667, 0.1001, 0.1335]),
        ([0.0] * 4, [0.0, 0.04, 0.08, 0.12]),
        ([5000.0, 5040.0, 5140.0], [0.0, 0.04, 0.14]),
    ],
)
def test_times_go_on_where_a_format_states_none(stated: list[float], expected: list[float]) -> None:
    capture = Scripted([b""] * 5, [0] * len(stated), CAP_PROP_FPS=25.0)
    reading = decoder(capture)
    times = []
    for value in stated:
        capture.values[cv2.CAP_PROP_POS_MSEC] = value
        assert reading.grab()
        times.append(reading.seconds)
    assert times == pytest.approx(expected, abs=1e-4)


def test_frames_that_vanished_are_counted_where_the_rate_is_steady() -> None:
    for at, gaps in (
        ([0, 33, 67, 100, 133, 167, 200, 233, 267, 300, 333, 467], 3),
        ([0, 9, 99], 0),
    ):
        capture = Scripted([], [0] * len(at))
        reading = decoder(capture)
        for value in at:
            capture.values[cv2.CAP_PROP_POS_MSEC] = value
            reading.grab()
        assert reading.gaps == gaps


def test_a_folder_that_is_not_utf_8_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    monkeypatch.chdir(folder)
    with open_source(str(write_video(Path("a.mp4"), 2))) as source:
        assert len(list(source)) == 2


def test_a_name_like_an_address_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("a.mp4"), 2).rename("2026-01-01T12:00:00.mp4")
    with open_source("2026-01-01T12:00:00.mp4") as source:
        assert len(list(source)) == 2
        assert source.name == "2026-01-01T12:00:00.mp4"
    open_decoder(Path("2026-01-01T12:00:00.mp4")).release()
