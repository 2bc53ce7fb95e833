"""Labelled frames for the verbs that read masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.sources.scene import draw_scene


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labelled frames: images/, masks/ (0 above, 1 below, 9 ignored), classes.txt."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("street")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(6):
        mask = np.zeros((80, 120), np.uint8)
        mask[40:] = 1
        mask[:, :5] = 9
        cv2.imwrite(str(folder / "images" / f"{index}.png"), draw_scene(9 * index, 120, 80))
        cv2.imwrite(str(folder / "masks" / f"{index}.png"), mask)
    (folder / "classes.txt").write_text("above\nbelow\n")
    return folder
