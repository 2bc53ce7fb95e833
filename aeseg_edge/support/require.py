"""What calibration needs beside numpy, asked for when it is used."""

from __future__ import annotations

import importlib
from typing import Any

from aeseg_edge.errors import MissingDependency


def import_scipy(part: str) -> Any:
    """Import a part of scipy, or say how to install it.

    Args:
        part: Such as ``optimize``.

    Returns:
        The module.

    Raises:
        MissingDependency: If scipy is not installed.
    """
    try:
        return importlib.import_module(f"scipy.{part}")
    except ImportError as error:
        raise MissingDependency(
            f"scipy is not importable ({error})",
            fix="Install it: pip install 'aeseg_edge[calibrate]'.",
        ) from error


def import_cv2() -> Any:
    """Import OpenCV when it is first needed.

    Raises:
        MissingDependency: If it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingDependency(
            f"OpenCV is not importable ({error})",
            fix="Install it: pip install 'aeseg_edge[cpu]' (on a Jetson: apt install "
            "python3-opencv, which has GStreamer).",
        ) from error
    return cv2
