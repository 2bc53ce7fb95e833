"""Pictures are whole, one a frame, and class ids survive."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import palette
from aeseg_edge.calibration.footage.masks import find_pairs, read_mask
from aeseg_edge.errors import SinkError
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.sinks.registry import open_sink
from tests.doubles.drawn import (
    CLASSES,
    frame,
    names,
    posix,
    result,
    run_on_full_disk,
    write,
)

cv2 = pytest.importorskip("cv2")


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


@pytest.mark.parametrize(
    "pattern", ["%d_%d.png", "%s.png", "100%.png", "%03d/out.png", "{name}/1.png"]
)
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


def write_pictures(pattern: Path, *files: str) -> None:
    with open_sink(str(pattern)) as sink:
        for index, file in enumerate(files):
            taken = replace(frame(index), path=Path(file))
            sink.write(taken, result(taken))


def test_masks_under_the_names_of_their_pictures_are_what_eval_reads(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index, name in enumerate(("cam_1.5.jpg", "100%.png", "b.png")):
        cv2.imwrite(str(tmp_path / "photos" / name), frame(index).image)
    pairs = ["photos/cam_1.5.jpg", "photos/100%.png", "photos/b.png"]
    write_pictures(tmp_path / "masks" / "{name}.png?view=labels", *pairs)
    found = find_pairs(tmp_path / "photos", tmp_path / "masks")
    assert [pair.mask.name for pair in found] == ["100%.png", "b.png", "cam_1.5.png"]
    np.testing.assert_array_equal(read_mask(found[0].mask), result(frame(0)).labels)


def test_two_files_of_one_name_do_not_overwrite_one_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        write_pictures(tmp_path / "{name}.png", "a/1.jpg", "b/1.jpg", "b/1-2.jpg", "A/1.png")
    assert names(tmp_path) == ["1-2-2.png", "1-2.png", "1-3.png", "1.png"]
    assert "a/1.jpg and b/1.jpg have one name: the second becomes 1-2.png" in caplog.text


def test_names_and_numbers_go_together(tmp_path: Path) -> None:
    write_pictures(tmp_path / "{name}-%03d.png", "a.jpg", "b.jpg")
    assert names(tmp_path) == ["a-000.png", "b-001.png"]


@pytest.mark.parametrize("path", [None, "drive 1.mp4"])
def test_frames_of_a_video_are_called_after_it_and_numbered(
    tmp_path: Path, path: str | None
) -> None:
    (tmp_path / "drive 1.mp4").write_bytes(b"")
    file = None if path is None else tmp_path / path
    taken = replace(frame(4), source=str(tmp_path / "drive 1.mp4"), timestamp=0.2, path=file)
    with open_sink(str(tmp_path / "out" / "{name}-%d.png")) as sink:
        sink.write(taken, result(taken))
    assert names(tmp_path / "out") == ["drive 1-4.png"]
    with open_sink(str(tmp_path / "out" / "{name}.png")) as sink:
        sink.write(taken, result(taken))
        with pytest.raises(SinkError, match=r"Write \{name\}-%06d\.png"):
            sink.write(taken, result(taken))


def test_a_camera_has_no_names_of_files(tmp_path: Path) -> None:
    with (
        open_sink(str(tmp_path / "{name}.png")) as sink,
        pytest.raises(SinkError, match=r"made has none\. Number them: .*%06d\.png"),
    ):
        write(sink, 1)


def test_a_number_beyond_its_digits_overwrites_nothing(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "%02d.png")) as sink:
        for index in (10, 100, 1000):
            taken = frame(index)
            sink.write(taken, result(taken))
    assert names(tmp_path) == ["10.png", "100.png", "1000.png"]


def test_a_pipe_is_no_picture_and_nobody_waits_for_its_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.png")
    with (
        open_sink(str(tmp_path / "p.png")) as sink,
        pytest.raises(SinkError, match=r"p\.png is a device or a pipe"),
    ):
        write(sink, 1)
