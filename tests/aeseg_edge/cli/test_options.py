"""Options that would do nothing are refused, or said where a service may always give them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.cli import main

EVAL = "eval {bundle} --images x --masks x --classes x"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("calibrate {bundle} x -o y.aeseg --unpaired skip", "--unpaired does nothing without"),
        ("train x -o y.aeseg --unpaired skip", "--unpaired does nothing without --modalities"),
        (EVAL + " --unpaired skip", "--unpaired does nothing without --modalities"),
        (EVAL + " --fit-every 2", "--fit-every does nothing without --fit-images"),
        ("compare {bundle} {bundle} x --rows 3", "--rows does nothing without --sheet"),
        ("name {bundle} 0=a --sheet-frames 9", "--sheet-frames does nothing without --sheet"),
        ("bench {bundle} --rounds 3", "--rounds does nothing without --against or --split"),
    ],
)
def test_an_option_that_does_nothing_is_refused(
    command: str, says: str, v1_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.format(bundle=v1_bundle).split()) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--view both --alpha 0.2", "--view and --alpha do nothing here: no output shows"),
        ("--no-legend -o json:{out}", "--no-legend does nothing here: no output shows a picture"),
        ("--token abc", "--token does nothing here: no output is a live page"),
        ("--stall 3", "--stall does nothing here: no source is live"),
        ("--view both -o {out}.avi", None),
        ("--view both -o null://", None),
        ("--stall 3 --realtime", None),
    ],
)
def test_a_run_says_which_options_do_nothing(
    options: str,
    says: str | None,
    v1_bundle: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    more = options.format(out=tmp_path / "out").split()
    with caplog.at_level(logging.WARNING):
        assert main(["run", "test://64x48", "-b", str(v1_bundle), "--frames", "1", *more]) == 0
    if says is None:
        assert "nothing here" not in caplog.text
    else:
        assert says in caplog.text
