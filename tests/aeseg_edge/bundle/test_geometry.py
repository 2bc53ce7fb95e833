"""Frames reach the graph's size and labels come back where they belong."""

from __future__ import annotations

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.bundle.geometry import (
    LETTERBOX_VALUE,
    Geometry,
    apply_region,
    check_frame,
    fit_frame,
    fit_labels,
    fit_region,
    resize_picture,
)
from aeseg_edge.errors import FrameError, UsageError

cv2 = pytest.importorskip("cv2")


def test_a_frame_that_fits_is_not_copied() -> None:
    frame = np.zeros((64, 96, 3), np.uint8)
    assert fit_frame(frame, Geometry(96, 64)) is frame


def test_stretch_fills_the_whole_input() -> None:
    fitted = fit_frame(np.full((30, 300, 3), 200, np.uint8), Geometry(96, 64))
    assert fitted.shape == (64, 96, 3)
    assert (fitted == 200).all()


def test_letterbox_keeps_the_aspect_and_centres_the_picture() -> None:
    geometry = Geometry(96, 64, resize="letterbox")
    fitted = fit_frame(np.full((30, 90, 3), 200, np.uint8), geometry)
    assert (fitted[16:48] == 200).all()
    assert (fitted[:16] == LETTERBOX_VALUE).all()
    assert (fitted[48:] == LETTERBOX_VALUE).all()


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(60, 100), (128, 192), (240, 100)])
@pytest.mark.parametrize("stride", [1, 4])
def test_labels_come_back_to_where_the_picture_was(
    resize: str, size: tuple[int, int], stride: int
) -> None:
    height, width = size
    geometry = Geometry(96, 64, channels=1, resize=resize)
    frame = np.zeros((height, width, 1), np.uint8)
    frame[height // 3 :, width // 2 :] = 255
    fitted = fit_frame(frame, geometry)[..., 0]
    small = fitted.reshape(64 // stride, stride, 96 // stride, stride).mean(axis=(1, 3))
    labels = fit_labels((small > 127).astype(np.uint8), geometry, height, width)
    assert labels.shape == size
    wrong = (labels * 255 != frame[..., 0]).mean()
    # At most half a label cell along the two edges, and the resampling of the frame.
    cell = stride * max(height / 64, width / 96)
    assert wrong <= 0.6 * cell * (height / 2 + width) / (height * width)


def test_nearest_labels_are_not_shifted_by_half_a_cell() -> None:
    labels = np.array([[0, 1]], np.uint8)
    assert fit_labels(labels, Geometry(8, 4), 4, 8)[0].tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ([1, 2], "numpy array"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\]"),
        (np.zeros((4, 4), np.uint8), r"\[4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_what_is_not_a_frame_is_refused(frame: object, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        check_frame(frame, 3)


def test_a_grey_frame_gains_its_channel_axis() -> None:
    assert check_frame(np.zeros((4, 5), np.uint8), 1).shape == (4, 5, 1)


def test_one_pixel_grows_to_the_input() -> None:
    assert (fit_frame(np.full((1, 1, 3), 9, np.uint8), Geometry(96, 64)) == 9).all()


def test_unknown_resize_modes_are_refused() -> None:
    with pytest.raises(UsageError, match="'crop'"):
        Geometry(96, 64, resize="crop")


def test_labels_outside_the_region_are_void() -> None:
    mask = np.zeros((2, 4), np.uint8)
    mask[:, 2:] = 255
    labels = np.ones((4, 8), np.uint8)
    result = apply_region(labels, fit_region(mask, 4, 8))
    assert (result[:, :4] == VOID).all()
    assert (result[:, 4:] == 1).all()
    assert (labels == 1).all()


def test_stripes_of_one_pixel_become_grey_however_much_a_picture_shrinks() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 254
    for rows, columns in ((64, 64), (32, 32), (16, 16), (20, 24), (16, 64), (64, 16)):
        assert np.ptp(fit_frame(stripes, Geometry(columns, rows, 3, "stretch"))) <= 4
    odd = fit_frame(stripes[:127, :127], Geometry(30, 30, 3, "stretch"))
    assert np.ptp(odd) <= 30


@pytest.mark.parametrize("turned", [False, True])
def test_stripes_become_grey_also_where_the_other_side_grows(turned: bool) -> None:
    stripes = np.zeros((32, 4096, 3), np.uint8)
    stripes[:, ::8] = 254
    size = (480, 360)
    if turned:
        stripes, size = np.ascontiguousarray(stripes.swapaxes(0, 1)), (360, 480)
    small = resize_picture(stripes, *size)
    assert small.shape == (size[1], size[0], 3)
    assert small.mean() == pytest.approx(stripes.mean(), abs=0.5)
    assert small.std() < 8


def test_every_pixel_counts_when_a_side_shrinks_to_half_or_more() -> None:
    for rows, columns in ((24, 32), (20, 22), (17, 31), (16, 16), (48, 70), (8, 9), (9, 32)):
        for spot in range(32):
            picture = np.zeros((32, 32, 1), np.uint8)
            picture[spot, spot] = 255
            assert resize_picture(picture, columns, rows).max() > 0, (rows, columns, spot)


@pytest.mark.parametrize("size", [(32, 24), (25, 20), (18, 13), (9, 7), (5, 30)])
def test_a_smaller_picture_has_the_means_of_what_it_covers(size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[:48, :64]
    smooth = np.stack([rows * 5, columns * 3, rows + columns], axis=2).astype(np.uint8)
    averaged = cv2.resize(smooth, size, interpolation=cv2.INTER_AREA)
    assert np.abs(resize_picture(smooth, *size).astype(int) - averaged).max() <= 2
