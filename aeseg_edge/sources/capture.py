"""What OpenCV's VideoCapture opens: video files, cameras, streams."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Frame, Source
from aeseg_edge.sources.images import video_backend
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import check_name

_log = logging.getLogger(__name__)

_MAX_CAMERA = 255
MAX_SIDE = 8192


class CaptureSource(Source):
    """Frames of an OpenCV capture, decoded as they are read; the first one is read on opening.

    Args:
        name: Of the source, without a password.
        capture: Open; released with the source, and where its first frame is refused.
        channels: C of the frames, 1 or 3.
        live: The end of the frames is a lost source; else it is the end.
        no_frame: What is said where there is no frame, and ``fix`` the advice then.
        lost: Advice where a live source stops.
    """

    def __init__(
        self,
        name: str,
        capture: Any,
        channels: int,
        *,
        live: bool,
        no_frame: str,
        fix: str,
        lost: str = "Check the camera and the network.",
    ) -> None:
        cv2 = import_cv2()
        self.name = name
        self.live = live
        self._capture = capture
        self._channels = channels
        self._lost = lost
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps = rate if 0 < rate < 1000 else None
        if not live:
            self.total = _stated(capture)
        try:
            good, image = capture.read()
            self._first_at = time.monotonic()
            self._first = self._convert(image) if good else None
            if self._first is None:
                raise SourceError(f"{name} {no_frame}", fix=fix)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        """Give frames to the end; of a recording, warn once where that comes early."""
        index = 0
        for image, captured in self._frames():
            timestamp = index / self.fps if self.fps and not self.live else None
            yield Frame(image, index, captured, self.name, timestamp)
            index += 1
        if self._capture is None:
            return
        if self.live:
            raise SourceError(f"{self.name} stopped after {index} frames", fix=self._lost)
        if self.total is not None and index < 0.98 * self.total - 1:
            _log.warning(
                "%s states %d frames, and %d could be read: it is damaged or cut short",
                self.name,
                self.total,
                index,
            )

    def close(self) -> None:
        """Release the capture."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _frames(self) -> Iterator[tuple[NDArray[np.uint8], float]]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first, self._first_at
        while self._capture is not None:
            good, image = self._capture.read()
            if not good:
                return
            yield self._convert(image), time.monotonic()

    def _convert(self, image: Any) -> NDArray[np.uint8]:
        if image.ndim == 2:
            image = image[..., None]
        if image.shape[2] == self._channels:
            return np.asarray(image, np.uint8)
        cv2 = import_cv2()
        if (image.shape[2], self._channels) == (3, 1):
            return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None], np.uint8)
        raise SourceError(
            f"{self.name} has {image.shape[2]} channels, the bundle wants {self._channels}",
            fix="Use a bundle that was trained on such footage.",
        )


def open_video(path: Path, channels: int) -> CaptureSource:
    """Open a video file as frames of 1 or 3 channels."""
    check_name(path, error=SourceError)
    capture = import_cv2().VideoCapture(str(path), video_backend())
    if not capture.isOpened():
        raise SourceError(
            f"{path} cannot be opened as a video",
            fix="Play it to see whether it is whole; convert it to MP4 (H.264) if it is.",
        )
    return CaptureSource(
        str(path),
        capture,
        channels,
        live=False,
        no_frame="has no frame that can be decoded",
        fix="It is damaged or cut short: record or copy it again.",
    )


def count_frames(path: Path) -> int | None:
    """Read how many frames a video states, without decoding any; None where it does not say."""
    check_name(path, error=SourceError)
    capture = import_cv2().VideoCapture(str(path), video_backend())
    try:
        return _stated(capture) if capture.isOpened() else 0
    finally:
        capture.release()


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
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 10_000]
    capture = cv2.VideoCapture(address, how, limits if how == cv2.CAP_FFMPEG else [])
    fix = "Play the address or pipeline with another program, such as ffplay or gst-launch-1.0."
    if not capture.isOpened():
        raise SourceError(f"{name} cannot be opened", fix=fix)
    return CaptureSource(name, capture, channels, live=True, no_frame="gives no frame", fix=fix)


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
    """Open a camera: ``0?size=1280x720`` or ``v4l2:///dev/video0``; see ``open_source``."""
    cv2 = import_cv2()
    mode = read_mode(uri, "format")
    device = uri.removeprefix("v4l2://").partition("?")[0]
    by_number = not uri.startswith("v4l2://")
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
        raise SourceError(f"{name} cannot be opened", fix=fix)
    _ask(name, capture, mode)
    lost = "Check its cable and power."
    return CaptureSource(
        name, capture, channels, live=True, no_frame="gives no frame", fix=fix, lost=lost
    )


def _stated(capture: Any) -> int | None:
    count = int(capture.get(import_cv2().CAP_PROP_FRAME_COUNT))
    return count if 0 < count < 1 << 40 else None


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
