"""Pictures of more than 8 bits: stated ranges, what is told without one, what bundles remember."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.depth import Levels, levels_of, split_levels
from aeseg_edge.sources.images import decode_image
from aeseg_edge.sources.paths import with_range
from aeseg_edge.sources.registry import open_source
from tests.doubles.pictures import plain, write_image

cv2 = pytest.importorskip("cv2")

RAW = np.linspace(7200, 8800, 48 * 64).reshape(48, 64).astype(np.uint16)


def first(uri: str, channels: int = 1) -> np.ndarray:
    with open_source(uri, channels=channels) as source:
        return next(iter(source)).image


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_stated_range_keeps_the_levels_of_a_thermal_picture(
    tmp_path: Path, name: str, form: str
) -> None:
    path = write_image(tmp_path / name, RAW)
    image = first(form.format(path) + "?range=7200:8800")
    assert (image.min(), image.max(), len(np.unique(image))) == (0, 255, 256)


@pytest.mark.parametrize("kind", ["folder", "glob", "zip"])
def test_a_range_goes_with_every_form_of_pictures(tmp_path: Path, kind: str) -> None:
    import zipfile

    path = write_image(tmp_path / "a.png", RAW)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.png")
    uri = {"folder": tmp_path, "glob": tmp_path / "?.png", "zip": tmp_path / "a.zip"}[kind]
    assert len(np.unique(first(f"{uri}?range=7200:8800"))) == 256


def test_without_a_range_the_loss_is_told_once_and_the_range_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name, RAW)
    with open_source(str(tmp_path), channels=1) as source, caplog.at_level(logging.WARNING):
        assert len(list(source)) == 2
    (note,) = [record.getMessage() for record in caplog.records]
    assert "holds values from 7207 to 8792 (1586 levels)" in note
    assert "8 bits keep 7" in note
    assert "?range=7207:8792" in note  # the middle 99 %: dead pixels aside


@pytest.mark.parametrize(
    "image",
    [
        np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16),
        (np.arange(64, dtype=np.uint16) // 8 * 257)[None].repeat(48, 0),  # was 8 bits before
        (np.arange(64, dtype=np.uint16) // 8 * 256)[None].repeat(48, 0),
    ],
)
def test_what_loses_nothing_is_not_told(image: np.ndarray) -> None:
    told: list[str] = []
    data = cv2.imencode(".png", image)[1].tobytes()
    assert isinstance(decode_image(data, 1, tell=told.append), np.ndarray)
    assert told == []


def test_few_levels_that_are_crushed_are_told_too() -> None:
    told: list[str] = []
    data = cv2.imencode(".png", np.array([[7601, 7814, 8141]] * 9, np.uint16))[1].tobytes()
    decode_image(data, 1, tell=told.append)
    assert len(told) == 1


@pytest.mark.parametrize(("white", "dtype"), [(16383, ">u2"), (1023, ">u2"), (100, "u1")])
def test_a_pgm_says_itself_what_is_white(white: int, dtype: str) -> None:
    values = np.linspace(0, white, 64).astype(dtype).reshape(8, 8)
    data = b"P5\n# a camera's\n8 8\n%d\n" % white + values.tobytes()
    image = decode_image(data, 1)
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image[..., 0], np.round(values / white * 255))


def test_degrees_in_floating_point_need_a_range_and_are_read_with_one() -> None:
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    values = np.array([[20.0, 30.0, np.nan], [15.0, 40.0, 45.0]], np.float32)
    pillow.fromarray(values).save(file, "TIFF")
    refused = decode_image(file.getvalue(), 1)
    assert isinstance(refused, str)
    assert "state a range" in refused
    image = decode_image(file.getvalue(), 1, levels=Levels(20, 40))
    assert isinstance(image, np.ndarray)
    assert image[..., 0].tolist() == [[0, 128, 0], [0, 255, 255]]


def test_a_range_that_misses_the_values_and_one_for_8_bits_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    data = cv2.imencode(".png", RAW)[1].tobytes()
    decode_image(data, 1, levels=Levels(20, 30), tell=told.append)
    eight = cv2.imencode(".png", plain(9, 8, 8, 1))[1].tobytes()
    image = decode_image(eight, 1, levels=Levels(20, 30), tell=told.append)
    assert isinstance(image, np.ndarray)
    assert image.max() == 9
    assert told[0].startswith("has 100 % of its values outside the range 20:30")
    assert "left as it is" in told[1]


@pytest.mark.parametrize("text", ["", "5", "8:7", "a:b", "1:2:3", "1:inf", "nan:2"])
def test_what_is_no_range_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceError, match="is no range"):
        open_source(f"{tmp_path}?range={text}")


def test_a_range_is_not_for_videos(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match="no pictures that a range is for"):
        open_source(f"{tmp_path}/a.mp4?range=1:2")


def test_a_file_of_that_very_name_is_no_range(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", plain(3)).rename(tmp_path / "a?range=1:2")
    assert split_levels(str(path)) == (str(path), None)


def test_a_bundle_remembers_the_range_of_its_footage(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", RAW)
    (tmp_path / "b.mp4").write_bytes(b"")
    kept = {"footage": ["x?range=1:2"], "calibration_footage": ["y?range=7200:8800"]}
    assert levels_of(kept) == Levels(7200, 8800)
    assert with_range(str(tmp_path), kept) == f"{tmp_path}?range=7200:8800"
    assert with_range(f"{tmp_path}?range=5:9", kept) == f"{tmp_path}?range=5:9"
    for other in (f"{tmp_path}/b.mp4", "0", "rtsp://host/path", "pairs://a=x,b=y", "absent"):
        assert with_range(other, kept) == other
    assert levels_of({"footage": ["x.mp4", "y?range=1:2", "z?range=1:2"]}) == Levels(1, 2)
    for unclear in ({}, {"footage": "x"}, {"footage": ["x?range=1:2", "y?range=1:3"]}):
        assert levels_of(unclear) is None
