"""What ``aeseg info`` says of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.cli import main  # noqa: E402

Output = pytest.CaptureFixture[str]


def read(captured: Output) -> Any:
    """What is on standard output, all of it, is one JSON text."""
    return json.loads(captured.readouterr().out)


def test_info_says_what_is_in_a_bundle(v1_bundle: Path, capsys: Output) -> None:
    assert main(["info", str(v1_bundle)]) == 0
    out = capsys.readouterr().out
    assert "96x64, 3 channels, stretch" in out
    assert "5 clusters" in out
    assert "int8  onnxruntime" in out
    assert "class 4" in out


def test_info_as_json_is_the_manifest(v1_bundle: Path, tmp_path: Path, capsys: Output) -> None:
    assert main(["info", str(v1_bundle), "--json", "-"]) == 0
    manifest = read(capsys)
    assert manifest["geometry"]["width"] == 96
    assert manifest["clusters"] == 5
    assert main(["info", str(v1_bundle), "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text()) == manifest
    assert "96x64" in capsys.readouterr().out
