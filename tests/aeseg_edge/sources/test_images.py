"""Image files become frames of the channels wanted, in natural order."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.images import decode_image, orientation_of
from aeseg_edge.sources.registry import open_source
from tests.doubles.pictures import only, plain, write_image

cv2 = pytest.importorskip("cv2")


def test_an_image_of_one_pixel_is_a_frame(tmp_path: Path) -> None:
    image = only(write_image(tmp_path / "a.png", plain(7, 1, 1, 3)))
    assert image.tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize(("value", "expected"), [(65535, 255), (0, 0), (257 * 100, 100)])
def test_16_bits_are_scaled_to_8(tmp_path: Path, value: int, expected: int) -> None:
    path = write_image(tmp_path / "a.png", np.full((2, 2, 3), value, np.uint16))
    assert set(only(path).ravel().tolist()) == {expected}


@pytest.mark.parametrize(
    ("have", "want", "expected"),
    [
        ((50,), 3, (50, 50, 50)),
        ((50,), 1, (50,)),
        ((10, 20, 30, 40), 3, (10, 20, 30)),
        ((10, 20, 30, 40), 4, (10, 20, 30, 40)),
        # 0.114 blue + 0.587 green + 0.299 red, ITU-R BT.601.
        ((200, 100, 50), 1, (96,)),
        ((200, 100, 50, 0), 1, (96,)),
    ],
)
def test_channels_become_what_the_bundle_wants(
    tmp_path: Path, have: tuple[int, ...], want: int, expected: tuple[int, ...]
) -> None:
    image = np.broadcast_to(np.array(have, np.uint8), (3, 5, len(have)))
    frame = only(write_image(tmp_path / "a.png", np.ascontiguousarray(image)), want)
    assert frame.shape == (3, 5, want)
    assert frame[1, 2].tolist() == list(expected)


def test_colour_images_do_not_grow_a_fourth_channel(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_image(tmp_path / "a.png", plain(1))
    with (
        open_source(str(path), channels=4) as source,
        caplog.at_level(logging.WARNING),
        pytest.raises(SourceError, match="none of the 1 images"),
    ):
        list(source)
    assert "has 3 channels, 4 are wanted" in caplog.text


@pytest.mark.parametrize(
    ("form", "channels"),
    [("JPEG", 1), ("JPEG", 3), *((form, c) for form in ("PNG", "WEBP", "TIFF") for c in (1, 3, 4))],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_format_is_turned_upright(
    orientation: int, form: str, channels: int
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    from PIL import ImageOps

    marks = np.kron(np.array([[255, 90, 0], [0, 40, 0]], np.uint8), np.ones((16, 16), np.uint8))
    alpha = 255 if form == "TIFF" else 200  # OpenCV multiplies it into colours of TIFF files
    picture = np.stack([marks] * 3 + [np.full_like(marks, alpha)] * (channels == 4), axis=-1)
    exif = pillow.Exif()
    exif[0x112] = orientation
    file = io.BytesIO()
    quality = {"lossless": True, "exact": True} if form == "WEBP" else {"quality": 100}
    stored = pillow.fromarray(picture)
    stored.save(file, form, exif=exif, **(quality if form in ("JPEG", "WEBP") else {}))
    data = file.getvalue()
    assert orientation_of(data) == orientation
    expected = np.asarray(ImageOps.exif_transpose(pillow.open(file)))
    found = decode_image(data, channels)
    assert isinstance(found, np.ndarray)
    assert found.shape[:2] == expected.shape[:2]
    assert np.abs(found[..., 0].astype(int) - expected[..., 0]).max() <= 3


@pytest.mark.parametrize(
    "broken", [b"\xff\xd8\xff\xe1\0\x10Exif\0\0II*\0\xff\xff", b"II*\0", b"\x89PNG"]
)
def test_broken_exif_is_none(broken: bytes) -> None:
    assert orientation_of(broken) == 1


def test_an_empty_file_is_said_to_be_empty() -> None:
    assert decode_image(b"", 3) == "is empty"
