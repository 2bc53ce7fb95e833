"""Labelled frames: pictures of every depth and number of channels, and what masks may hold."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.manifest import Modality
from aeseg_edge.calibration.footage.masks import (
    PictureReader,
    find_pairs,
    labelled_frames,
    read_image,
    reader_for,
)
from aeseg_edge.errors import EvaluationError

cv2 = pytest.importorskip("cv2")
Image = pytest.importorskip("PIL.Image")

TWO = ("other", "road")


def dataset(folder: Path, *masks: np.ndarray, picture: np.ndarray | None = None) -> Path:
    """Write masks as m/0.png, m/1.png, ... and a picture for each."""
    for name in ("i", "m"):
        (folder / name).mkdir()
    for index, mask in enumerate(masks):
        image = np.full((*mask.shape, 3), 90, np.uint8) if picture is None else picture
        assert cv2.imwrite(str(folder / "i" / f"{index}.png"), image)
        assert cv2.imwrite(str(folder / "m" / f"{index}.png"), mask)
    return folder


def read(folder: Path, names: tuple[str, ...] = TWO, ignore: int | None = None) -> list[np.ndarray]:
    pairs = find_pairs(folder / "i", folder / "m")
    return [frame for _, frame, _ in labelled_frames(pairs, names, ignore=ignore)]


def u8(*values: int) -> np.ndarray:
    return np.array([values], np.uint8)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_pictures_that_cannot_be_read_are_named(tmp_path: Path, content: bytes) -> None:
    folder = dataset(tmp_path, u8(0, 1))
    (folder / "i" / "0.png").write_bytes(content)
    with pytest.raises(EvaluationError, match=r"0\.png cannot be read as an image: it "):
        read(folder)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_have_the_channels_of_the_bundle(
    v1_bundle: Path, tmp_path: Path, channels: int
) -> None:
    manifest = Bundle.open(v1_bundle).manifest
    wanted = replace(manifest, geometry=replace(manifest.geometry, channels=channels))
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 6, 4), 77, np.uint8))
    assert reader_for(wanted)(tmp_path / "a.png").shape == (4, 6, channels)


def test_a_bundle_of_several_modalities_is_not_scored_on_single_pictures(v1_bundle: Path) -> None:
    manifest = replace(Bundle.open(v1_bundle).manifest, modalities=(Modality("thermal", 1),))
    with pytest.raises(EvaluationError, match="takes scenes of thermal"):
        reader_for(manifest)


def test_thermal_pictures_are_read_by_the_range_that_is_stated_or_remembered(
    v1_bundle: Path, tmp_path: Path
) -> None:
    raw = np.array([[7200, 8000, 8800]], np.uint16)
    folder = dataset(tmp_path, u8(0, 1, 1), picture=raw)
    pairs = find_pairs(Path(f"{folder / 'i'}?range=7200:8800"), folder / "m")
    ((_, frame, _),) = labelled_frames(pairs, TWO, ignore=None)
    assert frame[0, :, 0].tolist() == [0, 128, 255]
    manifest = Bundle.open(v1_bundle).manifest
    kept = replace(manifest, provenance={"footage": ["drive?range=7200:8800"]})
    assert reader_for(kept)(pairs[0].image)[0, :, 0].tolist() == [0, 128, 255]
    # What is stated goes before what is remembered.
    again = reader_for(kept)(pairs[0].image, levels=pairs[0].levels)
    assert again[0, :, 0].tolist() == [0, 128, 255]


def test_what_a_picture_loses_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = np.linspace(7200, 8800, 1000).astype(np.uint16)[None]
    mask = np.zeros(raw.shape, np.uint8)
    folder = dataset(tmp_path, mask, mask, picture=raw)
    with caplog.at_level(logging.WARNING):
        read(folder)
    assert caplog.text.count("?range=") == 1


def test_read_image_turns_nothing_into_three_channels_but_pictures(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 6), 200, np.uint8))
    assert read_image(tmp_path / "a.png")[1, 1].tolist() == [200, 200, 200]
    assert PictureReader(1)(tmp_path / "a.png").shape == (4, 6, 1)


def test_white_of_a_black_and_white_mask_is_not_called_ignored(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds the value 255") as caught:
        read(dataset(tmp_path, u8(0, 255, 255)))
    assert caught.value.fix.startswith("If white stands for class 1 (road), save it as that")


def test_black_and_white_masks_with_white_ignored_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read(dataset(tmp_path, u8(0, 255, 255)), ignore=255)
    assert "the masks show other and the ignored value 255 alone" in caplog.text


@pytest.mark.parametrize("masks", [(u8(0, 1, 255),), (u8(0, 255), u8(1, 255)), (u8(0, 0),)])
def test_masks_of_several_classes_or_without_the_ignored_value_need_no_word(
    tmp_path: Path, masks: tuple[np.ndarray, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read(dataset(tmp_path, *masks), ignore=255)
    assert not caplog.records


def test_a_smoothed_mask_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="neither smoothed"):
        read(dataset(tmp_path, u8(*range(0, 200, 3))))


@pytest.mark.parametrize("ignore", [-1, 256, 300])
def test_an_ignored_value_that_no_mask_can_hold_is_refused(tmp_path: Path, ignore: int) -> None:
    with pytest.raises(EvaluationError, match=f"--ignore is {ignore}"):
        read(dataset(tmp_path, u8(0, 1)), ignore=ignore)


@pytest.mark.parametrize("same", [True, False])
def test_palettes_that_contradict_one_another_are_told_once(
    tmp_path: Path, same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = dataset(tmp_path, u8(0, 1), u8(0, 1), u8(0, 1))
    for index in range(3):
        palette = [0, 0, 0, 9, 9, 9] if same or not index else [9, 9, 9, 0, 0, 0]
        image = Image.fromarray(u8(0, 1))
        image.putpalette(palette)
        image.save(folder / "m" / f"{index}.png")
    with caplog.at_level(logging.WARNING):
        read(folder)
    assert caplog.text.count("a palette of its own") == (0 if same else 1)


def test_hidden_files_beside_pictures_and_masks_are_passed_over(tmp_path: Path) -> None:
    folder = dataset(tmp_path, u8(0, 1))
    for name in ("i", "m"):
        (folder / name / "._0.png").write_bytes(b"\0")
    assert len(read(folder)) == 1
