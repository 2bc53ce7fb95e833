"""A video is whole and is what was drawn, or is not there at all."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import VOID, ClassInfo, palette
from aeseg_edge.errors import SinkError
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.sinks import video
from aeseg_edge.sinks.registry import open_sink
from aeseg_edge.sources.base import Frame
from tests.doubles.drawn import (
    CLASSES,
    frame,
    names,
    posix,
    read_video,
    result,
    run_on_full_disk,
    write,
)

cv2 = pytest.importorskip("cv2")


VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")


@pytest.mark.parametrize("suffix", VIDEOS)
def test_a_video_is_read_back_frame_by_frame(tmp_path: Path, suffix: str) -> None:
    sink = open_sink(str(tmp_path / f"out{suffix}"), fps=12.5)
    drawn = write(sink, 9)
    assert f"out{suffix}" not in names(tmp_path)
    sink.close()
    sink.close()
    sink.abort()
    assert names(tmp_path) == [f"out{suffix}"]
    frames = read_video(tmp_path / f"out{suffix}")
    assert len(frames) == 9
    for found, expected in zip(frames, drawn, strict=True):
        assert found.shape[0] == 48
        middle = (slice(4, 20), slice(8, 56))
        assert abs(found[middle].mean() - expected[middle].mean()) < 4
    capture = cv2.VideoCapture(str(tmp_path / f"out{suffix}"), cv2.CAP_FFMPEG)
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)


@pytest.mark.parametrize(
    "fps",
    [0.5, 14.985014985, 29.97003, 59.94006, 65.999, 70.123, 119.987, 120, 239.673, 480.511, 999],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
@pytest.mark.parametrize("count", [1, 30])
def test_rates_of_all_kinds_are_written_whole(
    tmp_path: Path, fps: float, suffix: str, count: int
) -> None:
    with open_sink(str(tmp_path / f"out{suffix}"), fps=fps, legend=False) as sink:
        write(sink, count)
    assert len(read_video(tmp_path / f"out{suffix}")) == count
    capture = cv2.VideoCapture(str(tmp_path / f"out{suffix}"), cv2.CAP_FFMPEG)
    if count > 1:  # One frame alone leaves some readers guessing.
        assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, rel=1e-4)


@pytest.mark.parametrize(("fps", "written"), [(700.123, 700.1), (9000.4, 9000), (65534.7, 65535)])
def test_rates_end_where_mpeg4_ends(tmp_path: Path, fps: float, written: float) -> None:
    with open_sink(str(tmp_path / "out.mp4"), fps=fps, legend=False) as sink:
        write(sink, 5)
    assert len(read_video(tmp_path / "out.mp4")) == 5
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"), cv2.CAP_FFMPEG)
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(written, abs=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("size", [(1, 1), (33, 51), (2, 3)])
def test_odd_sizes_lose_nothing(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    with open_sink(str(tmp_path / f"out{suffix}"), view="mask", legend=False) as sink:
        write(sink, 3, *size)
    frames = read_video(tmp_path / f"out{suffix}")
    even = tuple(side + side % 2 for side in size)
    assert [image.shape[:2] for image in frames] == [even] * 3


def test_an_odd_size_keeps_every_pixel_where_it_is(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "out.avi"), view="mask", legend=False) as sink:
        write(sink, 1, 33, 51)
    (found,) = read_video(tmp_path / "out.avi")
    table = palette(CLASSES).astype(float)
    assert np.abs(found[:15].astype(float) - table[0]).mean() < 4
    assert np.abs(found[17:].astype(float) - table[1]).mean() < 4


def test_a_frame_of_another_size_is_fitted_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        open_sink(str(tmp_path / "out.avi"), view="mask", legend=False) as sink,
    ):
        for index, size in enumerate([(48, 64), (48, 32), (96, 128), (48, 64)]):
            taken = frame(index, *size)
            sink.write(taken, result(taken))
    frames = read_video(tmp_path / "out.avi")
    assert [image.shape for image in frames] == [(48, 64, 3)] * 4
    assert [record.message.split(": ", 1)[1] for record in caplog.records] == [
        "frame 1 is 32x48, the first was 64x48: such frames are fitted into it"
    ]
    narrow, large = frames[1], frames[2]
    assert narrow[:, :14].mean() < 6  # a bar
    assert narrow[:, 20:44].mean() > 60
    assert np.abs(large.astype(float) - frames[0].astype(float)).mean() < 4


def test_the_legend_makes_every_frame_of_a_video_wider_by_the_same(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "out.avi")) as sink:
        for index, label in enumerate((0, 1, VOID)):
            taken = frame(index)
            labels = np.full((48, 64), label, np.uint8)
            sink.write(taken, Segmentation(labels, CLASSES, palette(CLASSES)))
    assert len({image.shape for image in read_video(tmp_path / "out.avi")}) == 1


def test_a_video_without_frames_is_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        open_sink(str(tmp_path / "out.mp4")).close()
    assert names(tmp_path) == []
    assert "there were no frames" in caplog.text


@pytest.mark.parametrize("count", [0, 5])
def test_an_aborted_video_leaves_the_old_one(tmp_path: Path, count: int) -> None:
    (tmp_path / "out.mp4").write_bytes(b"old")

    def run() -> None:
        with open_sink(str(tmp_path / "out.mp4")) as sink:
            write(sink, count)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        run()
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert names(tmp_path) == ["out.mp4"]


def test_a_closed_video_takes_no_more_frames(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "out.avi"))
    write(sink, 1)
    sink.close()
    with pytest.raises(SinkError, match=r"out\.avi is closed"):
        write(sink, 1)


def test_ctrl_c_while_a_video_is_finished_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Path) -> int:
        raise KeyboardInterrupt

    sink = open_sink(str(tmp_path / "out.avi"))
    write(sink, 2)
    monkeypatch.setattr(video, "_count_frames", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sink.close()
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_is_noticed_during_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video.os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=4096))

    def run() -> None:
        with open_sink(str(tmp_path / "out.avi"), legend=False) as sink:
            write(sink, 1000, 8, 8)

    with pytest.raises(SinkError, match="the disk is full"):
        run()
    assert names(tmp_path) == []


@posix
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
@pytest.mark.parametrize("limit", [50, 20_000, 90_000])
def test_a_video_on_a_full_disk_ends_in_an_error_and_leaves_nothing(
    tmp_path: Path, repository: Path, suffix: str, limit: int
) -> None:
    said = run_on_full_disk(repository, tmp_path / f"out{suffix}", limit)
    assert f"out{suffix} cannot be written" in said
    assert "disk" in said
    assert names(tmp_path) == []


@posix
def test_the_same_run_with_room_writes_the_video(tmp_path: Path, repository: Path) -> None:
    assert run_on_full_disk(repository, tmp_path / "out.mkv", 10_000_000) == ""
    assert len(read_video(tmp_path / "out.mkv")) == 60


def test_a_video_in_a_missing_folder_is_refused_on_opening(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="Make the folder first"):
        open_sink(str(tmp_path / "none" / "out.mp4"))


def test_a_folder_named_like_a_video_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(SinkError, match="Is a directory"):
        open_sink(str(tmp_path / "out.mp4"))


def test_a_class_renamed_during_the_run_loses_no_frame(tmp_path: Path) -> None:
    renamed = (CLASSES[0], ClassInfo(1, "grass and meadow", CLASSES[1].color))
    with open_sink(str(tmp_path / "out.mp4")) as sink:
        write(sink, 3)
        for index in range(3, 6):
            taken = frame(index)
            sink.write(taken, replace(result(taken), classes=renamed))
    assert len(read_video(tmp_path / "out.mp4")) == 6


def moments(suffix: str, fps: float | None, frames: list[Frame], folder: Path) -> tuple[int, float]:
    """How many frames a video has that is written of these, and how long it lasts."""
    path = folder / f"out{suffix}"
    with open_sink(str(path), fps=fps, legend=False) as sink:
        for taken in frames:
            sink.write(taken, result(taken))
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    count = len(read_video(path))
    return count, count / capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("suffix", VIDEOS)
def test_a_camera_of_ten_frames_a_second_plays_as_long_as_it_ran(
    tmp_path: Path, suffix: str
) -> None:
    frames = [replace(frame(i), captured=50 + i / 10) for i in range(61)]
    assert moments(suffix, None, frames, tmp_path) == (181, pytest.approx(6.0, abs=0.04))


@pytest.mark.parametrize("suffix", VIDEOS)
def test_a_recording_of_two_rates_plays_as_long_as_it_lasts(tmp_path: Path, suffix: str) -> None:
    times = [i / 30 for i in range(60)] + [2 + i / 5 for i in range(20)]
    frames = [replace(frame(i), timestamp=at) for i, at in enumerate(times)]
    assert moments(suffix, 30, frames, tmp_path) == (175, pytest.approx(5.83, abs=0.04))


def test_a_picture_too_small_for_a_format_is_named(tmp_path: Path) -> None:
    with (
        open_sink(str(tmp_path / "out.webm"), legend=False) as sink,
        pytest.raises(SinkError, match=r"cannot write .*out\.webm with the codec VP80 at 4x4"),
    ):
        write(sink, 1, 4, 4)
