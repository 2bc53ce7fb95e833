"""What OpenCV's VideoCapture opens: video files, cameras, streams."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Closing, Frame
from aeseg_edge.sources.images import TEXT_SUFFIXES, video_backend
from aeseg_edge.support.require import import_cv2

_log = logging.getLogger(__name__)

_MAX_CAMERA = 255


class CaptureSource(Closing):
    """Frames of an OpenCV capture; the first one is read on opening.

    Raises:
        SourceError: If its frames have other channels: opening it again would not help.
    """

    def __init__(self, name: str, capture: Any, channels: int) -> None:
        cv2 = import_cv2()
        self.name = name
        self._capture = capture
        self._channels = channels
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps: float | None = rate if 0 < rate < 1000 else None
        try:
            good, image = capture.read()
            self._first_at = time.monotonic()
            self._first = self._convert(image) if good else None
        except BaseException:
            self.close()
            raise

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

    def _live_frames(self, fix: str) -> Iterator[Frame]:
        index = 0
        for image, captured in self._frames():
            yield Frame(image, index, captured, self.name)
            index += 1
        if self._capture is not None:
            raise SourceError(f"{self.name} stopped after {index} frames", fix=fix)

    def close(self) -> None:
        """Release the capture."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class VideoSource(CaptureSource):
    """A video file, decoded as it is read and never held in memory.

    Args:
        path: The file.
        channels: C of the frames, 1 or 3.

    Raises:
        SourceError: If it is no video, or its first frame cannot be decoded.
    """

    live = False

    def __init__(self, path: Path, channels: int) -> None:
        cv2 = import_cv2()
        if path.suffix.lower() in TEXT_SUFFIXES:
            raise SourceError(
                f"{path} is neither a video nor an image",
                fix="Give a video, an image, a folder of images or a camera.",
            )
        capture = cv2.VideoCapture(str(path), video_backend())
        if not capture.isOpened():
            raise SourceError(
                f"{path} cannot be opened as a video",
                fix="Play it to see whether it is whole; convert it to MP4 (H.264) if it is.",
            )
        super().__init__(str(path), capture, channels)
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.total: int | None = count if 0 < count < 1 << 40 else None
        if self._first is None:
            self.close()
            raise SourceError(
                f"{path} has no frame that can be decoded",
                fix="It is damaged or cut short: record or copy it again.",
            )

    def __iter__(self) -> Iterator[Frame]:
        """Decode to the end; warn once where the end comes early."""
        index = 0
        for image, captured in self._frames():
            timestamp = index / self.fps if self.fps else None
            yield Frame(image, index, captured, self.name, timestamp)
            index += 1
        if self.total is not None and self._capture is not None and index < 0.98 * self.total - 1:
            _log.warning(
                "%s states %d frames, and %d could be read: it is damaged or cut short",
                self.name,
                self.total,
                index,
            )


class StreamSource(CaptureSource):
    """A stream that OpenCV opens through FFmpeg or GStreamer.

    Args:
        name: Of the source, without a password.
        address: URI or pipeline.
        how: ``cv2.CAP_FFMPEG`` or ``cv2.CAP_GSTREAMER``.
        channels: C of the frames, 1 or 3.

    Raises:
        SourceError: If it cannot be opened or gives no frame.
    """

    live = True
    total: int | None = None

    def __init__(self, name: str, address: str, how: int, channels: int) -> None:
        cv2 = import_cv2()
        # A read that hangs in FFmpeg cannot be ended from outside, but ends by itself.
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 10_000]
        capture = cv2.VideoCapture(address, how, limits if how == cv2.CAP_FFMPEG else [])
        fix = "Play the address or pipeline with another program, such as ffplay or gst-launch-1.0."
        if not capture.isOpened():
            raise SourceError(f"{name} cannot be opened", fix=fix)
        super().__init__(name, capture, channels)
        if self._first is None:
            self.close()
            raise SourceError(f"{name} gives no frame", fix=fix)

    def __iter__(self) -> Iterator[Frame]:
        """Give frames until the stream stops.

        Raises:
            SourceError: If it stops.
        """
        return self._live_frames("Check the camera and the network.")


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


class CameraSource(CaptureSource):
    """A camera, through OpenCV.

    Args:
        camera: Number or device path.
        channels: C of the frames, 1 or 3.
        mode: What to ask of it.

    Raises:
        SourceError: If it cannot be opened or gives no frame.
    """

    live = True
    total: int | None = None

    def __init__(self, camera: int | str, channels: int, mode: CameraMode | None = None) -> None:
        cv2 = import_cv2()
        name = f"camera {camera}"
        device = camera if isinstance(camera, str) else f"/dev/video{camera}"
        fix = (
            f"Check that {device} exists (ls /dev/video*), that you may read it (group video), "
            "and that no other program holds it."
        )
        # By number OpenCV picks the system's camera interface; a path it would try as a video.
        how = cv2.CAP_V4L2 if isinstance(camera, str) else cv2.CAP_ANY
        # Numbers beyond a C int are an error of another kind in OpenCV.
        known = isinstance(camera, str) or camera <= _MAX_CAMERA
        capture = cv2.VideoCapture(camera, how) if known else None
        if capture is None or not capture.isOpened():
            raise SourceError(f"{name} cannot be opened", fix=fix)
        if mode is not None:
            _ask(name, capture, mode)
        super().__init__(name, capture, channels)
        if self._first is None:
            self.close()
            raise SourceError(f"{name} gives no frame", fix=fix)

    def __iter__(self) -> Iterator[Frame]:
        """Give frames until the camera stops.

        Raises:
            SourceError: If it stops.
        """
        return self._live_frames("Check its cable and power.")


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
