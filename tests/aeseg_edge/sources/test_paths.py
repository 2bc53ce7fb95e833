"""What a path stands for is one thing for every verb: zips, folders of any depth, patterns."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.cli.main import main
from aeseg_edge.errors import SourceError
from aeseg_edge.sources.paths import find
from aeseg_edge.sources.recorded import ImageSource, RealTime, Recordings
from aeseg_edge.sources.registry import files_of, open_source
from aeseg_edge.sources.scene import draw_scene
from tests.doubles.pictures import only, plain, write_image, write_video

cv2 = pytest.importorskip("cv2")


def write_clip(path: Path, frames: int, level: int = 50, fps: float = 10.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 48))
    for _ in range(frames):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return path


def png(level: int) -> bytes:
    return bytes(cv2.imencode(".png", np.full((48, 64, 3), level, np.uint8))[1])


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def levels(uri: Path | str) -> list[int]:
    with open_source(str(uri)) as source:
        return [round(float(frame.image.mean())) for frame in source]


def test_a_zip_gives_its_images_in_natural_order_and_says_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = {"a/10.png": png(10), "a/9.png": png(9), "notes.txt": b"x", "../evil.png": png(1)}
    path = write_zip(tmp_path / "photos.zip", entries)
    with caplog.at_level(logging.WARNING), open_source(str(path)) as source:
        assert (source.total, source.live, source.name) == (2, False, str(path))
        assert [int(frame.image[0, 0, 0]) for frame in source] == [9, 10]
    assert "their paths lead out of the archive (../evil.png)" in caplog.text
    assert "1 files of" in caplog.text
    assert "(notes.txt)" in caplog.text
    assert files_of(str(path)) == [path]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"PK\x03\x04 cut short", "is not a readable zip"),
        (None, "holds no images that can be used"),
    ],
)
def test_a_zip_without_images_is_refused(tmp_path: Path, data: bytes | None, problem: str) -> None:
    path = tmp_path / "a.zip"
    if data is None:
        write_zip(path, {"notes.txt": b"x"})
    else:
        path.write_bytes(data)
    with pytest.raises(SourceError, match=problem):
        open_source(str(path))


def test_a_damaged_entry_is_skipped(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {f"{i}.png": png(i) for i in range(3)})
    data = bytearray(path.read_bytes())
    data[data.find(png(1)) + 60] ^= 255
    path.write_bytes(data)
    assert levels(path) == [0, 2]
    frames = list(open_source(str(path)))
    assert [(frame.index, frame.path) for frame in frames] == [
        (i, path / f"{i}.png") for i in (0, 2)
    ]


def test_a_folder_is_searched_to_any_depth_and_other_files_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (10, 9):
        write(tmp_path / f"day{number}" / "deep" / "a.png", png(number))
    write(tmp_path / "labels.txt", b"x")
    write(tmp_path / "._a.png", b"a Mac's shadow file")
    with caplog.at_level(logging.WARNING):
        assert levels(tmp_path) == [9, 10]
    assert f"1 files of {tmp_path} are no images or videos and left out" in caplog.text
    assert len(files_of(str(tmp_path))) == 2


def test_videos_of_a_pattern_play_one_after_another_each_under_its_name(tmp_path: Path) -> None:
    clips = [write_clip(tmp_path / f"clip{i}.avi", 3, 20 * i) for i in (10, 9)]
    with open_source(f"{tmp_path}/*.avi") as source:
        assert isinstance(source, Recordings)
        assert (source.total, source.fps, source.live) == (6, 10.0, False)
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(6))
    assert {frame.source for frame in frames} == {f"{tmp_path}/*.avi"}
    assert [frame.recording for frame in frames] == [str(clips[1])] * 3 + [str(clips[0])] * 3
    assert [frame.timestamp for frame in frames] == pytest.approx([0.0, 0.1, 0.2] * 2)
    np.testing.assert_allclose(
        [frame.image.mean() for frame in frames], [180] * 3 + [200] * 3, atol=6
    )
    assert sorted(files_of(f"{tmp_path}/*.avi")) == sorted(clips)


def test_one_video_of_a_folder_is_that_video(tmp_path: Path) -> None:
    write_clip(tmp_path / "deep" / "a.avi", 3)
    with open_source(str(tmp_path)) as source:
        frames = list(source)
    assert len(frames) == source.total == 3
    assert {frame.recording for frame in frames} == {None}


def test_a_recording_that_cannot_be_read_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "1.avi", b"no video")
    write_clip(tmp_path / "2.avi", 2)
    bad = write(tmp_path / "3.mp4", b"")
    write_clip(tmp_path / "4.avi", 2)
    with caplog.at_level(logging.WARNING), open_source(str(tmp_path)) as source:
        assert len(frames := list(source)) == source.total == 4
    assert isinstance(source, Recordings)
    assert [Path(name).name for name in source.skipped] == ["1.avi", "3.mp4"]
    assert f"{bad} is skipped: " in caplog.text
    assert [frame.path.name for frame in frames if frame.path] == ["2.avi"] * 2 + ["4.avi"] * 2


def test_a_broken_picture_among_pictures_and_videos_shifts_no_number(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png", plain(number))
    write(tmp_path / "1.png", b"broken")
    clip = write_clip(tmp_path / "a.avi", 2)
    frames = list(open_source(str(tmp_path)))
    assert [frame.index for frame in frames] == [0, 2, 3, 4]
    assert [frame.path for frame in frames][2:] == [clip, clip]


def test_nothing_but_unreadable_recordings_is_refused_on_opening(tmp_path: Path) -> None:
    for name in ("1.avi", "2.mp4"):
        write(tmp_path / name, b"no video")
    with pytest.raises(SourceError, match="none of the 2 recordings of"):
        open_source(str(tmp_path))


def test_closing_ends_all_recordings(tmp_path: Path) -> None:
    for name in "ab":
        write_clip(tmp_path / f"{name}.avi", 5)
    source = open_source(str(tmp_path))
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert list(frames) == []


def test_recordings_in_turn_keep_their_own_rates(tmp_path: Path) -> None:
    for name, fps in (("a", 10.0), ("b", 20.0)):
        write_clip(tmp_path / f"{name}.avi", 3, fps=fps)
    now = [50.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    with RealTime(open_source(str(tmp_path)), clock=lambda: now[0], wait=wait) as source:
        times = [frame.captured for frame in source]
    assert times == pytest.approx([50.0, 50.1, 50.2, 50.3, 50.35, 50.4])


def test_a_pattern_takes_folders_and_zips_too(tmp_path: Path) -> None:
    write(tmp_path / "in" / "b1" / "deep" / "a.png", png(3))
    write_zip(tmp_path / "in" / "a.zip", {"a.png": png(2)})
    write(tmp_path / "in" / "c.png", png(1))
    (tmp_path / "in" / "b2").mkdir()
    found = find(f"{tmp_path}/in/*")
    assert [each.kind for each in found] == ["glob", "zip", "folder"]
    assert levels(f"{tmp_path}/in/*") == [1, 2, 3]


def write_all(folder: Path) -> dict[str, str]:
    """The same six frames in every form."""
    frames = [bytes(cv2.imencode(".png", draw_scene(9 * i, 96, 64))[1]) for i in range(6)]
    for index, data in enumerate(frames):
        write(folder / "nested" / f"day{index // 3}" / f"{index}.png", data)
    write_zip(folder / "photos.zip", {f"deep/{i}.png": data for i, data in enumerate(frames)})
    for name, part in (("a", range(3)), ("b", range(3, 6))):
        writer = cv2.VideoWriter(
            str(folder / f"clip_{name}.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (96, 64)
        )
        for i in part:
            writer.write(draw_scene(9 * i, 96, 64))
        writer.release()
    return {
        "zip": f"{folder}/photos.zip",
        "nested": f"{folder}/nested",
        "videos": f"{folder}/clip_*.avi",
    }


@pytest.mark.parametrize("form", ["zip", "nested", "videos"])
@pytest.mark.parametrize("verb", ["run", "bench", "report", "flicker", "compare"])
def test_verbs_take_what_train_takes(
    verb: str, form: str, tmp_path: Path, v1_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    if verb in ("report", "compare"):
        pytest.importorskip("sklearn")
    uri, bundle, target = write_all(tmp_path)[form], str(v1_bundle), f"{tmp_path}/out.json"
    common = ["--backend", "onnxruntime", "--threads", "1"]
    options = {
        "run": [uri, "-b", bundle, "-o", f"json:{target}", *common],
        "bench": [bundle, uri, "--frames", "6", "--warmup", "0.01", "--json", target, *common],
        "report": [bundle, uri, "-o", f"{tmp_path}/a.html", "--json", target, "--no-layers"],
        "flicker": [bundle, uri, "--json", target, *common],
        "compare": [bundle, bundle, uri, "--json", target],
    }
    assert main([verb, *options[verb]]) == 0, capsys.readouterr().err
    text = Path(target).read_text()
    if verb == "run":
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["index"] for line in lines] == list(range(6))
        recordings = [Path(line["recording"]).name for line in lines if "recording" in line]
        assert recordings == (["clip_a.avi"] * 3 + ["clip_b.avi"] * 3 if form == "videos" else [])
    elif verb in ("report", "compare"):
        assert json.loads(text)["frames"] == 6
    elif verb == "flicker":
        assert {each["frames"] for each in json.loads(text)["strengths"]} == {6}


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    with open_source(f"file://{write_video(tmp_path / 'a.avi', 2)}") as source:
        assert len(list(source)) == 2


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


@pytest.mark.parametrize("before", ["", "localhost"])
def test_a_file_uri_may_be_percent_encoded_and_have_a_host(tmp_path: Path, before: str) -> None:
    (tmp_path / "a b").mkdir()
    write_image(tmp_path / "a b" / "1.png", plain(9))
    (frame,) = open_source(f"file://{before}{tmp_path}/a%20b")
    assert frame.image.min() == 9


def test_a_percent_sign_in_a_name_is_itself(tmp_path: Path) -> None:
    write_image(tmp_path / "a%20b.png", plain(9))
    assert len(list(open_source(f"file://{tmp_path}/a%20b.png"))) == 1


def test_what_is_beside_the_videos_of_a_folder_is_said_of_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        write_clip(tmp_path / f"{name}.avi", 2)
    write(tmp_path / "notes.txt", b"x")
    with caplog.at_level(logging.WARNING):
        open_source(str(tmp_path)).close()
    assert caplog.messages == [
        f"1 files of {tmp_path} are no images or videos and left out ({tmp_path}/notes.txt)"
    ]
