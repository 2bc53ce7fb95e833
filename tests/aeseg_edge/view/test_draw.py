"""Pictures show the classes' colours where the labels are, at a constant size."""

from __future__ import annotations

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import VOID, ClassInfo, default_classes, palette
from aeseg_edge.errors import UsageError
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.view.draw import as_bgr, contact_sheet, legend_panel, mask, overlay, render

cv2 = pytest.importorskip("cv2")

CLASSES = (
    ClassInfo(0, "sky", (80, 160, 240)),
    ClassInfo(1, "grass", (30, 140, 40)),
    ClassInfo(7, "road", (200, 180, 60)),
)
TABLE = palette(CLASSES)


def halves(height: int = 40, width: int = 60, upper: int = 0, lower: int = 1) -> np.ndarray:
    labels = np.full((height, width), lower, np.uint8)
    labels[: height // 2] = upper
    return labels


def segmentation(labels: np.ndarray, classes: tuple[ClassInfo, ...] = CLASSES) -> Segmentation:
    return Segmentation(labels, classes, palette(classes))


def picture(height: int = 40, width: int = 60, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def test_a_mask_has_the_palettes_colour_at_every_pixel() -> None:
    rng = np.random.default_rng(1)
    table = rng.integers(0, 256, (256, 3), np.uint8)
    labels = rng.integers(0, 256, (33, 51), np.uint8)
    drawn = mask(labels, table)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, table[labels])


def test_a_mask_is_drawn_from_a_part_of_a_larger_map() -> None:
    labels = np.random.default_rng(1).integers(0, 8, (40, 60), np.uint8)[3:30:2, 5:50]
    np.testing.assert_array_equal(mask(labels, TABLE), TABLE[labels])


def test_void_is_black_in_a_mask() -> None:
    assert not mask(np.full((3, 4), VOID, np.uint8), TABLE).any()


def test_an_overlay_mixes_colour_and_frame() -> None:
    image, labels = picture(), halves()
    drawn = overlay(image, labels, TABLE, alpha=0.25)
    expected = 0.75 * image + 0.25 * TABLE[labels]
    inside = np.arange(40) != 20
    assert np.abs(drawn[inside].astype(float) - expected[inside]).max() <= 1


def test_an_overlay_of_no_strength_is_the_frame_but_for_the_borders() -> None:
    image = picture()
    inside = np.arange(40) != 20
    np.testing.assert_array_equal(overlay(image, halves(), TABLE, alpha=0.0)[inside], image[inside])


@pytest.mark.parametrize("turned", [False, True])
def test_the_border_between_regions_is_one_dark_pixel(turned: bool) -> None:
    labels = halves(40, 40)
    image = np.full((40, 40, 3), 200, np.uint8)
    drawn = overlay(image, labels.T if turned else labels, TABLE, alpha=0.0)
    brightness = drawn.mean(axis=(0, 2) if turned else (1, 2))
    assert brightness[20] == pytest.approx(100)
    assert set(brightness[np.arange(40) != 20]) == {200.0}


def test_void_keeps_the_plain_frame_its_border_too() -> None:
    image, labels = picture(), halves(upper=0, lower=VOID)
    drawn = overlay(image, labels, TABLE, alpha=1.0)
    np.testing.assert_array_equal(drawn[20:], image[20:])
    assert (drawn[:19] == TABLE[0]).all()


def test_an_overlay_leaves_its_arguments_as_they_were() -> None:
    image, labels = picture(), halves(lower=VOID)
    before = image.copy(), labels.copy()
    overlay(image, labels, TABLE)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("view", "columns"), [("overlay", 60), ("mask", 60), ("both", 120), ("frame", 60)]
)
def test_every_view_of_every_frame_is_a_bgr_picture(view: str, columns: int, channels: int) -> None:
    drawn = render(picture(channels=channels), segmentation(halves()), view=view, legend=False)
    assert drawn.shape == (40, columns, 3)
    assert drawn.dtype == np.uint8


@pytest.mark.parametrize("legend", [True, False])
def test_the_view_frame_is_the_frame_as_it_came(legend: bool) -> None:
    image = picture()
    drawn = render(image, segmentation(halves()), view="frame", alpha=1.0, legend=legend)
    np.testing.assert_array_equal(drawn, image)


def test_both_is_the_overlay_beside_the_mask() -> None:
    image, result = picture(), segmentation(halves())
    drawn = render(image, result, view="both", legend=False, alpha=0.3)
    np.testing.assert_array_equal(drawn[:, :60], overlay(image, result.labels, TABLE, alpha=0.3))
    np.testing.assert_array_equal(drawn[:, 60:], mask(result.labels, TABLE))


def test_an_unknown_view_is_refused() -> None:
    with pytest.raises(UsageError, match="'depth' is unknown"):
        render(picture(), segmentation(halves()), view="depth")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (40, 60), (1080, 40)])
@pytest.mark.parametrize("count", [1, 27, 255])
def test_the_size_depends_on_the_frame_and_the_classes_only(
    size: tuple[int, int], count: int
) -> None:
    classes = default_classes(count)
    pictures = [
        render(picture(*size), segmentation(np.full(size, label, np.uint8), classes))
        for label in (0, count - 1, VOID)
    ]
    assert len({drawn.shape for drawn in pictures}) == 1
    assert pictures[0].shape[0] == size[0]
    assert pictures[0].shape[1] > size[1]


def test_another_size_is_fitted_with_its_aspect_and_black_bars() -> None:
    image = np.full((40, 40, 3), 200, np.uint8)
    result = segmentation(np.zeros((40, 40), np.uint8))
    drawn = render(image, result, view="mask", legend=False, size=(20, 60))
    assert drawn.shape == (20, 60, 3)
    assert (drawn[:, 20:40] == TABLE[0]).all()
    assert not drawn[:, :20].any()
    assert not drawn[:, 40:].any()


