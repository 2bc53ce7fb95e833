"""Labelled scenes of several modalities: each has a mask of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.manifest import Manifest, Modality
from aeseg_edge.calibration.footage.scenes import LabelledScenes
from aeseg_edge.errors import EvaluationError

cv2 = pytest.importorskip("cv2")


@pytest.fixture
def manifest(v1_bundle: Path) -> Manifest:
    plain = Bundle.open(v1_bundle).manifest
    return replace(plain, modalities=(Modality("visible", 3), Modality("thermal", 1)))


def write(folder: Path, *names: str) -> str:
    (folder / "m").mkdir()
    for name in names:
        for kind in ("rgb", "ir"):
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = np.linspace(7200, 8800, 48).reshape(6, 8).astype(np.uint16)
            cv2.imwrite(str(path), grey if kind == "ir" else np.zeros((6, 8, 3), np.uint8))
        cv2.imwrite(str(folder / "m" / f"{Path(name).name}.png"), np.zeros((6, 8), np.uint8))
    return f"pairs://visible={folder / 'rgb'},thermal={folder / 'ir'}"


def test_scenes_are_read_by_the_range_of_the_bundles_footage(
    manifest: Manifest, tmp_path: Path
) -> None:
    uri = write(tmp_path, "a", "b")
    kept = {"footage": ["visible=x,thermal=y?range=7200:8800"]}
    scenes = LabelledScenes(uri, tmp_path / "m", replace(manifest, provenance=kept))
    assert [pair.mask.name for pair in scenes.pairs] == ["a.png", "b.png"]
    assert len(np.unique(scenes.read(scenes.pairs[0].image)[..., 3])) == 48


def test_scenes_of_one_name_in_two_folders_do_not_share_a_mask(
    manifest: Manifest, tmp_path: Path
) -> None:
    uri = write(tmp_path, "day/1", "night/1")
    with pytest.raises(EvaluationError, match="would have one mask"):
        LabelledScenes(uri, tmp_path / "m", manifest)
