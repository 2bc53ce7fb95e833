"""Folders paired by name become frames of several modalities."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnx")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.bundle.geometry import Geometry, fit_frame  # noqa: E402
from aeseg_edge.bundle.manifest import Manifest, Modality  # noqa: E402
from aeseg_edge.errors import BundleError, SourceError  # noqa: E402
from aeseg_edge.sources.depth import Levels  # noqa: E402
from aeseg_edge.sources.pairs import describe, open_pairs, read_pair  # noqa: E402
from aeseg_edge.sources.paths import with_range  # noqa: E402
from aeseg_edge.sources.registry import open_source  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402
from aeseg_edge.view.draw import as_bgr  # noqa: E402
from tests.doubles.modalities import write_pairs  # noqa: E402

RGBT = (Modality("visible", 3), Modality("thermal", 1))


def frames(uri: str, modalities: tuple[Modality, ...] = RGBT) -> list[np.ndarray]:
    with open_source(uri, modalities=modalities) as source:
        return [frame.image for frame in source]


# --- pairs ----------------------------------------------------------------------------------------


def test_a_frame_is_the_colours_and_then_the_heat_of_one_scene(tmp_path: Path) -> None:
    text, visible, thermal = write_pairs(tmp_path, 3)
    found = frames(f"pairs://{text}")
    assert len(found) == 3
    for index, image in enumerate(found):
        assert image.shape == (64, 96, 4)
        assert (image[..., :3] == cv2.imread(str(visible / f"s{index}.png"))).all()
        assert (image[..., 3] == cv2.imread(str(thermal / f"s{index}.png"), 0)).all()


def test_scenes_come_in_natural_order_and_suffixes_may_differ(tmp_path: Path) -> None:
    text, _, thermal = write_pairs(tmp_path, 11)
    for index in range(11):
        image = cv2.imread(str(thermal / f"s{index}.png"))
        (thermal / f"s{index}.png").unlink()
        cv2.imwrite(str(thermal / f"s{index}.bmp"), image)
    names = [files[1].name for files in open_pairs(f"pairs://{text}").files]
    assert names == [f"s{index}.bmp" for index in range(11)]


def test_a_grey_modality_stored_as_colour_still_has_one_channel(tmp_path: Path) -> None:
    text, _, thermal = write_pairs(tmp_path, 3)
    for path in thermal.iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_COLOR))
    assert open_pairs(f"pairs://{text}").modalities == RGBT


def test_the_number_of_channels_can_be_stated(tmp_path: Path) -> None:
    text, _, _ = write_pairs(tmp_path, 2)
    stated = open_pairs(f"pairs://{text.replace('thermal=', 'thermal:3=')}")
    assert [each.channels for each in stated.modalities] == [3, 3]
    assert stated.channels == 6


def test_a_bundles_order_and_channels_count_not_those_given(tmp_path: Path) -> None:
    text, _, _ = write_pairs(tmp_path, 2)
    first, second = text.split(",")
    assert (frames(f"pairs://{second},{first}")[0] == frames(f"pairs://{text}")[0]).all()


def test_a_folder_may_have_commas_and_equals_signs_in_its_name(tmp_path: Path) -> None:
    _, visible, thermal = write_pairs(tmp_path, 2)
    odd = tmp_path / "a,b=c"
    shutil.copytree(thermal, odd)
    # The comma stands before "b=", which reads like a modality: that is refused, not guessed.
    with pytest.raises(SourceError, match="is not a folder"):
        open_pairs(f"pairs://visible={visible},thermal={odd}")
    plain = tmp_path / "a, c"
    shutil.copytree(thermal, plain)
    assert len(open_pairs(f"pairs://visible={visible},thermal={plain}").files) == 2


def test_files_without_a_partner_are_refused_by_name_and_skipped_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, visible, thermal = write_pairs(tmp_path, 4)
    (thermal / "s2.png").unlink()
    shutil.copy(thermal / "s0.png", thermal / "other.png")
    with pytest.raises(SourceError, match=r"2 files of .* have no partner") as caught:
        open_pairs(f"pairs://{text}")
    assert str(visible / "s2.png") in caught.value.problem
    assert str(thermal / "other.png") in caught.value.problem
    assert "--unpaired skip" in caught.value.fix
    with caplog.at_level(logging.WARNING):
        left = open_pairs(f"pairs://{text}?unpaired=skip")
    assert len(left.files) == 3
    assert "2 files without a partner are skipped" in caplog.text


def test_folders_with_no_name_in_common_are_refused_in_any_case(tmp_path: Path) -> None:
    text, _, thermal = write_pairs(tmp_path, 2)
    for path in thermal.iterdir():
        path.rename(thermal / f"x{path.name}")
    with pytest.raises(SourceError, match=r"4 files of .* have no partner"):
        open_pairs(f"pairs://{text}?unpaired=skip")


def test_pictures_of_a_pair_must_have_one_size(tmp_path: Path) -> None:
    text, visible, thermal = write_pairs(tmp_path, 2)
    cv2.imwrite(str(thermal / "s1.png"), np.zeros((10, 20), np.uint8))
    with pytest.raises(SourceError, match=r"s1\.png is 20x10, and .*s1\.png is 96x64"):
        frames(f"pairs://{text}")
    assert visible.is_dir()


def test_a_pair_that_cannot_be_read_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, _, thermal = write_pairs(tmp_path, 3)
    (thermal / "s1.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        assert len(frames(f"pairs://{text}")) == 2
    assert str(thermal / "s1.png") in caplog.text
    for path in thermal.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(SourceError, match="none of the 3 pairs"):
        frames(f"pairs://{text}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not NAME=DIR"),
        ("visible", "is not NAME=DIR"),
        ("visible={rgb}", "two or more"),
        ("visible={rgb},visible={ir}", "two or more"),
        ("visible={rgb},thermal:2={ir}", "not 1 or 3"),
        ("visible={rgb},thermal=/nowhere", "is not a folder"),
        ("visible={rgb},thermal={root}", "one name"),
        ("visible={rgb},thermal={empty}", "has no images"),
        ("thermal={ir},visible={rgb}", "is grey, and another has colours"),
        ("visible={rgb}," + ",".join(f"m{i}:3={{rgb}}" for i in range(5)), "more than 16"),
    ],
)
def test_what_cannot_be_paired_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_pairs(tmp_path, 1)
    (tmp_path / "empty").mkdir()
    shutil.copy(tmp_path / "rgb" / "s0.png", tmp_path / "rgb.png")
    shutil.copy(tmp_path / "rgb" / "s0.png", tmp_path / "rgb.bmp")
    folders = {name: tmp_path / name for name in ("rgb", "ir", "empty")}
    with pytest.raises(SourceError, match=message):
        open_pairs("pairs://" + text.format(root=tmp_path, **folders))


def test_the_fix_of_a_wrong_order_is_the_right_order(tmp_path: Path) -> None:
    text, _, _ = write_pairs(tmp_path, 1)
    first, second = text.split(",")
    with pytest.raises(SourceError) as caught:
        open_pairs(f"pairs://{second},{first}")
    assert caught.value.fix == f"Give colours first: --modalities {text}."


def test_read_pair_names_the_file_that_is_missing(tmp_path: Path) -> None:
    _, visible, _ = write_pairs(tmp_path, 1)
    found = read_pair((visible / "s0.png", tmp_path / "gone.png"), RGBT)
    assert isinstance(found, str)
    assert "gone.png cannot be read" in found


def write_raw(thermal: Path) -> None:
    """Make the heat of every scene raw counts: a slope from 7200 to 8800."""
    raw = np.linspace(7200, 8800, 64 * 96).reshape(64, 96).astype(np.uint16)
    for path in thermal.iterdir():
        cv2.imwrite(str(path), raw)


def test_a_modality_has_a_range_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, visible, thermal = write_pairs(tmp_path, 2)
    write_raw(thermal)
    with caplog.at_level(logging.WARNING):
        crushed = frames(f"pairs://{text}")
    assert len(np.unique(crushed[0][..., 3])) == 7
    assert caplog.text.count("?range=") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = frames(f"pairs://{text}?range=7200:8800")
    assert len(np.unique(found[0][..., 3])) == 256
    assert (found[0][..., :3] == cv2.imread(str(visible / "s0.png"))).all()
    assert not caplog.records


def test_a_bundle_remembers_the_range_of_a_modality(tmp_path: Path) -> None:
    text, visible, thermal = write_pairs(tmp_path, 1)
    kept = {"footage": [f"visible={visible},thermal={thermal}?range=7200:8800"]}
    for more in ("", "?unpaired=skip"):
        uri = with_range(f"pairs://{text}{more}", kept)
        assert uri == f"pairs://visible={visible},thermal={thermal}?range=7200:8800{more}"
        assert with_range(uri, kept) == uri
    assert open_pairs(uri).levels == (None, Levels(7200, 8800))
    for other in ({}, {"footage": ["drive.mp4"]}):
        assert with_range(f"pairs://{text}", other) == f"pairs://{text}"


def test_a_scene_of_which_exif_turns_a_part_alone_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    text, visible, _ = write_pairs(tmp_path, 2)
    exif = pillow.Exif()
    exif[0x112] = 3
    for path in visible.iterdir():
        pillow.open(path).save(path, exif=exif)
    with caplog.at_level(logging.WARNING):
        frames(f"pairs://{text}")
    assert caplog.text.count("is turned by EXIF, and others of its scene are not") == 1


# --- a bundle's modalities ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", ["visible={rgb},depth={ir}", "visible={rgb},thermal={ir},depth={ir}"]
)
def test_other_modalities_than_the_bundles_are_refused_with_the_fix(
    tmp_path: Path, names: str
) -> None:
    write_pairs(tmp_path, 1)
    uri = "pairs://" + names.format(rgb=tmp_path / "rgb", ir=tmp_path / "ir")
    with pytest.raises(SourceError, match=r"trained on visible \(3 channels\)") as caught:
        open_source(uri, modalities=RGBT)
    assert caught.value.fix == "Write --modalities visible=DIR,thermal=DIR."


def test_one_folder_is_not_enough_for_a_bundle_of_two_modalities(tmp_path: Path) -> None:
    _, visible, _ = write_pairs(tmp_path, 1)
    with pytest.raises(SourceError, match=r"visible \(3 channels\) and thermal \(1\)") as caught:
        open_source(str(visible), channels=4, modalities=RGBT)
    assert caught.value.fix.endswith("--modalities visible=DIR,thermal=DIR.")


def test_pairs_are_refused_for_a_bundle_of_one_camera(tmp_path: Path) -> None:
    text, _, _ = write_pairs(tmp_path, 1)
    with pytest.raises(SourceError, match="was trained on one"):
        open_source(f"pairs://{text}")


def test_the_test_scene_goes_with_any_number_of_channels() -> None:
    for channels in (1, 2, 4, 6):
        with open_source("test://64x48", channels=channels) as source:
            image = next(iter(source)).image
        assert image.shape == (48, 64, channels)
        # The scene's own colours come first.
        assert channels < 3 or (image[..., :3] == draw_scene(0, 64, 48)).all()


def test_the_manifest_keeps_modalities_and_refuses_what_does_not_add_up(v1_bundle: Path) -> None:
    manifest = Bundle.open(v1_bundle).manifest
    assert manifest.modalities == ()
    four = replace(manifest, geometry=replace(manifest.geometry, channels=4), modalities=RGBT)
    assert Manifest.from_json(four.to_json()).modalities == RGBT
    for wrong in (RGBT[:1], (RGBT[0], RGBT[0]), (RGBT[0], Modality("thermal", 3))):
        with pytest.raises(BundleError, match="do not make the frame's channels"):
            Manifest.from_json(replace(four, modalities=wrong).to_json())


def test_modalities_are_described_as_people_write() -> None:
    assert describe(RGBT) == "visible (3 channels) and thermal (1)"
    assert describe((Modality("thermal", 1),)) == "thermal (1 channel)"


# --- frames of any number of channels -------------------------------------------------------------


@pytest.mark.parametrize("channels", [2, 4, 5, 9])
@pytest.mark.parametrize("size", [(20, 30), (100, 140)])
def test_frames_of_any_number_of_channels_are_resized_channel_by_channel(
    channels: int, size: tuple[int, int]
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, channels), np.uint8)
    whole = fit_frame(frame, Geometry(size[1], size[0], channels))
    for channel in range(channels):
        alone = fit_frame(frame[..., [channel]], Geometry(size[1], size[0], 1))
        assert np.abs(whole[..., channel].astype(int) - alone[..., 0]).max() <= 1


def test_the_first_of_two_channels_is_what_is_drawn() -> None:
    frame = np.zeros((4, 5, 2), np.uint8)
    frame[..., 0] = 7
    assert (as_bgr(frame) == 7).all()
    assert as_bgr(frame).shape == (4, 5, 3)