def test_shares_in_the_legend_are_those_of_the_frame_not_of_the_bars() -> None:
    result = segmentation(np.zeros((40, 40), np.uint8))
    fitted = render(np.zeros((40, 40, 3), np.uint8), result, size=(200, 600))
    whole = legend_panel(CLASSES, {0: 1.0}, height=200)
    np.testing.assert_array_equal(fitted[:, 600:], whole)


def has(panel: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((panel == np.array(color[::-1], np.uint8)).all(axis=2).any())


def test_the_legend_shows_the_colour_of_each_class_and_dims_those_the_frame_lacks() -> None:
    panel = legend_panel(CLASSES, {0: 0.7, 7: 0.3}, height=200)
    assert has(panel, CLASSES[0].color)
    assert has(panel, CLASSES[2].color)
    assert not has(panel, CLASSES[1].color)
    red, green, blue = CLASSES[1].color
    assert has(panel, (red // 3, green // 3, blue // 3))


def test_the_legend_tells_shares_apart() -> None:
    shares = [{0: 1.0}, {0: 0.5}, {0: 0.004}, {}]
    panels = [legend_panel(CLASSES, share, height=200).tobytes() for share in shares]
    assert len(set(panels)) == 4


@pytest.mark.parametrize("height", [360, 576, 720, 1080])
def test_27_classes_fit_a_legend_of_one_narrow_column(height: int) -> None:
    classes = default_classes(27)
    panel = legend_panel(classes, {item.id: 1 / 27 for item in classes}, height=height)
    assert all(has(panel, item.color) for item in classes)
    assert panel.shape[1] < height / 2


def test_what_does_not_fit_the_legend_is_counted() -> None:
    classes = default_classes(255)
    shares = {item.id: 1 / 255 for item in classes}
    full = legend_panel(classes, shares, height=160)
    shown = [has(full, item.color) for item in classes].index(False)
    assert 20 < shown < 40
    # The last place tells how many are left out, so one more fits where there are no others.
    fitting = legend_panel(classes[: shown + 1], shares, height=160)
    assert has(fitting, classes[shown].color)
    assert fitting.shape == full.shape


def test_a_long_name_is_shortened() -> None:
    wide = legend_panel([ClassInfo(0, "n" * 500, (9, 9, 9))], {0: 1.0}, height=200)
    assert wide.shape[1] < 500


def test_grey_becomes_bgr_and_a_fourth_channel_goes() -> None:
    grey = picture(channels=1)
    np.testing.assert_array_equal(as_bgr(grey), np.concatenate([grey] * 3, axis=2))
    np.testing.assert_array_equal(as_bgr(grey[..., 0]), as_bgr(grey))
    four = picture(channels=4)
    np.testing.assert_array_equal(as_bgr(four), four[..., :3])


def test_a_contact_sheet_has_a_row_a_frame_and_a_column_a_title() -> None:
    red, green = np.zeros((2, 30, 40, 3), np.uint8)
    red[..., 2], green[..., 1] = 255, 255
    sheet = contact_sheet([[red, green], [green, red]], ["frame", "labels"], width=80)
    assert sheet.shape[1] == 10 + 2 * 90
    centres = sheet[[34 + 30, 34 + 70 + 30]][:, [50, 140]]
    assert centres.tolist() == [[[0, 0, 255], [0, 255, 0]], [[0, 255, 0], [0, 0, 255]]]
    assert sheet[:34].min() < 100  # the titles


@pytest.mark.parametrize("rows", [[], [[np.zeros((2, 2, 3), np.uint8)]]])
def test_a_contact_sheet_wants_one_picture_a_title(rows: list[list[np.ndarray]]) -> None:
    with pytest.raises(UsageError, match="do not fit 2 titles"):
        contact_sheet(rows, ["a", "b"])


def oklab(linear: np.ndarray) -> np.ndarray:
    """Björn Ottosson, A perceptual color space for image processing, 2020."""
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_lms.T) @ to_lab.T


EYES = {
    "normal": np.eye(3),
    # Machado, Oliveira and Fernandes 2009, severity 1.
    "protanope": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranope": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


@pytest.mark.parametrize("eyes", EYES)
def test_default_colours_stay_apart_for_colour_blind_eyes(eyes: str) -> None:
    colours = np.array([item.color for item in default_classes(27)]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = oklab(np.clip(linear @ EYES[eyes].T, 0, 1))
    gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 9 * np.eye(27)
    # About 0.02 is the least difference that people notice.
    assert gaps.min() > 0.05


@pytest.mark.parametrize(
    ("name", "drawn"), [("B\u00e4ume", "Baume"), ("Stra\u00dfe", "Strasse"), ("\u9053", "?")]
)
def test_an_opencv_that_draws_ascii_only_gets_the_base_letters(
    monkeypatch: pytest.MonkeyPatch, name: str, drawn: str
) -> None:
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    panels = [
        legend_panel((ClassInfo(0, text, (9, 200, 90)),), {0: 1.0}, height=40)
        for text in (name, drawn)
    ]
    np.testing.assert_array_equal(*panels)


@pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV 4 draws ASCII only")
def test_an_opencv_that_draws_all_letters_gets_the_name_itself() -> None:
    panels = [
        legend_panel((ClassInfo(0, text, (9, 200, 90)),), {0: 1.0}, height=40)
        for text in ("B\u00e4ume", "Baume")
    ]
    assert not np.array_equal(*panels)
