"""Pairing, reading of masks, the protocol of `aeseg eval`, and what it refuses."""

from __future__ import annotations

import json
import logging
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from aeseg_edge.calibration.score.evaluation import (
    EvaluationReport,
    Pair,
    evaluate,
    find_pairs,
    format_table,
    read_classes,
    read_mask,
)
from aeseg_edge.errors import EvaluationError, MissingDependency

CLASSES = ("sky", "road", "car")
VOID_VALUE = 11
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_png(path: Path, image: np.ndarray) -> None:
    assert cv2.imwrite(str(path), image)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_index_png(path: Path, ids: np.ndarray, *, bits: int, palette: bool) -> None:
    """Write ids with `bits` bits a pixel, with a palette or as greyscale, by the PNG format."""
    rows = b""
    for row in ids.astype(np.uint8):
        unpacked = np.unpackbits(row[:, None], axis=1)[:, 8 - bits :]
        rows += b"\0" + np.packbits(unpacked.ravel()).tobytes()
    height, width = ids.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)
    colours = np.random.default_rng(1).integers(0, 256, 3 * 2**bits).astype(np.uint8).tobytes()
    path.write_bytes(
        PNG_SIGNATURE
        + chunk(b"IHDR", header)
        + (chunk(b"PLTE", colours) + chunk(b"tRNS", b"\x80") if palette else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def dataset(folder: Path, masks: dict[str, np.ndarray], ids: dict[str, np.ndarray]) -> list[Pair]:
    """Write frames whose blue channel holds the cluster ids that `predict` will return."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for stem, mask in masks.items():
        frame = np.zeros((*mask.shape, 3), np.uint8)
        frame[..., 0] = ids[stem]
        write_png(folder / "images" / f"{stem}.png", frame)
        write_png(folder / "masks" / f"{stem}.png", mask)
    return list(find_pairs(folder / "images", folder / "masks"))


def predict(frame: np.ndarray) -> np.ndarray:
    return frame[..., 0].astype(np.int64)


def u8(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.uint8)


@pytest.fixture
def scored(tmp_path: Path) -> list[Pair]:
    """Two frames: clusters 3, 2, 1 are sky, road, car; cluster 0 is a stray; one pixel void."""
    masks = {
        "a": u8([0, 0, 0, 0], [1, 1, 1, VOID_VALUE]),
        "b": u8([1, 1, 2, 2], [1, 1, 2, 2]),
    }
    ids = {
        "a": u8([3, 3, 3, 0], [2, 2, 2, 1]),
        "b": u8([2, 2, 1, 1], [2, 2, 1, 2]),
    }
    return dataset(tmp_path / "test", masks, ids)


def test_the_report_has_the_documented_keys_and_percent(scored: list[Pair]) -> None:
    report = evaluate(predict, scored, CLASSES, clusters=4, ignore=VOID_VALUE)
    assert report.hungarian_map == (-1, 2, 1, 0)
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text) == {
        "frames": 2,
        "clusters": 4,
        "classes": ["sky", "road", "car"],
        "hungarian": {
            "miou": round((75 + 87.5 + 75) / 3, 2),
            "pixel_accuracy": round(100 * 13 / 15, 2),
            "iou": [75.0, 87.5, 75.0],
        },
    }


def test_matching_happens_once_over_the_whole_set_not_per_frame(tmp_path: Path) -> None:
    masks = {"a": u8([0, 0, 0]), "b": u8([1, 1, 1])}
    ids = {"a": u8([0, 0, 0]), "b": u8([0, 0, 0])}  # one cluster everywhere
    pairs = dataset(tmp_path, masks, ids)
    report = evaluate(predict, pairs, ("x", "y"), clusters=2, ignore=None)
    assert report.hungarian.pixel_accuracy == 0.5


def test_the_majority_map_comes_from_the_fit_frames_alone(
    scored: list[Pair], tmp_path: Path
) -> None:
    fit = dataset(
        tmp_path / "fit",
        {"f": u8([0, 0, 0, 0, 0], [1, 2, 2, VOID_VALUE, VOID_VALUE])},
        {"f": u8([3, 3, 3, 0, 0], [2, 2, 2, 1, 1])},
    )
    report = evaluate(predict, scored, CLASSES, clusters=4, ignore=VOID_VALUE, fit_pairs=fit)
    assert report.majority_map == (0, -1, 2, 0)
    figures = report.to_json()["majority"]
    assert figures["iou"] == [100.0, 0.0, round(100 * 1 / 11, 2)]


def test_fit_every_takes_every_nth_fit_frame_from_the_first(tmp_path: Path) -> None:
    test = dataset(tmp_path / "test", {"t": u8([0, 1])}, {"t": u8([0, 1])})
    stems = "abcde"
    fit = dataset(
        tmp_path / "fit",
        {stem: u8([0, 1] if stem in "ae" else [1, 0]) for stem in stems},
        {stem: u8([0, 1]) for stem in stems},
    )
    seen: list[tuple[int, int]] = []

    def run(every: int) -> EvaluationReport:
        seen.clear()
        return evaluate(
            predict,
            test,
            ("x", "y"),
            clusters=2,
            ignore=None,
            fit_pairs=fit,
            fit_every=every,
            progress=lambda done, total: seen.append((done, total)),
        )

    assert run(4).majority_map == (0, 1)  # frames a and e
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert run(1).majority_map == (1, 0)  # b, c and d outvote them


def test_every_fit_frame_counts_unless_told_otherwise(tmp_path: Path) -> None:
    test = dataset(tmp_path / "test", {"t": u8([0, 1])}, {"t": u8([0, 1])})
    fit = dataset(
        tmp_path / "fit",
        {"a": u8([0, 0]), "b": u8([1, 1])},
        {"a": u8([0, 0]), "b": u8([1, 1])},
    )
    report = evaluate(predict, test, ("x", "y"), clusters=2, ignore=None, fit_pairs=fit)
    assert report.majority_map == (0, 1)


def test_pixels_without_a_cluster_count_as_wrong_beside_unmatched_ones(tmp_path: Path) -> None:
    pairs = dataset(tmp_path, {"a": u8([0] * 10)}, {"a": u8([0, 0, 0, 0, 0, 1, 1, 9, 9, 9])})

    def with_void(frame: np.ndarray) -> np.ndarray:
        ids = predict(frame)
        return np.where(ids == 9, -1, ids)

    report = evaluate(with_void, pairs, ("x",), clusters=2, ignore=None)
    assert report.hungarian.iou == (0.5,)
    assert report.hungarian.pixel_accuracy == 0.5


def test_fitting_on_scored_frames_is_warned_about(
    scored: list[Pair], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        evaluate(predict, scored, CLASSES, clusters=4, ignore=VOID_VALUE, fit_pairs=scored[:1])
    assert "1 of 2 scored frames are also fit frames" in caplog.text


def test_named_scores_use_the_bundles_names_without_regard_to_case(scored: list[Pair]) -> None:
    names = {0: "Sky ", 1: "bush", 2: "ROAD", 3: "sky"}
    report = evaluate(predict, scored, CLASSES, clusters=4, ignore=VOID_VALUE, named=names)
    assert report.to_json()["named"]["iou"] == [100.0, 87.5, 0.0]


def test_named_scores_are_absent_where_no_name_is_a_class(scored: list[Pair]) -> None:
    names = {cluster: f"class {cluster}" for cluster in range(4)}
    report = evaluate(predict, scored, CLASSES, clusters=4, ignore=VOID_VALUE, named=names)
    assert "named" not in report.to_json()


def test_more_than_256_clusters_are_counted_apart(tmp_path: Path) -> None:
    pairs = dataset(tmp_path, {"a": u8([0, 0, 1, 1])}, {"a": u8([0, 0, 44, 44])})
    report = evaluate(
        lambda frame: predict(frame) + 256, pairs, ("x", "y"), clusters=301, ignore=None
    )
    assert (report.hungarian_map[256], report.hungarian_map[300]) == (0, 1)
    assert report.hungarian.miou == 1.0


def test_the_table_shows_every_class_and_figure(scored: list[Pair]) -> None:
    report = evaluate(
        predict,
        scored,
        (*CLASSES, "boat"),
        clusters=4,
        ignore=VOID_VALUE,
        fit_pairs=scored,
        named={3: "sky"},
    )
    lines = format_table(report).splitlines()
    assert lines[0] == "frames 2, clusters 4, classes 4"
    assert lines[1].split() == ["hungarian", "majority", "named"]
    assert lines[2].split() == ["sky", "75.00", "100.00", "75.00"]
    assert lines[5].split() == ["boat", "-", "-", "-"]
    assert set(lines[6]) == {"-"}
    assert {len(line) for line in lines[1:]} == {len(lines[6])}
    assert lines[-1].split()[:2] == ["pixel", "accuracy"]


@pytest.mark.parametrize("palette", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_index_pngs_of_every_depth_give_the_stored_ids(
    tmp_path: Path, bits: int, palette: bool
) -> None:
    ids = np.random.default_rng(bits).integers(0, 2**bits, (5, 13))
    write_index_png(tmp_path / "m.png", ids, bits=bits, palette=palette)
    mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, ids)


def test_a_mask_that_opencv_wrote_gives_its_ids(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.uint8)
    write_png(tmp_path / "m.png", ids)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), ids)


def test_coloured_deep_foreign_and_damaged_masks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"

    def refused(message: str) -> None:
        with pytest.raises(EvaluationError, match=message) as caught:
            read_mask(path)
        assert "m.png" in caught.value.problem
        assert caught.value.fix

    write_png(path, np.zeros((4, 4, 3), np.uint8))
    refused("colours")
    write_png(path, np.zeros((4, 4), np.uint16))
    refused("16 bits")
    path.write_bytes(cv2.imencode(".jpg", np.zeros((4, 4), np.uint8))[1].tobytes())
    refused("not a PNG")
    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    path.write_bytes(
        PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b"")
    )
    refused("cannot be decoded")
    path.unlink()
    refused("cannot be read")


@pytest.mark.parametrize("side", [9_500, 40_000, 2**31 - 1])
def test_a_small_file_that_unpacks_to_far_too_many_pixels_is_refused(
    tmp_path: Path, side: int
) -> None:
    path = tmp_path / "m.png"
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10_000_000))
    path.write_bytes(
        PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    with pytest.raises(EvaluationError, match=r"m\.png .* cannot be decoded"):
        read_mask(path)


def test_without_pillow_a_mask_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "m.png", np.zeros((4, 4), np.uint8))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependency, match="not importable") as caught:
        read_mask(tmp_path / "m.png")
    assert "[calibrate]'" in caught.value.fix


def test_what_comes_after_a_whole_mask_does_not_matter(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(3, 4)
    write_index_png(tmp_path / "m.png", ids, bits=4, palette=True)
    with (tmp_path / "m.png").open("ab") as file:
        file.write(b"\0appended by a camera")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), ids)


def test_a_mask_without_any_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    for data in (b"", PNG_SIGNATURE, PNG_SIGNATURE + chunk(b"IEND", b"")):
        path.write_bytes(data)
        with pytest.raises(EvaluationError, match=r"m\.png is (not a PNG|damaged)"):
            read_mask(path)


def test_a_mask_cut_or_flipped_anywhere_never_gives_other_ids(tmp_path: Path) -> None:
    ids = np.random.default_rng(3).integers(0, 12, (6, 7))
    path = tmp_path / "m.png"
    write_index_png(path, ids, bits=4, palette=True)
    whole = path.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    for damaged in [*flipped, *(whole[:i] for i in range(len(whole)))]:
        path.write_bytes(damaged)
        with pytest.raises(EvaluationError):
            read_mask(path)


def test_a_mask_value_that_is_no_class_is_named_with_its_file(scored: list[Pair]) -> None:
    with pytest.raises(EvaluationError, match=r"a\.png holds the value 11") as caught:
        evaluate(predict, scored, CLASSES, clusters=4, ignore=None)
    assert "--ignore 11" in caught.value.fix
    with pytest.raises(
        EvaluationError, match=r"value 2, but there are 2 classes \(0\.\.1\)"
    ) as caught:
        evaluate(predict, scored, CLASSES[:2], clusters=4, ignore=VOID_VALUE)
    assert "11 is ignored" in caught.value.problem


def test_a_mask_of_another_size_is_named(scored: list[Pair]) -> None:
    write_png(scored[1].mask, np.zeros((2, 5), np.uint8))
    with pytest.raises(EvaluationError, match=r"b\.png is 4x2, its mask .*b\.png is 5x2"):
        evaluate(predict, scored, CLASSES, clusters=4, ignore=VOID_VALUE)


def test_an_unreadable_image_is_named(scored: list[Pair]) -> None:
    scored[0].image.write_text("no picture")
    with pytest.raises(EvaluationError, match=r"a\.png cannot be read as an image"):
        evaluate(predict, scored, CLASSES, clusters=4, ignore=VOID_VALUE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda frame: predict(frame)[:1], "not integers"),
        (lambda frame: predict(frame).astype(np.float32), "float32"),
        (lambda frame: predict(frame) + 1, "cluster 4, but there are 4"),
    ],
)
def test_a_wrong_prediction_is_named(scored: list[Pair], wrong: object, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(wrong, scored, CLASSES, clusters=4, ignore=VOID_VALUE)  # type: ignore[arg-type]


def test_nothing_to_score_is_refused(scored: list[Pair]) -> None:
    with pytest.raises(EvaluationError, match="no frames to score"):
        evaluate(predict, [], CLASSES, clusters=4, ignore=VOID_VALUE)
    with pytest.raises(EvaluationError, match="no frames to fit"):
        evaluate(predict, scored, CLASSES, clusters=4, ignore=VOID_VALUE, fit_pairs=[])
    with pytest.raises(EvaluationError, match="fit-every is 0"):
        evaluate(predict, scored, CLASSES, clusters=4, ignore=None, fit_pairs=scored, fit_every=0)
    for pair in scored:
        write_png(pair.mask, np.full((2, 4), VOID_VALUE, np.uint8))
    with pytest.raises(EvaluationError, match="ignored value 11"):
        evaluate(predict, scored, CLASSES, clusters=4, ignore=VOID_VALUE)


def test_images_and_masks_are_paired_by_stem_whatever_the_image_format(tmp_path: Path) -> None:
    pairs = dataset(tmp_path, {"b": u8([0]), "a": u8([0])}, {"b": u8([0]), "a": u8([0])})
    write_png(pairs[0].image.with_suffix(".jpg"), np.zeros((1, 1, 3), np.uint8))
    pairs[0].image.unlink()
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    found = find_pairs(tmp_path / "images", tmp_path / "masks")
    assert [(p.image.name, p.mask.name) for p in found] == [("a.jpg", "a.png"), ("b.png", "b.png")]


def test_files_without_a_partner_are_named(tmp_path: Path) -> None:
    stems = [f"f{i}" for i in range(8)]
    blank = {stem: u8([0]) for stem in stems}
    dataset(tmp_path, blank, blank)
    images, masks = tmp_path / "images", tmp_path / "masks"
    (masks / "f3.png").unlink()
    with pytest.raises(EvaluationError, match=r"^f3\.png: no mask of the same name in"):
        find_pairs(images, masks)
    for stem in stems[:6]:
        (images / f"{stem}.png").unlink()
    with pytest.raises(EvaluationError, match=r"f4\.png, f5\.png: no image"):
        find_pairs(images, masks)
    (images / "f6.png").unlink()
    with pytest.raises(EvaluationError, match=r"f4\.png, f5\.png and 1 more: no image"):
        find_pairs(images, masks)


def test_missing_empty_and_ambiguous_folders_are_refused(tmp_path: Path) -> None:
    dataset(tmp_path, {"a": u8([0])}, {"a": u8([0])})
    images, masks = tmp_path / "images", tmp_path / "masks"
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="is not a folder"):
        find_pairs(tmp_path / "absent", masks)
    with pytest.raises(EvaluationError, match=r"holds no \.png masks"):
        find_pairs(images, tmp_path / "empty")
    write_png(images / "a.bmp", np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(EvaluationError, match=r"a\.bmp and a\.png .* same stem"):
        find_pairs(images, masks)


def test_class_names_are_read_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffsky\r\n road sign \nétang\n\n".encode())
    assert read_classes(path) == ("sky", "road sign", "étang")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sky\n\nroad\n", "line 2 of"),
        (b"sky\nroad\nsky\n", "sky more than once"),
        (b"\n", "names no class"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_class_file_that_would_shift_ids_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        read_classes(path)


def test_what_lies_outside_the_region_counts_nowhere(tmp_path: Path) -> None:
    pairs = dataset(tmp_path, {"a": u8([0, 0, 1, 1, 9])}, {"a": u8([0, 0, 0, 0, 0])})
    right = np.array([[False, False, True, True, True]])

    def run(outside: np.ndarray) -> EvaluationReport:
        return evaluate(
            *(predict, pairs, ("x", "y")), clusters=1, ignore=9, outside=lambda *size: outside
        )

    report = run(right)
    assert report.hungarian.iou == (1.0, None)
    assert report.hungarian.pixel_accuracy == 1.0
    assert report.outside == 0.5  # of the labelled ones: 9 is ignored
    assert report.to_json()["outside_region"] == 50.0
    assert "50.0 % of the labelled pixels lie outside the region" in format_table(report)
    with pytest.raises(EvaluationError, match="or lies outside the region of interest"):
        run(np.ones((1, 5), np.bool_))
