"""Where frames come from, written as URIs or as people type them.

``drive.mp4``, ``file:///data/drive.mp4``, ``photo.jpg``, ``photos/``, ``photos/*.png``,
``0`` (a camera), ``v4l2:///dev/video0``, ``test://640x480@30`` (a moving drawn scene).
"""

from __future__ import annotations

import glob
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError
from aeseg_edge.geometry import import_cv2
from aeseg_edge.io.frame import Frame
from aeseg_edge.io.images import (
    TEXT_SUFFIXES,
    decode_image,
    is_image,
    natural,
    video_backend,
)

_log = logging.getLogger(__name__)

_MAX_CAMERA = 255
_MAX_SIDE = 8192
_WANTED = "Give a video, an image, a folder of images, a glob, a camera number or test://WxH@fps."


class Source(Protocol):
    """Frames, one after another.

    Attributes:
        name: What results are named by.
        fps: Frames a second as the recording or camera states it; None where unknown.
        live: True for cameras: frames that are not taken are gone.
        total: Frames the recording states; None where unknown.
    """

    name: str
    fps: float | None
    live: bool
    total: int | None

    def __iter__(self) -> Iterator[Frame]:
        """Give frames until the end; cameras have none.

        Raises:
            SourceError: If the source is lost before its end. A loop opens a live one again.
        """
        ...

    def close(self) -> None:
        """Release the file or device. Closing twice is fine."""
        ...

    def __enter__(self) -> Source:
        """Return itself."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        ...


class _Closing:
    """What every source here shares: closing at the end of a ``with`` block."""

    def close(self) -> None:
        """Release nothing; sources that hold something say so themselves."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_source(uri: str, *, channels: int = 3) -> Source:
    """Open a source.

    Args:
        uri: See the module's text.
        channels: C of the frames: 1, 3 or 4 (four-channel images only).

    Returns:
        An open source; a video or camera has given its first frame already, so that what
        cannot be read is refused here.

    Raises:
        SourceError: If there is no such thing, or nothing in it can be read.
    """
    scheme, _, rest = uri.partition("://")
    if scheme in _SCHEMES and rest:
        return _SCHEMES[scheme](rest, channels)
    if not uri.strip():
        # As a path it would be the current folder.
        raise SourceError("the source is empty", fix=_WANTED)
    if "://" in uri:
        raise SourceError(f"{uri} has an unknown scheme", fix=_WANTED)
    if re.fullmatch(r"\d+", uri):
        return CameraSource(int(uri), channels)
    return _open_path(uri, channels)


class ImageSource(_Closing):
    """Image files in natural order.

    Files that cannot be read are skipped, named in the log, and counted in ``skipped``.

    Args:
        name: What the user gave.
        paths: The files.
        channels: C of the frames.
    """

    live = False
    fps: float | None = None
    total: int | None = None

    def __init__(self, name: str, paths: Sequence[Path], channels: int) -> None:
        self.name = name
        self.total = len(paths)
        self.skipped: list[str] = []
        self._paths = paths
        self._channels = channels

    def __iter__(self) -> Iterator[Frame]:
        """Read one image after another.

        Raises:
            SourceError: If none of them can be read.
        """
        index = 0
        for path in self._paths:
            try:
                image = decode_image(path.read_bytes(), self._channels)
            except OSError as error:
                image = f"cannot be read ({error.strerror})"
            if isinstance(image, str):
                self.skipped.append(str(path))
                _log.warning("%s is skipped: it %s", path, image)
                continue
            yield Frame(image, index, time.monotonic(), self.name)
            index += 1
        if not index:
            raise SourceError(
                f"none of the {len(self._paths)} images of {self.name} can be read",
                fix="Open one in a viewer; convert them to PNG or JPEG with "
                f"{self._channels} channels.",
            )


