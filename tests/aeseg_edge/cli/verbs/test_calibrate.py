"""``aeseg calibrate``: the number of clusters, and the names they keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.cli import main  # noqa: E402

Output = pytest.CaptureFixture[str]


def test_a_full_covariance_is_refused_with_the_reason_before_any_footage_is_read(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    command = ["calibrate", str(v1_bundle), "no-such-footage", "-o", str(tmp_path / "a.aeseg")]
    assert main([*command, "--clustering", "gmm", "--covariance", "full"]) == 2
    told = capsys.readouterr().err
    assert "products of two different channels" in told
    assert "tied" in told


def test_calibrate_chooses_the_number_of_clusters_and_writes_the_curve(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    output = tmp_path / "a.aeseg"
    command = ["calibrate", str(v1_bundle), str(street / "images"), "-o", str(output)]
    options = ["--clusters", "auto:2-4", "--restarts", "2", "--threads", "1"]
    assert main([*command, *options, "--balance", "regions"]) == 0
    told = capsys.readouterr().out
    chosen = json.loads((tmp_path / "a.clusters.json").read_text())
    assert [item["clusters"] for item in chosen["candidates"]] == [2, 3, 4]
    assert f"{chosen['chosen']} clusters" in told
    assert "between halves of the footage" in told
    assert f"curve: {tmp_path / 'a.clusters.json'}" in told
    assert main(["info", str(output)]) == 0
    assert "stability between halves of the footage: ARI" in capsys.readouterr().out


def test_calibrate_keeps_the_names_unless_told_otherwise(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    named = tmp_path / "named.aeseg"
    assert main(["name", str(v1_bundle), "0=road", "-o", str(named)]) == 0
    command = ["calibrate", str(named), str(street / "images"), "--restarts", "2"]
    for options, names in (([], True), (["--names-from", "none"], False)):
        output = tmp_path / "out.aeseg"
        capsys.readouterr()
        assert main([*command, "-o", str(output), "--threads", "1", *options]) == 0
        assert ("clusters keep their names" in capsys.readouterr().out) == names
        calibration = Bundle.open(output).manifest.training["calibration"]
        assert ("names" in calibration) == names
    missing = ["--names-from", str(tmp_path / "gone.aeseg")]
    assert main([*command, "-o", str(output), *missing]) == 1
    assert "gone.aeseg: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["auto:9-4", "auto:4", "some", "0"])
def test_a_range_of_clusters_that_makes_no_sense_is_refused(
    v1_bundle: Path, tmp_path: Path, capsys: Output, text: str
) -> None:
    command = ["calibrate", str(v1_bundle), "no-such-footage", "-o", str(tmp_path / "a.aeseg")]
    try:
        code = main([*command, "--clusters", text])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2
    assert "auto:4-40" in capsys.readouterr().err
