"""Cameras and streams that OpenCV's VideoCapture opens."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Absent, Frame, Source
from aeseg_edge.sources.decoding import Decoder, to_channels
from aeseg_edge.support.require import import_cv2

_log = logging.getLogger(__name__)

_MAX_CAMERA = 255
MAX_SIDE = 8192


class CaptureSource(Source):
    """Frames of a camera or stream, decoded as they are read; the first one is read on opening.

    Args:
        name: Of the source, without a password.
        capture: Open; released with the source, and where its first frame is refused.
        channels: C of the frames, 1 or 3.
        fix: Advice where there is no frame.
        lost: Advice where it stops.
        ffmpeg: It is FFmpeg that decodes.
    """

    live = True

    def __init__(
        self,
        name: str,
        capture: Any,
        channels: int,
        *,
        fix: str,
        lost: str = "Check the camera and the network.",
        ffmpeg: bool = False,
    ) -> None:
        self.name = name
        self._channels = channels
        self._lost = lost
        self._decoder: Decoder | None = Decoder(name, capture, recorded=False, ffmpeg=ffmpeg)
        self.fps = self._decoder.fps
        try:
            self._first = self._next()
            if self._first is None:
                raise Absent(f"{name} gives no frame", fix=fix)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        """Give frames until it stops: a SourceError, unless it was closed."""
        index = 0
        frame, self._first = self._first or self._next(), None
        while frame is not None:
            yield Frame(frame[0], index, frame[1], self.name)
            index += 1
            frame = self._next()
        if self._decoder is not None:
            raise SourceError(f"{self.name} stopped after {index} frames", fix=self._lost)

    def close(self) -> None:
        """Release the capture."""
        if self._decoder is not None:
            self._decoder.release()
            self._decoder = None

    def _next(self) -> tuple[NDArray[np.uint8], float] | None:
        image = None if self._decoder is None else self._decoder.read()
        if image is None:
            return None
        return to_channels(self.name, image, self._channels), time.monotonic()


def open_stream(name: str, address: str, how: int, channels: int) -> CaptureSource:
    """Open a stream through FFmpeg or GStreamer.

    Args:
        name: Of the source, without a password.
        address: URI or pipeline.
        how: ``cv2.CAP_FFMPEG`` or ``cv2.CAP_GSTREAMER``.
        channels: C of the frames, 1 or 3.
    """
    cv2 = import_cv2()
    # A read that hangs in FFmpeg cannot be ended from outside, but ends by itself.
    ffmpeg = how == cv2.CAP_FFMPEG
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 10_000]
    capture = cv2.VideoCapture(address, how, limits if ffmpeg else [])
    fix = "Play the address or pipeline with another program, such as ffplay or gst-launch-1.0."
    if not capture.isOpened():
        raise Absent(f"{name} cannot be opened", fix=fix)
    return CaptureSource(name, capture, channels, fix=fix, ffmpeg=ffmpeg)


@dataclass(frozen=True)
class CameraMode:
    """What a camera is asked for; it may choose otherwise, and that is logged.

    Attributes:
        size: Columns and rows.
        fps: Frames a second.
        format: Four characters of V4L2, such as MJPG or YUYV.
    """

    size: tuple[int, int] | None = None
    fps: float | None = None
    format: str | None = None


def read_options(uri: str, known: tuple[str, ...]) -> dict[str, str]:
    """Read ``?key=value&...``, and refuse keys that nobody would look at."""
    found = dict(parse_qsl(uri.partition("?")[2], keep_blank_values=True))
    if unknown := sorted(set(found) - set(known)):
        raise SourceError(
            f"{uri} has unknown options {unknown}", fix=f"The options are {', '.join(known)}."
        )
    return found


def read_mode(uri: str, more: str) -> CameraMode:
    """Read ``?size=1280x720&fps=30&format=MJPG``; ``more`` is the option beside size and rate."""
    options = read_options(uri, ("size", "fps", more))
    size = re.fullmatch(r"(\d+)x(\d+)", options.get("size", "1x1"))
    rate = re.fullmatch(r"\d+(\.\d+)?", options.get("fps", "1"))
    wide, high = (int(size[1]), int(size[2])) if size else (0, 0)
    if not (0 < wide <= MAX_SIDE and 0 < high <= MAX_SIDE and rate and float(rate[0]) > 0):
        raise SourceError(
            f"{uri} asks for no size or rate of a camera", fix="Write ?size=1280x720&fps=30."
        )
    form = options.get("format")
    if form is not None and re.fullmatch(r"[A-Za-z0-9]{4}", form) is None:
        raise SourceError(
            f"{uri} asks for the format {form!r}", fix="Write four characters: MJPG or YUYV."
        )
    return CameraMode(
        size=(wide, high) if "size" in options else None,
        fps=float(options["fps"]) if "fps" in options else None,
        format=form,
    )


def open_camera(uri: str, channels: int) -> CaptureSource:
    """Open a camera: ``0?size=1280x720``, ``v4l2:///dev/video0`` or that path alone."""
    cv2 = import_cv2()
    mode = read_mode(uri, "format")
    device = uri.removeprefix("v4l2://").partition("?")[0]
    by_number = device.isdecimal()
    name, path = f"camera {device}", f"/dev/video{device}" if by_number else device
    fix = (
        f"Check that {path} exists (ls /dev/video*), that you may read it (group video), "
        "and that no other program holds it."
    )
    # By number OpenCV picks the system's camera interface; a path it would try as a video.
    # Numbers beyond a C int are an error of another kind in OpenCV.
    capture = None
    if not by_number:
        capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
    elif int(device) <= _MAX_CAMERA:
        capture = cv2.VideoCapture(int(device), cv2.CAP_ANY)
    if capture is None or not capture.isOpened():
        raise Absent(f"{name} cannot be opened", fix=fix)
    _ask(name, capture, mode)
    lost = "Check its cable and power."
    return CaptureSource(name, capture, channels, fix=fix, lost=lost)


def _ask(name: str, capture: Any, mode: CameraMode) -> None:
    """Set a camera's mode, and say what it chose instead."""
    cv2 = import_cv2()
    # The format goes first: it decides which sizes and rates there are.
    if mode.format is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*mode.format))
    wanted: list[tuple[str, int, float]] = []
    if mode.size is not None:
        wanted += [
            ("width", cv2.CAP_PROP_FRAME_WIDTH, mode.size[0]),
            ("height", cv2.CAP_PROP_FRAME_HEIGHT, mode.size[1]),
        ]
    if mode.fps is not None:
        wanted.append(("rate", cv2.CAP_PROP_FPS, mode.fps))
    for _, number, value in wanted:
        capture.set(number, value)
    for what, number, value in wanted:
        chosen = float(capture.get(number))
        if chosen > 0 and abs(chosen - value) > 0.5:
            _log.warning("%s: asked for %s %g, it gives %g", name, what, value, chosen)
