"""What a sink wrote is whole and is what was drawn, or is not there at all."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import VOID, ClassInfo, palette
from aeseg_edge.errors import SinkError
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.sinks import open_sink, video, window
from aeseg_edge.sinks.base import Sink
from aeseg_edge.sources.base import Frame
from aeseg_edge.view.draw import render

cv2 = pytest.importorskip("cv2")

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".avi")
CLASSES = (ClassInfo(0, "sky", (80, 160, 240)), ClassInfo(1, "grass", (30, 140, 40)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def frame(index: int, height: int = 48, width: int = 64) -> Frame:
    """Plain, and brighter from one index to the next."""
    image = np.full((height, width, 3), 20 + 20 * (index % 11), np.uint8)
    return Frame(image, index, 0.0, "made")


def result(taken: Frame) -> Segmentation:
    labels = np.zeros(taken.image.shape[:2], np.uint8)
    labels[labels.shape[0] // 2 :] = 1
    return Segmentation(labels, CLASSES, palette(CLASSES))


def write(sink: Sink, count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    drawn = []
    for index in range(count):
        taken = frame(index, height, width)
        sink.write(taken, result(taken))
        drawn.append(render(taken.image, result(taken)))
    return drawn


def read_video(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while True:
        good, image = capture.read()
        if not good:
            return frames
        frames.append(image)


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
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
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


FULL_DISK = """
import resource, signal, sys
import numpy as np
from aeseg_edge.bundle.codebook import default_classes, palette
from aeseg_edge.errors import SinkError
from aeseg_edge.sources.base import Frame
from aeseg_edge.sinks import open_sink
from aeseg_edge.segment.result import Segmentation

target, limit = sys.argv[1], int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
rng = np.random.default_rng(0)
result = Segmentation(np.zeros((64, 96), np.uint8), default_classes(1), palette(default_classes(1)))
try:
    with open_sink(target, legend=False, alpha=0.0) as sink:
        for index in range(60):
            sink.write(Frame(rng.integers(0, 256, (64, 96, 3), np.uint8), index, 0.0, ""), result)
except SinkError as error:
    print(error)
"""


def run_on_full_disk(repository: Path, target: Path, limit: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(target), str(limit)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


posix = pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX thing")


@posix
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
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


@posix
def test_images_on_a_full_disk_end_in_an_error_and_each_is_whole(
    tmp_path: Path, repository: Path
) -> None:
    said = run_on_full_disk(repository, tmp_path / "%d.png", 1000)
    assert "0.png cannot be written: File too large" in said
    assert names(tmp_path) == []


def test_numbered_images_are_written_by_frame_number_into_a_new_folder(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "deep" / "out" / "f%03d.png")) as sink:
        drawn = write(sink, 3)
    assert names(tmp_path / "deep" / "out") == ["f000.png", "f001.png", "f002.png"]
    for index, expected in enumerate(drawn):
        found = cv2.imread(str(tmp_path / "deep" / "out" / f"f{index:03d}.png"))
        np.testing.assert_array_equal(found, expected)


def test_raw_labels_are_class_ids_at_the_frames_own_size(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    with open_sink(str(tmp_path / "%d.png?view=labels"), view="both", legend=True) as sink:
        sink.write(frame(0, 8, 32), Segmentation(labels, CLASSES, palette(CLASSES)))
    found = cv2.imread(str(tmp_path / "0.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, labels)


def test_labels_are_not_written_where_ids_would_be_lost(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"would lose class ids\. Write labels as \.png"):
        open_sink(str(tmp_path / "%d.jpg?view=labels"))
    with pytest.raises(SinkError, match="'labels' is unknown for"):
        open_sink(str(tmp_path / "out.mp4?view=labels"))


def test_one_image_takes_one_frame(tmp_path: Path) -> None:
    with (
        open_sink(str(tmp_path / "out.png")) as sink,
        pytest.raises(SinkError, match="is one image, and the source has more"),
    ):
        write(sink, 2)
    assert names(tmp_path) == ["out.png"]


def test_an_image_that_its_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with (
        open_sink(str(tmp_path / "out.webp"), legend=False) as sink,
        pytest.raises(SinkError, match="cannot be encoded at 20000x1"),
    ):
        write(sink, 1, 1, 20_000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("pattern", ["%d_%d.png", "%s.png", "100%.png", "%03d/out.png"])
def test_a_pattern_has_one_number_in_the_files_name(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(SinkError, match="is not a file name with one number"):
        open_sink(str(tmp_path / pattern))
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "%d.png"])
def test_a_place_below_a_file_is_refused_on_opening(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError, match=r"cannot be written: (Not a directory|File exists)"):
        open_sink(str(tmp_path / "file" / name))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
@pytest.mark.parametrize("uri", ["/proc/out.mp4", "/proc/none/%d.png"])
def test_a_folder_that_takes_no_files_is_refused_on_opening(uri: str) -> None:
    with pytest.raises(SinkError, match="cannot be written"):
        open_sink(uri)


def test_a_video_in_a_missing_folder_is_refused_on_opening(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="Make the folder first"):
        open_sink(str(tmp_path / "none" / "out.mp4"))


def test_a_folder_named_like_a_video_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(SinkError, match="Is a directory"):
        open_sink(str(tmp_path / "out.mp4"))


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    with open_sink(f"file://{tmp_path}/out.avi") as sink:
        write(sink, 1)
    assert names(tmp_path) == ["out.avi"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("out.xyz", r"is no sink: \.xyz is not known\. Give a video"),
        ("out", "no suffix is not known"),
        ("gopher://out.mp4", "unknown scheme"),
        ("null://?view=depth", "view 'depth' is unknown"),
        ("null://?size=3", r"unknown options \['size'\]"),
    ],
)
def test_what_is_no_sink_is_refused(uri: str, message: str) -> None:
    with pytest.raises(SinkError, match=message):
        open_sink(uri)


def test_null_takes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_sink("null://") as sink:
        write(sink, 3)
    assert names(tmp_path) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DISPLAY is X11's")
def test_a_window_without_a_display_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(SinkError, match=r"no display to open a window on\. Write a video"):
        open_sink("window")


class FakeWindows:
    """OpenCV's windows: what is shown, and what the user does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[np.ndarray] = []
        self.key, self.visible, self.destroyed = -1, 1.0, 0
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr(window, "_display_answers", lambda _: True)
        monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
        monkeypatch.setattr(cv2, "imshow", lambda _, image: self.shown.append(image))
        monkeypatch.setattr(cv2, "waitKey", lambda _: self.key)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: self.visible)
        monkeypatch.setattr(cv2, "destroyWindow", self.destroy)

    def destroy(self, _: str) -> None:
        self.destroyed += 1


