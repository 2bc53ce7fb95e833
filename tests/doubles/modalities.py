"""Folders of pictures that belong together, for tests of several modalities."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from aeseg_edge.sources.scene import draw_scene


def write_pairs(root: Path, count: int = 10) -> tuple[str, Path, Path]:
    """Write a drawn road in colour, and a warm spot that moves where nothing is to be seen.

    Returns:
        What --modalities takes, and both folders.
    """
    visible, thermal = root / "rgb", root / "ir"
    for folder in (visible, thermal):
        folder.mkdir(parents=True)
    width, height = 96, 64
    for index in range(count):
        cv2.imwrite(str(visible / f"s{index}.png"), draw_scene(9 * index, width, height))
        heat = np.full((height, width), 40, np.uint8)
        left = 5 + 6 * index % (width - 30)
        heat[height // 4 : height // 2, left : left + 20] = 230
        cv2.imwrite(str(thermal / f"s{index}.png"), heat)
    return f"visible={visible},thermal={thermal}", visible, thermal