class _CaptureSource(_Closing):
    """Frames of an OpenCV capture; the first one is read on opening."""

    def __init__(self, name: str, capture: Any, channels: int) -> None:
        cv2 = import_cv2()
        self.name = name
        self._capture = capture
        self._channels = channels
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps: float | None = rate if 0 < rate < 1000 else None
        good, image = capture.read()
        self._first = image if good else None
        self._first_at = time.monotonic()

    def _frames(self) -> Iterator[tuple[NDArray[np.uint8], float]]:
        if self._first is not None:
            first, self._first = self._first, None
            yield self._convert(first), self._first_at
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

    def close(self) -> None:
        """Release the capture."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class VideoSource(_CaptureSource):
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
            raise SourceError(f"{path} is neither a video nor an image", fix=_WANTED)
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


class CameraSource(_CaptureSource):
    """A camera, through OpenCV.

    Args:
        camera: Number or device path.
        channels: C of the frames, 1 or 3.

    Raises:
        SourceError: If it cannot be opened or gives no frame.
    """

    live = True
    total: int | None = None

    def __init__(self, camera: int | str, channels: int) -> None:
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
        super().__init__(name, capture, channels)
        if self._first is None:
            self.close()
            raise SourceError(f"{name} gives no frame", fix=fix)

    def __iter__(self) -> Iterator[Frame]:
        """Give frames until the camera stops.

        Raises:
            SourceError: If it stops.
        """
        index = 0
        for image, captured in self._frames():
            yield Frame(image, index, captured, self.name)
            index += 1
        if self._capture is not None:
            raise SourceError(
                f"{self.name} stopped after {index} frames", fix="Check its cable and power."
            )


class TestSource(_Closing):
    """A drawn scene that moves: sky, ground, a road, boxes. Endless and repeatable.

    Args:
        width: Columns.
        height: Rows.
        fps: Stated rate; frames are given as fast as they are taken.
        channels: C of the frames.
    """

    __test__ = False
    live = False
    total: int | None = None

    def __init__(self, width: int, height: int, fps: float, channels: int) -> None:
        self.name = f"test://{width}x{height}@{fps:g}"
        self.fps: float | None = fps
        self._size = (width, height)
        self._channels = channels
        self._open = True

    def __iter__(self) -> Iterator[Frame]:
        """Draw frame after frame until closed."""
        index = 0
        while self._open:
            image = draw_scene(index, *self._size)
            if self._channels != 3:
                grey = image.mean(axis=2, keepdims=True).astype(np.uint8)
                image = grey if self._channels == 1 else np.concatenate([image, grey], axis=2)
            timestamp = index / (self.fps or 1.0)
            yield Frame(image, index, time.monotonic(), self.name, timestamp)
            index += 1

    def close(self) -> None:
        """Stop drawing."""
        self._open = False


def draw_scene(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """Draw one frame of the test scene.

    Args:
        index: Frame number; the scene moves with it.
        width: Columns.
        height: Rows.

    Returns:
        uint8 [height, width, 3], BGR.
    """
    y, x = np.ogrid[:height, :width]
    horizon = height // 2 + round(height / 24 * np.sin(index / 20))
    image = np.empty((height, width, 3), np.uint8)
    image[:] = np.array((200, 160, 110), np.uint8)
    image[max(0, horizon) :] = np.array((60, 120, 70), np.uint8)
    centre = width / 2 + width / 8 * np.sin(index / 25)
    depth = np.clip((y - horizon) / max(1, height - horizon), 0, 1)
    road = (np.abs(x - centre) < width * (0.02 + 0.3 * depth)) & (y >= horizon)
    image[road] = (95, 95, 95)
    for number, (color, speed) in enumerate((((30, 30, 190), 3), ((170, 60, 30), -2))):
        left = int((index * speed * width / 480 + number * width / 2) % width)
        top = horizon - height // 12 + number * height // 8
        image[max(0, top) : top + height // 6, left : left + width // 8] = color
    return image


def _open_file(rest: str, channels: int) -> Source:
    """Open a file URI (RFC 8089), or ``file://`` before a relative path."""
    text = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    return _open_path(text if Path(text).exists() else unquote(text), channels)


def _open_path(text: str, channels: int) -> Source:
    path = Path(text)
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.is_file()), key=lambda p: natural(p.name))
        images = [p for p in files if is_image(p)]
        if not images:
            found = f"{len(files)} other files" if files else "nothing"
            raise SourceError(f"the folder {path} has no images, but {found}", fix=_WANTED)
        return ImageSource(text, images, channels)
    if path.is_file():
        if is_image(path):
            return ImageSource(text, [path], channels)
        return VideoSource(path, channels)
    if glob.has_magic(text):
        matches = [Path(name) for name in sorted(glob.glob(text, recursive=True), key=natural)]
        images = [p for p in matches if p.is_file() and is_image(p)]
        if not images:
            raise SourceError(
                f"the pattern {text} matches {len(matches)} files and no image", fix=_WANTED
            )
        return ImageSource(text, images, channels)
    raise SourceError(f"{text} does not exist", fix=_WANTED)


def _open_test(rest: str, channels: int) -> Source:
    match = re.fullmatch(r"(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?", rest)
    width, height, fps = match.groups(default="30") if match else ("0", "0", "0")
    if not (0 < int(width) <= _MAX_SIDE and 0 < int(height) <= _MAX_SIDE and float(fps) > 0):
        raise SourceError(
            f"test://{rest} is not a size and rate",
            fix=f"Write test://640x480@30; sides end at {_MAX_SIDE}.",
        )
    return TestSource(int(width), int(height), float(fps), channels)


_SCHEMES: dict[str, Callable[[str, int], Source]] = {
    "file": _open_file,
    "v4l2": lambda rest, channels: CameraSource(rest.partition("?")[0], channels),
    "test": _open_test,
}
