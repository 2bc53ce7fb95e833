"""``aeseg name --from-masks``: labelled frames name a bundle, through the deployed graph."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.cli import main
from aeseg_edge.segment.segmenter import Segmenter

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

Output = pytest.CaptureFixture[str]
IGNORED = 9


@pytest.fixture
def street(v1_bundle: Path, tmp_path: Path) -> Path:
    """A bundle, and frames whose masks say: even clusters are ``even``, odd ones ``odd``."""
    path = tmp_path / "street.aeseg"
    shutil.copy(v1_bundle, path)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    random = np.random.default_rng(0)
    with Segmenter.load(path, precision="fp32", backend="onnxruntime", threads=1) as segmenter:
        for index in range(4):
            coarse = random.integers(0, 256, (8, 12, 3), np.uint8)
            frame = cv2.resize(coarse, (96, 64), interpolation=cv2.INTER_CUBIC)
            mask = (segmenter.clusters(frame) % 2).astype(np.uint8)
            mask[:8] = IGNORED
            cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), frame)
            cv2.imwrite(str(tmp_path / "masks" / f"{index}.png"), mask)
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    return path


def command(street: Path, *more: str) -> list[str]:
    folder = street.parent
    return [
        *("name", str(street), "--from-masks", str(folder / "images"), str(folder / "masks")),
        *("--classes", str(folder / "classes.txt"), "--ignore", str(IGNORED), *more),
    ]


def test_label_maps_equal_the_masks_afterwards(street: Path) -> None:
    before = Bundle.open(street)
    assert main(command(street)) == 0
    after = Bundle.open(street)
    assert after.graphs == before.graphs
    assert {c.id: c.name for c in after.codebook.classes}.items() >= {0: "even", 1: "odd"}.items()
    assert after.manifest.training["labels"]["frames"] == 4
    with Segmenter.load(street, precision="fp32", backend="onnxruntime", threads=1) as segmenter:
        for index in range(4):
            frame = cv2.imread(str(street.parent / "images" / f"{index}.png"))
            mask = cv2.imread(str(street.parent / "masks" / f"{index}.png"), cv2.IMREAD_GRAYSCALE)
            labels = segmenter(frame).labels
            np.testing.assert_array_equal(labels[mask != IGNORED], mask[mask != IGNORED])


def test_the_table_and_the_json_say_what_each_cluster_became(street: Path, capsys: Output) -> None:
    out = street.with_name("named.aeseg")
    assert main(command(street, "--frames", "2", "-o", str(out), "--json", "-")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == 2
    assert len(report["clusters"]) == Bundle.open(street).manifest.clusters
    for row in report["clusters"]:
        if row["pixels"]:
            assert row["class"] == ("even", "odd")[row["cluster"] % 2]
            assert row["purity"] == 1.0
    assert sum(row["share"] for row in report["clusters"]) == pytest.approx(1, abs=1e-4)
    assert main(command(street)) == 0
    assert "purity" in capsys.readouterr().out


def test_edits_by_hand_come_after_the_masks(street: Path) -> None:
    arguments = command(street)
    assert main([*arguments[:2], "even=flat", *arguments[2:]]) == 0
    assert Bundle.open(street).codebook.class_of(0).name == "flat"  # type: ignore[union-attr]


def test_pixels_outside_the_region_of_interest_do_not_count(street: Path) -> None:
    whole = Bundle.open(street)
    region = np.zeros((whole.manifest.geometry.height, whole.manifest.geometry.width), np.uint8)
    region[32:] = 255
    limited = street.with_name("region.aeseg")
    Bundle.build(whole.manifest, whole.codebook, whole.graphs, region=region).write(limited)
    report = limited.with_suffix(".json")
    arguments = command(street, "--json", str(report))
    arguments[1] = str(limited)
    assert main(arguments) == 0
    rows = json.loads(report.read_text())["clusters"]
    assert sum(row["pixels"] for row in rows) == 4 * 32 * 96


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (["0=road", "--frames", "2"], 2, "does nothing without --from-masks"),
        (["--from-masks", "images", "masks"], 2, "needs the names of the classes"),
        (["--from-masks", "images", "masks", "--classes", "classes.txt"], 1, "holds the value 9"),
        (["--from-masks", "images", "x", "--classes", "classes.txt"], 1, "x is not a folder"),
        (
            ["--from-masks", "images", "masks", "--classes", "none.txt", "--ignore", "9"],
            1,
            "cannot be read",
        ),
    ],
)
def test_a_mistake_changes_nothing(
    street: Path,
    change: list[str],
    code: int,
    says: str,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(street.parent)
    before = street.read_bytes()
    assert main(["name", str(street), *change]) == code
    assert says in capsys.readouterr().err
    assert street.read_bytes() == before


def test_a_linear_codebook_takes_the_clusters_place_and_runs_as_any_other(
    street: Path, capsys: Output
) -> None:
    before = Bundle.open(street)
    out = street.with_name("linear.aeseg")
    more = ("--fit", "linear", "--frames", "3", "-o", str(out), "--threads", "1", "--json", "-")
    assert main(command(street, *more)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "linear"
    after = Bundle.open(out)
    assert after.manifest.method == after.codebook.method == "linear"
    assert after.graphs == before.graphs
    assert after.codebook.remap.tolist() == [0, 1]
    assert [item.name for item in after.codebook.classes] == ["even", "odd"]
    for entry in after.manifest.entries:
        if entry.graph != after.manifest.entry("fp32", "onnxruntime").graph:
            assert entry.agreement is not None
            assert entry.agreement["frames"] == 1  # the frame that was not fitted on
            key = f"{entry.precision}/{entry.backend}"
            assert entry.agreement["labels_equal"] == report["agreement"][key]["labels_equal"]
    equal = []
    with Segmenter.load(out, precision="fp32", backend="onnxruntime", threads=1) as segmenter:
        for index in range(4):
            frame = cv2.imread(str(street.parent / "images" / f"{index}.png"))
            mask = cv2.imread(str(street.parent / "masks" / f"{index}.png"), cv2.IMREAD_GRAYSCALE)
            kept = mask != IGNORED
            equal.append((segmenter(frame).labels[kept] == mask[kept]).mean())
            share = max((mask[kept] == value).mean() for value in (0, 1))
            equal[-1] -= share
    # Better than the commoner class everywhere: which clusters are odd is no straight line.
    assert np.mean(equal) > 0.1


def test_a_linear_codebook_for_graphs_without_squares_has_none(
    street: Path, capsys: Output
) -> None:
    onnx = pytest.importorskip("onnx")
    from aeseg_edge.calibration.graphs.deployed import attach_head, detach_head

    old = Bundle.open(street)
    spec = replace(old.manifest.spec, squares=False)
    graphs = {
        entry.graph: attach_head(
            detach_head(onnx.load_from_string(old.graph(*entry.key))), spec
        ).SerializeToString()
        for entry in old.manifest.entries
    }
    Bundle.build(
        replace(old.manifest, squares=False, preview=None, region=None), old.codebook, graphs
    ).write(street)
    out = street.with_name("linear.aeseg")
    assert main(command(street, "--fit", "linear", "-o", str(out), "--threads", "1")) == 0
    after = Bundle.open(out)
    assert after.manifest.method == "linear"
    assert after.graphs == graphs
    assert not after.codebook.squares


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--fit", "linear", "--unseen", "void"), "--unseen does nothing"),
        (("--min-agreement", "0.9"), "without --fit linear"),
    ],
)
def test_options_that_do_nothing_are_refused(
    street: Path, more: tuple[str, ...], says: str, capsys: Output
) -> None:
    assert main(command(street, *more)) == 2
    assert says in capsys.readouterr().err
