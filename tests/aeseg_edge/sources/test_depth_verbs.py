"""A bundle that was trained on a range reads pictures by it, whichever verb opens them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.cli import main
from aeseg_edge.segment.segmenter import Segmenter
from tests.doubles.pictures import write_image

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")


@pytest.fixture
def thermal(v1_bundle: Path, tmp_path: Path) -> Path:
    """A folder with raw/, masks/, classes.txt and a bundle of such footage."""
    random = np.random.default_rng(0)
    (tmp_path / "classes.txt").write_text("cold\nwarm\n")
    for name in ("raw", "masks"):
        (tmp_path / name).mkdir()
    for index in range(4):
        raw = random.integers(7200, 8801, (64, 96, 3)).astype(np.uint16)
        write_image(tmp_path / "raw" / f"{index}.png", raw)
        write_image(tmp_path / "masks" / f"{index}.png", (raw[..., :1] > 8000).astype(np.uint8))
    bundle = Bundle.open(v1_bundle)
    kept = {**bundle.manifest.provenance, "footage": ["drive?range=7200:8800"]}
    bundle.with_manifest(replace(bundle.manifest, provenance=kept)).write(tmp_path / "b.aeseg")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "run {0}/raw -b {0}/b.aeseg -o null://",
        "eval {0}/b.aeseg --images {0}/raw --masks {0}/masks --classes {0}/classes.txt",
        "name {0}/b.aeseg -o {0}/n.aeseg --from-masks {0}/raw {0}/masks --classes {0}/classes.txt",
        "name {0}/b.aeseg -o {0}/n.aeseg --sheet {0}/sheet.png {0}/raw",
        "compare {0}/b.aeseg {0}/b.aeseg {0}/raw",
        "flicker {0}/b.aeseg {0}/raw",
    ],
)
def test_verbs_read_by_the_range_of_the_footage(
    command: str, thermal: Path, v1_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> bool:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert main(command.format(thermal).split()) == 0
        return "say what is black and what white" in caplog.text

    assert not told()
    (thermal / "b.aeseg").write_bytes(v1_bundle.read_bytes())  # one that knows of no range
    assert told()


def test_a_segmenter_streams_by_the_range_of_the_footage(thermal: Path) -> None:
    with Segmenter.load(thermal / "b.aeseg", threads=1) as segmenter:
        for result in segmenter.stream(thermal / "raw"):
            assert result.frame is not None
            assert np.ptp(result.frame.image) == 255


@pytest.mark.parametrize("again", [False, True])
def test_calibrate_reads_by_it_and_keeps_it(
    again: bool, thermal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = thermal / "c.aeseg"
    source = f"{thermal}/raw" + ("?range=7000:9000" if again else "")
    command = ["calibrate", str(thermal / "b.aeseg"), source, "-o", str(output)]
    with caplog.at_level(logging.WARNING):
        assert main([*command, "--min-agreement", "0", "--restarts", "1"]) == 0
    assert "?range=" not in caplog.text
    kept = Bundle.open(output).manifest.provenance["calibration_footage"]
    assert kept == [f"{thermal}/raw?range={'7000:9000' if again else '7200:8800'}"]