@pytest.mark.parametrize(("key", "closes"), [(ord("q"), True), (27, True), (ord("x"), False)])
def test_q_and_escape_close_the_window(
    monkeypatch: pytest.MonkeyPatch, key: int, closes: bool
) -> None:
    windows = FakeWindows(monkeypatch)
    sink = open_sink("window")
    drawn = write(sink, 1)
    assert not sink.closed_by_user
    windows.key = key
    write(sink, 1)
    assert sink.closed_by_user == closes
    np.testing.assert_array_equal(windows.shown[0], drawn[0])
    sink.close()
    sink.abort()
    assert windows.destroyed == 1


def test_a_window_clicked_away_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = FakeWindows(monkeypatch)
    sink = open_sink("window")
    windows.visible = 0.0
    write(sink, 1)
    assert sink.closed_by_user
    write(sink, 1)
    sink.close()
    assert len(windows.shown) == 1
    assert windows.destroyed == 0


def test_an_opencv_without_windows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeWindows(monkeypatch)

    def refuse(*_: object) -> None:
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "namedWindow", refuse)
    with pytest.raises(SinkError, match="built without windows"):
        open_sink("window")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DISPLAY is X11's")
@pytest.mark.parametrize("display", [":4711", "unix:4711.0", "localhost:4711", "localhost:99999"])
def test_a_display_that_does_not_answer_is_refused(
    monkeypatch: pytest.MonkeyPatch, display: str
) -> None:
    monkeypatch.setenv("DISPLAY", display)
    with pytest.raises(SinkError, match=f"the display {display} does not answer"):
        open_sink("window")


def test_a_display_that_listens_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1] - 6000
        assert window._display_answers(f"127.0.0.1:{number}.0")


def test_ctrl_c_in_a_with_block_keeps_what_was_written(tmp_path: Path) -> None:
    def run() -> None:
        with open_sink(str(tmp_path / "out.mp4")) as sink:
            write(sink, 7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert names(tmp_path) == ["out.mp4"]
    assert len(read_video(tmp_path / "out.mp4")) == 7


def test_an_error_in_a_with_block_leaves_nothing(tmp_path: Path) -> None:
    def run() -> None:
        with open_sink(str(tmp_path / "out.mp4")) as sink:
            write(sink, 7)
            raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        run()
    assert names(tmp_path) == []


def test_a_class_renamed_during_the_run_loses_no_frame(tmp_path: Path) -> None:
    renamed = (CLASSES[0], ClassInfo(1, "grass and meadow", CLASSES[1].color))
    with open_sink(str(tmp_path / "out.mp4")) as sink:
        write(sink, 3)
        for index in range(3, 6):
            taken = frame(index)
            sink.write(taken, replace(result(taken), classes=renamed))
    assert len(read_video(tmp_path / "out.mp4")) == 6
