"""``aeseg eval``: its keys, and which names are scored."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

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
    assert "pip install 'aeseg_edge[calibrate]'" in err
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
