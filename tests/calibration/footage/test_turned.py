"""Pictures that EXIF turns, and masks drawn on what is shown or on the stored pixels."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.calibration.footage.masks import find_pairs, labelled_frames
from aeseg_edge.errors import EvaluationError
from aeseg_edge.sources.images import turn

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")

CLASSES = ("ground", "sky", "car")


def scene(seed: int, height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A picture as it is shown, and its labels: grey levels far apart, with noise."""
    random = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 3] = 1
    labels[height // 2 : height // 2 + 9, 5 : 20 + seed] = 2
    grey = np.array([60, 200, 130], np.uint8)[labels] + random.integers(0, 9, labels.shape)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2), labels


def unturn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo ``turn``: a quarter to the right is undone by one to the left."""
    return turn(image, {6: 8, 8: 6}.get(orientation, orientation))


def dataset(folder: Path, orientation: int, *, drawn_on: str, **size: int) -> list[np.ndarray]:
    """Write turned pictures and masks; return the labels as shown."""
    for name in ("i", "m"):
        (folder / name).mkdir()
    shown = []
    for seed in range(3):
        picture, labels = scene(seed, **size)
        exif = Image.Exif()
        exif[0x112] = orientation
        stored = np.ascontiguousarray(unturn(picture, orientation))
        Image.fromarray(stored).save(folder / "i" / f"{seed}.png", exif=exif)
        mask = unturn(labels, orientation) if drawn_on == "stored" else labels
        Image.fromarray(np.ascontiguousarray(mask)).save(folder / "m" / f"{seed}.png")
        shown.append(labels)
    return shown


def read(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = find_pairs(folder / "i", folder / "m")
    return [(frame, mask) for _, frame, mask in labelled_frames(pairs, CLASSES, ignore=None)]


@pytest.mark.parametrize("drawn_on", ["shown", "stored"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [{}, {"height": 48, "width": 48}], ids=["wide", "square"])
def test_masks_lie_on_their_pictures_whichever_way_they_were_drawn(
    tmp_path: Path,
    orientation: int,
    drawn_on: str,
    size: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = dataset(tmp_path, orientation, drawn_on=drawn_on, **size)
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path)
    for seed, (frame, mask) in enumerate(found):
        np.testing.assert_array_equal(mask, expected[seed])
        np.testing.assert_array_equal(frame, scene(seed, **size)[0])
    sure = orientation == 1 or (orientation >= 5 and not size)
    assert len(caplog.records) == (0 if sure else 1)
    if not sure:
        where = "the stored pixels" if drawn_on == "stored" else "the pictures as shown"
        assert f"taken as drawn on {where}, where their borders lie on edges" in caplog.text


def test_where_borders_do_not_tell_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset(tmp_path, 3, drawn_on="shown")
    flat = Image.new("RGB", (64, 48), (90, 90, 90))
    exif = Image.Exif()
    exif[0x112] = 3
    for seed in range(3):
        flat.save(tmp_path / "i" / f"{seed}.png", exif=exif)
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path)
    np.testing.assert_array_equal(found[0][1], scene(0)[1])
    assert (
        "taken as drawn on the pictures as shown, although their borders do not tell" in caplog.text
    )


def test_masks_that_are_the_same_either_way_need_no_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset(tmp_path, 3, drawn_on="shown")
    for seed in range(3):
        Image.new("L", (64, 48), 2).save(tmp_path / "m" / f"{seed}.png")
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path)) == 3
    assert not caplog.records


def test_a_mask_that_is_turned_by_its_own_exif_is_turned(tmp_path: Path) -> None:
    expected = dataset(tmp_path, 6, drawn_on="stored", height=48, width=48)
    exif = Image.Exif()
    exif[0x112] = 6
    for path in (tmp_path / "m").iterdir():
        Image.open(path).save(path, exif=exif)
    np.testing.assert_array_equal(read(tmp_path)[1][1], expected[1])


def test_a_mask_of_another_size_is_refused_with_the_orientation(tmp_path: Path) -> None:
    dataset(tmp_path, 6, drawn_on="shown")
    Image.new("L", (63, 48)).save(tmp_path / "m" / "0.png")
    with pytest.raises(EvaluationError, match=r"64x48 \(turned by its EXIF orientation 6\)"):
        read(tmp_path)
