"""The region of interest of a training: laid over the input, and kept beside the checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import Geometry, fit_region
from aeseg_edge.errors import TrainingError
from aeseg_edge.sources.images import read_grey
from aeseg_edge.support.files import write_bytes
from aeseg_edge.support.require import import_cv2

REGION = "region.png"


def frame_region(region: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Lay a region of interest over the graph's input, as a frame is laid.

    Args:
        region: uint8 [h, w] with the shape of the footage; above 127 is inside.
        geometry: The graph's sizes. Bars of ``letterbox`` are outside.

    Returns:
        uint8 [height, width]: 255 inside, 0 outside.
    """
    top, left, rows, columns = geometry.box(*region.shape[:2])
    inside = np.zeros((geometry.height, geometry.width), np.uint8)
    picture = np.where(fit_region(region, rows, columns), 0, 255)
    inside[top : top + rows, left : left + columns] = picture
    return inside


def save_region(folder: Path, region: NDArray[np.uint8] | None) -> None:
    """Keep a region of interest for later exports; forget an older one.

    Args:
        folder: ``NAME.train``.
        region: uint8 [h, w], or None.

    Raises:
        TrainingError: If it cannot be written.
    """
    path = folder / REGION
    if region is None:
        path.unlink(missing_ok=True)
        return
    _, data = import_cv2().imencode(".png", region)
    write_bytes(path, data.tobytes(), error=TrainingError)


def load_region(folder: Path) -> NDArray[np.uint8] | None:
    """Read the region of interest that a training was given.

    Args:
        folder: ``NAME.train``.

    Returns:
        uint8 [h, w], or None where there was none.

    Raises:
        TrainingError: If the file is damaged.
    """
    path = folder / REGION
    if not path.exists():
        return None
    region = read_grey(path)
    if region is None:
        raise TrainingError(f"{path} is damaged", fix="Give the mask again: --roi MASK.")
    return region
