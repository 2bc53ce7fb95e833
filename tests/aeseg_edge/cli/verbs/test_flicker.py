"""``aeseg flicker``: what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.bundle.manifest import Modality  # noqa: E402
from aeseg_edge.cli import main  # noqa: E402

Output = pytest.CaptureFixture[str]


def test_flicker_of_what_has_no_end_wants_a_number_of_frames(
    v1_bundle: Path, capsys: Output
) -> None:
    assert main(["flicker", str(v1_bundle), "test://64x48@30"]) == 2
    assert "test://64x48@30 has no end" in capsys.readouterr().err
    assert main(["flicker", str(v1_bundle), "test://64x48@30", "--frames", "2"]) == 0


def test_flicker_takes_frames_of_several_modalities(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    bundle = tmp_path / "grey.aeseg"
    modalities = tuple(Modality(name, 1) for name in "abc")
    Bundle.open(v1_bundle).with_modalities(modalities).write(bundle)
    source = "pairs://" + ",".join(f"{name}:1={street / 'images'}" for name in "abc")
    assert main(["flicker", str(bundle), source]) == 0
    assert "6 frames" in capsys.readouterr().out
