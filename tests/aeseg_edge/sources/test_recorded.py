"""Recorded sources skip what cannot be read, and play at their own rate."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.images import Pictures
from aeseg_edge.sources.recorded import ImageSource, RealTime
from aeseg_edge.sources.registry import open_source
from tests.doubles.pictures import cut, jpeg, plain, with_exif, write_image

cv2 = pytest.importorskip("cv2")


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
    assert [frame.index for frame in frames] == [0, 4]  # the numbers of the files
    assert [frame.path for frame in frames] == [tmp_path / "1.png", tmp_path / "5.png"]
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


def test_a_recording_plays_at_its_own_rate() -> None:
    now, waits = [50.0], []

    def wait(seconds: float) -> None:
        waits.append(round(seconds, 6))
        now[0] += seconds

    source = RealTime(open_source("test://8x8@10"), clock=lambda: now[0], wait=wait)
    frames = iter(source)
    assert [next(frames).captured for _ in range(3)] == pytest.approx([50.0, 50.1, 50.2])
    # The reader was away for a while: frames that are due come at once, with their own times.
    now[0] += 0.25
    assert [next(frames).captured for _ in range(3)] == pytest.approx([50.3, 50.4, 50.5])
    assert waits == [0.1, 0.1, 0.05]
    assert not source.live


def test_closing_wakes_whoever_waits_for_the_next_frame() -> None:
    source = open_source("test://8x8@0.001", realtime=True)
    frames = iter(source)
    next(frames)
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.extend(frames))
    thread.start()
    source.interrupt()  # type: ignore[attr-defined]
    thread.join(20)
    assert got == []
    source.close()


def test_pictures_have_no_rate(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(SourceError, match=r"has no rate.*--realtime"):
        open_source(str(tmp_path), realtime=True)
