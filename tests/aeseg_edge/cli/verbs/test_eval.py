"""``aeseg eval``: its keys, and which names are scored."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.cli import main  # noqa: E402

Output = pytest.CaptureFixture[str]


def evaluate(bundle: Path, street: Path, *more: str) -> int:
    where = ["--images", str(street / "images"), "--masks", str(street / "masks")]
    classes = ["--classes", str(street / "classes.txt"), "--ignore", "9"]
    return main(["eval", str(bundle), *where, *classes, "--threads", "1", *more])


def read(captured: Output) -> Any:
    """What is on standard output, all of it, is one JSON text."""
    return json.loads(captured.readouterr().out)


def test_eval_writes_exactly_these_keys(v1_bundle: Path, street: Path, capsys: Output) -> None:
    assert evaluate(v1_bundle, street, "--json", "-") == 0
    report = read(capsys)
    assert set(report) == {"frames", "clusters", "classes", "hungarian"}
    assert (report["frames"], report["clusters"]) == (6, 5)
    assert report["classes"] == ["above", "below"]
    assert set(report["hungarian"]) == {"miou", "pixel_accuracy", "iou"}
    assert len(report["hungarian"]["iou"]) == 2
    assert 0 < report["hungarian"]["miou"] <= report["hungarian"]["pixel_accuracy"] <= 100


@pytest.mark.parametrize("verb", ["eval", "compare"])
def test_a_missing_scipy_is_named_before_any_frame_is_read(
    verb: str, v1_bundle: Path, street: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a frame was segmented")

    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    monkeypatch.setattr("aeseg_edge.segment.segmenter.Segmenter.clusters", never)
    if verb == "eval":
        assert evaluate(v1_bundle, street) == 1
    else:
        assert main(["compare", str(v1_bundle), str(v1_bundle), "no such file.mp4"]) == 1
    err = capsys.readouterr().err
    assert "scipy is not importable" in err
    assert "[calibrate]'" in err
    assert "Traceback" not in err


def test_eval_names_clusters_by_majority_where_there_are_fit_frames(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    fit = ["--fit-images", str(street / "images"), "--fit-masks", str(street / "masks")]
    target = tmp_path / "report.json"
    assert evaluate(v1_bundle, street, *fit, "--fit-every", "2", "--json", str(target)) == 0
    assert "majority" in capsys.readouterr().out
    report = json.loads(target.read_text())
    assert set(report) == {"frames", "clusters", "classes", "hungarian", "majority"}
    # Five clusters share two classes, so nothing is left unmatched; and most are right.
    assert report["majority"]["pixel_accuracy"] > 80
    assert report["majority"]["pixel_accuracy"] > report["hungarian"]["pixel_accuracy"]


def test_eval_scores_the_bundles_own_names_where_they_occur(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "classes.txt").write_text("Class 0\nclass 1\n")
    named = ["--classes", str(tmp_path / "classes.txt")]
    assert evaluate(v1_bundle, street, *named, "--json", "-") == 0
    report = read(capsys)
    assert set(report) == {"frames", "clusters", "classes", "hungarian", "named"}
    assert set(report["named"]) == {"miou", "pixel_accuracy", "iou"}


def test_eval_wants_both_folders_of_fit_frames(
    v1_bundle: Path, street: Path, capsys: Output
) -> None:
    assert evaluate(v1_bundle, street, "--fit-images", str(street / "images")) == 2
    assert "--fit-images and --fit-masks go together" in capsys.readouterr().err


def test_eval_and_name_leave_out_what_lies_outside_the_region(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = np.zeros((64, 96), np.uint8)
    region[32:] = 255  # the lower half, which the masks call below
    monkeypatch.setattr(Bundle, "region", region)
    assert evaluate(v1_bundle, street, "--json", "-") == 0
    report = read(capsys)
    assert report["hungarian"]["iou"][0] is None
    assert report["outside_region"] == 50.0
    output = str(tmp_path / "n.aeseg")
    where = [str(street / "images"), str(street / "masks")]
    classes = ["--classes", str(street / "classes.txt"), "--ignore", "9"]
    assert main(["name", str(v1_bundle), "-o", output, "--from-masks", *where, *classes]) == 0
    assert "above" not in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["eval", "name"])
def test_a_class_file_of_no_known_form_changes_nothing(
    verb: str, v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    path = tmp_path / "b.aeseg"
    path.write_bytes(v1_bundle.read_bytes())
    bad = tmp_path / "classes.txt"
    bad.write_text("class\nabove\nbelow\n")
    where = [str(street / "images"), str(street / "masks")]
    ways = {
        "eval": ["eval", str(path), "--images", where[0], "--masks", where[1]],
        "name": ["name", str(path), "--from-masks", *where],
    }
    assert main([*ways[verb], "--classes", str(bad), "--ignore", "9"]) == 1
    err = capsys.readouterr().err
    assert "line 1 of" in err
    assert "may be a heading" in err
    assert path.read_bytes() == v1_bundle.read_bytes()


def test_a_table_of_classes_with_a_heading_scores_as_plain_names_do(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    assert evaluate(v1_bundle, street, "--json", "-") == 0
    plain = read(capsys)
    table = tmp_path / "class_dict.csv"
    table.write_text("name,r,g,b\nabove,1,2,3\nbelow,4,5,6\n")
    assert evaluate(v1_bundle, street, "--classes", str(table), "--json", "-") == 0
    assert read(capsys) == plain
