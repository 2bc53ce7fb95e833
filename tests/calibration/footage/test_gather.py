"""Footage gives frames that differ, from everything that can be read, and says what cannot."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

cv2 = pytest.importorskip("cv2")

from aeseg_edge.bundle.geometry import LETTERBOX_VALUE, Geometry  # noqa: E402
from aeseg_edge.calibration.footage import gather as module  # noqa: E402
from aeseg_edge.calibration.footage.gather import Footage, distinct, gather, held_out_blocks, share  # noqa: E402
from aeseg_edge.errors import FootageError, UsageError  # noqa: E402
from aeseg_edge.support.evenly import middles  # noqa: E402
from tests.doubles.clips import DATA, damage_jpegs, write_jpegs  # noqa: E402

SIZE = (64, 48)
Image = NDArray[np.uint8]


def scene(index: int, *, size: tuple[int, int] = SIZE) -> Image:
    """A picture of its own for each index, which its mean colour gives away; see `index_of`."""
    width, height = size
    texture = np.random.default_rng(index).integers(0, 60, (6, 8, 3), dtype=np.uint8)
    picture = cv2.resize(texture, size, interpolation=cv2.INTER_NEAREST)
    stripe = np.zeros((height, width, 3), np.uint8)
    stripe[:, : width // 2] = (0, 60 * (index // 32), 6 * (index % 32))
    return np.asarray(picture // 8 + stripe, np.uint8)


def index_of(frame: Image) -> int:
    """The number that `scene` was drawn for."""
    _, green, red = frame[:, : frame.shape[1] // 2].reshape(-1, 3).mean(0) - 3.5
    return 32 * round(green / 60) + round(red / 6)


def write_video(path: Path, frames: Sequence[Image]) -> Path:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (width, height))
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, 95)
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def write_folder(path: Path, frames: Sequence[Image], suffix: str = ".png") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        assert cv2.imwrite(str(path / f"frame_{index}{suffix}"), frame)
    return path


def write_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def png(image: Image) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])


def every_frame(footage: Footage) -> list[int]:
    return sorted(index_of(frame) for part in (footage.frames, footage.held_out) for frame in part)


# --- what is read ---------------------------------------------------------------------------------


def test_a_mix_of_sources_shares_the_budget_in_proportion_to_length(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", [scene(i) for i in range(40)])
    folder = write_folder(tmp_path / "b", [scene(i) for i in range(40, 60)])
    archive = write_zip(tmp_path / "c.zip", {f"deep/{i}.png": png(scene(i)) for i in range(60, 80)})
    write_folder(tmp_path / "d", [scene(i) for i in range(80, 90)])
    single = tmp_path / "e.png"
    single.write_bytes(png(scene(95)))

    footage = gather(
        [video, folder, archive, f"{tmp_path}/d/*.png", single], size=SIZE, max_frames=46
    )

    assert [(s.kind, s.found, s.sampled) for s in footage.report.sources] == [
        ("video", 40, 20),
        ("folder", 20, 10),
        ("zip", 20, 10),
        ("glob", 10, 5),
        ("images", 1, 1),
    ]
    assert len(footage.frames) + len(footage.held_out) == 46
    assert footage.frames.shape[1:] == (48, 64, 3)
    assert footage.frames.dtype == np.uint8


def test_frames_are_spread_evenly_over_a_video(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", [scene(i) for i in range(90)])
    footage = gather([video], size=SIZE, max_frames=30)
    assert every_frame(footage) == list(range(1, 90, 3))


def test_numbered_images_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [scene(i) for i in range(12)])
    footage = gather([folder], size=SIZE, holdout=0)
    assert [index_of(frame) for frame in footage.frames] == list(range(12))


def test_numbered_videos_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index in (10, 9, 2, 1):
        write_video(tmp_path / f"clip_{index}.avi", [scene(index + i) for i in (0, 20)])
    sources = gather([tmp_path], size=SIZE).report.sources
    assert [Path(source.source).stem for source in sources] == [
        f"clip_{index}" for index in (1, 2, 9, 10)
    ]


def test_a_folder_may_hold_videos_and_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "all" / "deep", [scene(i) for i in range(5)])
    write_video(tmp_path / "all" / "b.avi", [scene(i) for i in range(5, 10)])
    (tmp_path / "all" / "._frame.jpg").write_bytes(b"a Mac's shadow file")
    footage = gather([tmp_path / "all"], size=SIZE)
    assert every_frame(footage) == list(range(10))
    assert not any(source.unreadable for source in footage.report.sources)


def test_images_that_a_shell_listed_are_one_source(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [scene(i) for i in range(20)])
    paths = [folder / f"frame_{i}.png" for i in range(20)]
    footage = gather(paths, size=SIZE, max_frames=10)
    assert len(footage.report.sources) == 1
    assert every_frame(footage) == list(range(1, 20, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_grey_and_alpha_become_the_channels_wanted(
    tmp_path: Path, channels: int
) -> None:
    grey = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64)
    deep = (grey * 20).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "0.png"), deep)
    cv2.imwrite(str(tmp_path / "1.png"), np.dstack([scene(1), np.full((48, 64), 9, np.uint8)]))
    footage = gather([tmp_path], size=SIZE, channels=channels, holdout=0)
    assert footage.frames.shape == (2, 48, 64, channels)
    expected = np.round(deep / 257.0)
    assert np.array_equal(footage.frames[0], np.dstack([expected] * channels))


def test_four_channel_images_keep_their_fourth(tmp_path: Path) -> None:
    thermal = np.tile(np.arange(64, dtype=np.uint8), (48, 1))
    write_folder(tmp_path / "a", [np.dstack([scene(i), thermal]) for i in range(4)])
    footage = gather([tmp_path / "a"], size=SIZE, channels=4, holdout=0)
    assert np.array_equal(footage.frames[2, ..., 3], thermal)


def test_letterbox_leaves_bars_of_the_geometry(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [scene(i, size=(64, 32)) for i in range(4)])
    boxed = gather([tmp_path / "a"], size=(64, 64), resize="letterbox", holdout=0)
    assert (boxed.frames[:, :16] == LETTERBOX_VALUE).all()
    assert np.array_equal(boxed.frames[1, 16:48], scene(1, size=(64, 32)))


def test_progress_counts_up_to_its_total(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", [scene(i) for i in range(20)])
    folder = write_folder(tmp_path / "b", [scene(i) for i in range(20, 30)])
    told: list[tuple[int, int, str]] = []
    gather([video, folder], size=SIZE, max_frames=15, progress=lambda *state: told.append(state))
    assert [done for done, _, _ in told] == list(range(1, 26))
    assert told[-1] == (25, 25, str(folder))


def test_a_long_video_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    size, budget = (160, 128), 10
    frames = [scene(i % 90, size=size) for i in range(400)]
    video = write_video(tmp_path / "a.avi", frames)
    del frames
    tracemalloc.start()
    footage = gather([video], size=size, max_frames=budget)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert footage.report.sources[0].found == 400
    one = 160 * 128 * 3
    assert peak < 1.1 * budget * one + 3 * one + 200_000


# --- near-duplicates ------------------------------------------------------------------------------


def noisy(image: Image, seed: int, sigma: float = 3.0) -> Image:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.asarray(np.clip(image + noise, 0, 255), np.uint8)


def test_near_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    size = (160, 120)
    frames = [noisy(scene(i // 2, size=size), i) for i in range(120)]
    footage = gather([write_folder(tmp_path / "a", frames)], size=size)
    assert every_frame(footage) == list(range(60))
    assert footage.report.sources[0].duplicates == 60


def test_a_fixed_camera_with_a_small_moving_person_keeps_its_frames(tmp_path: Path) -> None:
    size = (160, 120)
    frames = []
    for i in range(60):
        frame = noisy(scene(3, size=size), i)
        frame[60:72, 2 * i : 2 * i + 5] = 200  # 0.3 % of the picture
        frames.append(frame)
    footage = gather([write_folder(tmp_path / "a", frames)], size=size)
    assert footage.report.sources[0].kept == 60


def test_a_scene_that_hardly_changes_keeps_its_most_different_frames(tmp_path: Path) -> None:
    size = (160, 120)
    frames = [noisy(scene(3, size=size), i, sigma=1) for i in range(200)]
    frames[70][:, :80] += 2
    frames[150][:, 80:] += 2
    footage = gather([write_folder(tmp_path / "a", frames)], size=size, holdout=0)
    report = footage.report.sources[0]
    assert report.kept == module.MIN_KEPT
    assert "hardly changes" in report.warnings[0]
    for i in (70, 150):
        assert any(np.array_equal(frame, frames[i]) for frame in footage.frames)


def test_footage_given_twice_counts_once(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", [scene(i) for i in range(60)])
    footage = gather([video, video], size=SIZE)
    assert [source.kept for source in footage.report.sources] == [60, 0]
    assert "repeats" in footage.report.sources[1].warnings[0]


def test_pictures_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [scene(3)] * 9)
    with pytest.raises(FootageError, match=r"all 9 frames .* show the same picture"):
        gather([folder], size=SIZE)


def test_the_first_of_equals_stays() -> None:
    thumbs = np.zeros((60, 1024), np.int16)
    thumbs[:, :20] = np.arange(60)[:, None] // 2 * 5
    assert np.array_equal(np.flatnonzero(distinct(thumbs))[:30], np.arange(0, 60, 2))


# --- held out -------------------------------------------------------------------------------------


def test_held_out_frames_are_blocks_of_neighbours(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [scene(i) for i in range(100)])
    footage = gather([folder], size=SIZE, holdout=0.2)
    held = [index_of(frame) for frame in footage.held_out]
    assert len(held) == 20
    starts = [index for index in held if index - 1 not in held]
    assert len(starts) == 2
    assert not set(held) & {index_of(frame) for frame in footage.frames}


def test_every_source_gives_its_share_of_held_out_frames() -> None:
    held = held_out_blocks([100, 300, 5], 0.1, seed=4)
    assert held[:100].sum() == 10
    assert held[100:400].sum() in (30, 31)
    assert held.sum() == 40


@pytest.mark.parametrize(("counts", "share_", "expected"), [([2], 0.1, 1), ([3], 0.9, 2)])
def test_something_is_left_on_both_sides(counts: list[int], share_: float, expected: int) -> None:
    assert held_out_blocks(counts, share_, seed=0).sum() == expected


def test_nothing_is_held_out_on_request(tmp_path: Path) -> None:
    footage = gather(
        [write_folder(tmp_path / "a", [scene(i) for i in range(5)])], size=SIZE, holdout=0
    )
    assert footage.held_out.shape == (0, 48, 64, 3)
    assert len(footage.frames) == 5


def test_the_seed_decides_and_repeats(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [scene(i) for i in range(100)])
    first, again, other = (gather([folder], size=SIZE, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.held_out, again.held_out)
    assert not np.array_equal(first.held_out, other.held_out)


def test_the_size_that_each_frame_had_is_kept_with_it(tmp_path: Path) -> None:
    sizes = [(64 + 2 * index, 48) for index in range(8)]
    pictures = [scene(index, size=size) for index, size in enumerate(sizes)]
    folder = write_folder(tmp_path / "a", [*pictures[:4], pictures[3], *pictures[4:]])
    video = write_video(tmp_path / "b.avi", [scene(i, size=(96, 64)) for i in range(20, 30)])
    footage = gather([folder, video], size=SIZE, holdout=0.3, resize="letterbox")
    assert footage.sizes is not None
    assert len(footage.sizes) == len(footage.frames) + len(footage.held_out) == 18
    frames = np.concatenate([footage.frames, footage.held_out])
    for frame, (rows, columns) in zip(frames, footage.sizes.tolist(), strict=True):
        top, left, height, width = Geometry(*SIZE, resize="letterbox").box(rows, columns)
        index = index_of(frame[top : top + height, left : left + width])
        assert (columns, rows) == (sizes[index] if index < 20 else (96, 64))


# --- damage ---------------------------------------------------------------------------------------


def test_unreadable_files_are_named_and_skipped(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [scene(i) for i in range(4)])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(bytes(cv2.imencode(".jpg", scene(5))[1])[:400])
    cv2.imwrite(str(folder / "tiny.png"), scene(6)[:8, :8])
    report = gather([folder], size=SIZE).report
    assert {Path(name).name for name in report.sources[0].unreadable} == {
        "text.jpg",
        "empty.png",
        "cut.jpg",
    }
    assert [Path(name).name for name in report.sources[0].too_small] == ["tiny.png"]
    assert report.sources[0].kept == 4
    assert "4 unreadable or too small" in report.summary()


def test_a_video_cut_in_half_gives_what_is_left_with_a_warning(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.avi", [scene(i) for i in range(80)]).read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: len(whole) // 2])
    footage = gather([cut], size=SIZE, max_frames=20)
    source = footage.report.sources[0]
    assert 30 < source.found < 45
    assert "cut.avi is cut short: " in source.warnings[0]
    # The budget is spent on what is there, evenly.
    assert every_frame(footage) == middles(source.found, 20)


def test_the_rest_of_a_video_with_a_damaged_packet_is_footage(tmp_path: Path) -> None:
    path = damage_jpegs(write_jpegs(tmp_path / "a.mp4", 16), 4)
    source = gather([path], size=SIZE, holdout=0).report.sources[0]
    assert (source.found, source.kept) == (15, 15)
    [warning] = source.warnings
    assert warning.endswith("1 damaged packet could not be decoded, and the rest is read")


def test_interlaced_footage_is_right_or_refused_with_the_command_that_helps() -> None:
    said = ""
    try:
        footage = gather([DATA / "interlaced.mp4"], size=SIZE, holdout=0)
        assert float(footage.frames.mean()) > 60
    except FootageError as problem:
        said = str(problem)
    assert not said or "no frames" in said or "ffmpeg -i" in said


def test_a_damaged_video_beside_a_good_one_is_named(tmp_path: Path) -> None:
    good = write_video(tmp_path / "a.avi", [scene(i) for i in range(10)])
    bad = tmp_path / "b.mp4"
    bad.write_bytes(b"\0" * 5000)
    report = gather([bad, good], size=SIZE).report
    assert report.sources[0].unreadable == (str(bad),)
    assert report.sources[1].kept == 10


def test_a_video_whose_name_is_not_utf8_is_named_and_skipped(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "good", [scene(i) for i in range(6)])
    odd = folder / os.fsdecode(b"caf\xe9.mp4")
    try:
        odd.write_bytes(b"OpenCV 5 ends the process at this name")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    report = gather([folder], size=SIZE).report
    assert [name for each in report.sources for name in each.unreadable] == [str(odd)]


def test_a_damaged_entry_of_a_zip_is_skipped(tmp_path: Path) -> None:
    entries = {f"{i}.png": png(scene(i)) for i in range(4)}
    archive = write_zip(tmp_path / "a.zip", entries)
    data = bytearray(archive.read_bytes())
    data[data.find(entries["2.png"]) + 60] ^= 255
    archive.write_bytes(data)
    footage = gather([archive], size=SIZE)
    assert footage.report.sources[0].unreadable == (f"{archive}:2.png",)
    assert every_frame(footage) == [0, 1, 3]


def test_an_entry_that_unpacks_to_more_than_it_states_is_skipped(tmp_path: Path) -> None:
    entries = {f"{i}.png": png(scene(i)) for i in range(3)}
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in (entries | {"bomb.png": bytes(64 << 20)}).items():
            zipped.writestr(name, data)
    stated = struct.pack("<I", 64 << 20)
    archive.write_bytes(archive.read_bytes().replace(stated, struct.pack("<I", 1000)))
    gather([write_folder(tmp_path / "warm", [scene(0), scene(1)])], size=SIZE)
    tracemalloc.start()
    footage = gather([archive], size=SIZE)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert footage.report.sources[0].unreadable == (f"{archive}:bomb.png",)
    assert every_frame(footage) == [0, 1, 2]
    assert most < 8 << 20


@pytest.mark.parametrize("first", [True, False])
def test_a_name_that_is_not_the_utf_8_it_says_is_a_damaged_zip(tmp_path: Path, first: bool) -> None:
    entries = {f"{i}é.png": png(scene(i)) for i in range(3)}
    archive = write_zip(tmp_path / "a.zip", entries)
    data = archive.read_bytes()
    name = "2é.png".encode()
    # Each name is there twice: before its entry, and in the list at the end.
    assert data.count(name) == 2
    place = data.index(name) if first else data.rindex(name)
    archive.write_bytes(data[:place] + b"2\xff\xff.png" + data[place + len(name) :])
    good = write_folder(tmp_path / "good", [scene(i) for i in range(10, 13)])
    footage = gather([archive, good], size=SIZE)
    [unreadable] = footage.report.sources[0].unreadable
    assert unreadable == (f"{archive}:2é.png" if first else str(archive))
    assert every_frame(footage) == ([0, 1] if first else []) + [10, 11, 12]


def test_entries_packed_with_bzip2_are_named(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {f"{i}.png": png(scene(i)) for i in range(3)})
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_BZIP2) as zipped:
        zipped.writestr("3.png", png(scene(3)))
    footage = gather([archive], size=SIZE)
    assert footage.report.sources[0].unreadable == (f"{archive}:3.png",)
    assert every_frame(footage) == [0, 1, 2]


def test_entries_that_lead_out_of_a_zip_are_ignored(tmp_path: Path) -> None:
    entries = {f"{i}.png": png(scene(i)) for i in range(3)}
    evil = {
        name: png(scene(9))
        for name in ("../evil.png", "/evil.png", "C:/evil.png", "a/../../evil.png")
    }
    (tmp_path / "in").mkdir()
    archive = write_zip(tmp_path / "in" / "a.zip", entries | evil)
    footage = gather([archive], size=SIZE)
    assert every_frame(footage) == [0, 1, 2]
    assert "4 entries" in footage.report.sources[0].warnings[0]
    assert [path.name for path in tmp_path.rglob("*.png")] == []


def text_folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("hello")
    return tmp_path / "texts"


def empty_folder(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def text_file(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path / "notes.txt"


def zip_of_text(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "a.zip", {"notes.txt": b"hello"})


def damaged_zip(tmp_path: Path) -> Path:
    (tmp_path / "a.zip").write_bytes(b"PK\3\4" + b"\7" * 100)
    return tmp_path / "a.zip"


def video_without_frames(tmp_path: Path) -> Path:
    whole = write_video(tmp_path / "a.avi", [scene(0)]).read_bytes()
    # The header alone: everything up to the list of frames.
    (tmp_path / "head.avi").write_bytes(whole[: whole.find(b"movi") + 4])
    return tmp_path / "head.avi"


def one_pixel(tmp_path: Path) -> Path:
    (tmp_path / "dot.png").write_bytes(png(np.zeros((1, 1, 3), np.uint8)))
    return tmp_path / "dot.png"


def one_frame(tmp_path: Path) -> Path:
    (tmp_path / "one.png").write_bytes(png(scene(1)))
    return tmp_path / "one.png"


def small_video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "a.avi", [scene(i, size=(48, 24)) for i in range(9)])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path / "nowhere.mp4", "nowhere.mp4 does not exist"),
        (lambda path: path / "*.mp4", "matches nothing"),
        (lambda path: "rtsp://camera/stream", "is not a file"),
        (lambda path: "0", "0 is not a file, and training needs footage that it can read again"),
        (lambda path: "-", "is not a file"),
        (empty_folder, "holds no images or videos, but no files"),
        (text_folder, "holds no images or videos, but 1 other files"),
        (text_file, "notes.txt is neither an image nor a video"),
        (zip_of_text, "a.zip holds no images"),
        (damaged_zip, "a.zip is not a readable zip"),
        (video_without_frames, "head.avi .*(no frame|cannot be opened)"),
        (one_pixel, "dot.png is 1x1 pixels, and footage needs 32"),
        (one_frame, "one.png gives 1 frame, and training needs 2"),
        (small_video, "a.avi is 48x24 pixels"),
    ],
)
def test_what_is_no_footage_ends_in_a_clear_error(tmp_path: Path, make, says: str) -> None:
    with pytest.raises(FootageError, match=says):
        gather([make(tmp_path)], size=SIZE)


def test_a_colour_video_is_no_four_channel_footage(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", [scene(i) for i in range(9)])
    with pytest.raises(FootageError, match="has 3 channels, 4 are wanted"):
        gather([video], size=SIZE, channels=4)


@pytest.mark.parametrize(
    "options", [{"max_frames": 1}, {"holdout": 1.0}, {"holdout": -0.1}, {"channels": 2}]
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, float]) -> None:
    folder = write_folder(tmp_path / "a", [scene(i) for i in range(3)])
    with pytest.raises(UsageError):
        gather([folder], size=SIZE, **options)


def test_an_unknown_kind_of_pixel_is_said(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.tiff"), np.zeros((40, 40), np.float32))
    with pytest.raises(FootageError, match=r"a.tiff holds float32 values, not 8 or 16 bits"):
        gather([tmp_path], size=SIZE)


# --- arithmetic -----------------------------------------------------------------------------------


def test_a_shared_budget_is_spent_to_the_last_frame() -> None:
    assert share([10, 10, 10], 10) == [4, 3, 3]
    assert share([1000, 1], 10) == [10, 0]
    assert share([3, 4], 100) == [3, 4]


def test_spread_takes_the_middle_of_each_equal_part() -> None:
    assert middles(10, 2) == [2, 7]
    assert middles(3, 5) == [0, 1, 2]


def test_a_range_goes_into_the_frames_and_into_the_name_of_the_source(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(4):
        raw = random.integers(7200, 8801, (64, 96)).astype(np.uint16)
        assert cv2.imwrite(str(tmp_path / f"{index}.png"), raw)
    plain = gather([tmp_path], size=(96, 64), channels=1, holdout=0)
    (source,) = plain.report.sources
    assert len(source.warnings) == 1
    assert "and 8 bits keep 7" in source.warnings[0]
    assert np.ptp(plain.frames) <= 7
    found = gather([f"{tmp_path}?range=7200:8800"], size=(96, 64), channels=1, holdout=0)
    (source,) = found.report.sources
    assert (source.source, source.warnings) == (f"{tmp_path}?range=7200:8800", ())
    assert np.ptp(found.frames) == 255
