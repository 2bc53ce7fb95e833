"""Where results go, written as URIs or as people type them.

``out.mp4`` (or .avi, .mkv), ``out/%06d.png``, ``out/%06d.png?view=labels`` (raw class ids),
``window``, ``null://``.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.draw import VIEWS, render
from aeseg_edge.errors import SinkError
from aeseg_edge.geometry import import_cv2
from aeseg_edge.io.atomic import write_bytes, write_error
from aeseg_edge.io.frame import Frame

if TYPE_CHECKING:
    from aeseg_edge.segmenter import Segmentation

_log = logging.getLogger(__name__)

VIDEO_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
DEFAULT_FPS = 25.0
_WANTED = "Give a video (out.mp4), an image pattern (out/%06d.png), window or null://."


class Sink(Protocol):
    """Takes results, one after another.

    Attributes:
        name: What messages call it.
        closed_by_user: True once somebody closed the window.
    """

    name: str
    closed_by_user: bool

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Take one result.

        Raises:
            SinkError: If it cannot be written.
        """
        ...

    def close(self) -> None:
        """Finish: what was written is whole. Closing twice is fine."""
        ...

    def abort(self) -> None:
        """Give up after an error: nothing half-written stays."""
        ...


class _Base:
    """What the sinks here share."""

    closed_by_user = False

    def close(self) -> None:
        """Finish; nothing to do for most."""

    def abort(self) -> None:
        """Give up; nothing to do for most."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def open_sink(
    uri: str,
    *,
    fps: float | None = None,
    view: str = "overlay",
    alpha: float = 0.5,
    legend: bool = True,
) -> Sink:
    """Open a sink.

    Args:
        uri: See the module's text; ``?view=...`` overrides ``view`` for this sink.
        fps: Rate of video files; 25 when None.
        view: ``overlay``, ``mask`` or ``both``; for image patterns also ``labels``.
        alpha: Strength of the colours, 0..1.
        legend: Draw the classes' names.

    Raises:
        SinkError: If it cannot be opened.
    """
    target, _, query = uri.partition("?")
    options = dict(parse_qsl(query))
    view = options.pop("view", view)
    if options:
        raise SinkError(f"{uri} has unknown options {sorted(options)}", fix="Use ?view=mask.")
    suffix = Path(target).suffix.lower()
    if view not in VIEWS and not (view == "labels" and suffix in IMAGE_TYPES):
        raise SinkError(
            f"the view {view!r} is unknown for {target}",
            fix=f"Use one of {', '.join(VIEWS)}; labels for PNG files.",
        )
    if target == "null://":
        return NullSink()
    if target == "window":
        return WindowSink(view=view, alpha=alpha, legend=legend)
    target = target.removeprefix("file://")
    if "://" in target:
        raise SinkError(f"{uri} has an unknown scheme", fix=_WANTED)
    if suffix in VIDEO_CODECS:
        return VideoSink(
            Path(target), fps=fps or DEFAULT_FPS, view=view, alpha=alpha, legend=legend
        )
    if suffix in IMAGE_TYPES:
        return ImageSink(target, view=view, alpha=alpha, legend=legend)
    raise SinkError(f"{uri} is no sink: {suffix or 'no suffix'} is not known", fix=_WANTED)


class NullSink(_Base):
    """Takes results and drops them: for timing and for counting."""

    name = "null://"

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Do nothing."""


class ImageSink(_Base):
    """One image file a frame; each is whole or not there.

    Args:
        pattern: Path with one ``%d`` or ``%06d``; without one, a single frame is taken.
        view: See ``open_sink``; ``labels`` writes class ids, 255 for void.
        alpha: Strength of the colours.
        legend: Draw the legend.

    Raises:
        SinkError: If the folder cannot be made, or the pattern has two numbers.
    """

    def __init__(self, pattern: str, *, view: str, alpha: float, legend: bool) -> None:
        numbers = re.findall(r"%(?!%)\d*d", pattern)
        if len(numbers) > 1 or "%" in re.sub(r"%(?!%)\d*d", "", pattern):
            raise SinkError(f"{pattern} is not a pattern with one number", fix="Use out/%06d.png.")
        if view == "labels" and Path(pattern).suffix.lower() != ".png":
            raise SinkError(f"{pattern} would lose class ids", fix="Write labels as .png.")
        self.name = pattern
        self._numbered = bool(numbers)
        self._written = 0
        self._options = {"view": view, "alpha": alpha, "legend": legend}
        folder = Path(pattern).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise write_error(folder, problem, error=SinkError) from problem

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Write one image."""
        if self._written and not self._numbered:
            raise SinkError(
                f"{self.name} is one image, and the source has more frames",
                fix="Write out/%06d.png, or stop with --frames 1.",
            )
        path = Path(self.name % frame.index if self._numbered else self.name)
        if self._options["view"] == "labels":
            picture = result.labels
        else:
            picture = render(frame.image, result, **self._options)  # type: ignore[arg-type]
        cv2 = import_cv2()
        done, data = cv2.imencode(path.suffix, picture)
        if not done:
            raise SinkError(f"{path} cannot be encoded", fix="Use .png or .jpg.")
        write_bytes(path, data.tobytes(), error=SinkError)
        self._written += 1


class VideoSink(_Base):
    """A video file, written beside its target and renamed when it is whole.

    Args:
        path: Target; .mp4, .mkv, .mov (MPEG-4) or .avi (MJPEG).
        fps: Frames a second.
        view: See ``open_sink``.
        alpha: Strength of the colours.
        legend: Draw the legend.

    Raises:
        SinkError: If the folder does not exist or cannot be written.
    """

    def __init__(self, path: Path, *, fps: float, view: str, alpha: float, legend: bool) -> None:
        self.name = str(path)
        self._path = path
        self._fps = fps
        self._options = {"view": view, "alpha": alpha, "legend": legend}
        self._writer: Any = None
        self._size: tuple[int, int] | None = None
        self._frames = 0
        try:
            handle, name = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
            )
            os.close(handle)
        except OSError as problem:
            raise write_error(path, problem, error=SinkError) from problem
        self._temporary: Path | None = Path(name)

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Add one frame; the first decides the size of all."""
        picture = render(frame.image, result, **self._options)  # type: ignore[arg-type]
        if self._writer is None:
            self._open(picture)
        size = (picture.shape[1], picture.shape[0])
        if self._size is not None and size != self._size:
            cv2 = import_cv2()
            if self._frames:
                _log.warning(
                    "%s: a frame is %dx%d, the video %dx%d: resized", self.name, *size, *self._size
                )
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(picture)
        self._frames += 1
        if self._frames % 64 == 0:
            self._check_room()

    def close(self) -> None:
        """Finish the file, check that it is whole, and give it its name."""
        if self._temporary is None:
            return
        temporary = self._temporary
        if self._writer is None:
            self.abort()
            _log.warning("%s is not written: there were no frames", self.name)
            return
        self._writer.release()
        self._writer = None
        found = _count_frames(temporary)
        if found < self._frames:
            self.abort()
            raise SinkError(
                f"{self.name} cannot be written whole: {found} of {self._frames} frames are on "
                "the disk",
                fix="The disk is probably full: free some space, or write to another disk.",
            )
        try:
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as problem:
            self.abort()
            raise write_error(self._path, problem, error=SinkError) from problem
        self._temporary = None

    def abort(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _open(self, picture: NDArray[np.uint8]) -> None:
        if self._temporary is None:
            raise SinkError(f"{self.name} is closed", fix="Open it again.")
        cv2 = import_cv2()
        # Encoders of YUV 4:2:0 want even sides.
        height, width = (max(2, side - side % 2) for side in picture.shape[:2])
        codec = VIDEO_CODECS[self._path.suffix.lower()]
        self._writer = cv2.VideoWriter(
            str(self._temporary), cv2.VideoWriter_fourcc(*codec), self._fps, (width, height)
        )
        self._size = (width, height)
        if not self._writer.isOpened():
            raise SinkError(
                f"OpenCV cannot write {self.name} with the codec {codec}",
                fix="Write an .avi, or an image pattern (out/%06d.png).",
            )

    def _check_room(self) -> None:
        """Notice a full disk during the run: OpenCV's writer does not say so."""
        assert self._temporary is not None
        try:
            stats = os.statvfs(self._temporary.parent)
        except OSError as problem:
            raise write_error(self._path, problem, error=SinkError) from problem
        if stats.f_bavail * stats.f_frsize < 1 << 20:
            raise SinkError(
                f"{self.name} cannot be written: the disk is full",
                fix="Free some space, or write to another disk.",
            )


def _count_frames(path: Path) -> int:
    """Frames that can really be read back; packets are not decoded."""
    cv2 = import_cv2()
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        if stated <= 0:
            return 0
        # The index may promise what the disk did not take: look at the last frame.
        capture.set(cv2.CAP_PROP_POS_FRAMES, stated - 1)
        return stated if capture.grab() else stated - 1
    finally:
        capture.release()


class WindowSink(_Base):
    """A window on the desktop; q or Escape closes it.

    Args:
        view: See ``open_sink``.
        alpha: Strength of the colours.
        legend: Draw the legend.

    Raises:
        SinkError: If there is no display, or OpenCV has no windows.
    """

    name = "window"

    def __init__(self, *, view: str, alpha: float, legend: bool) -> None:
        alternatives = "Write a video (-o out.mp4) or images (-o out/%06d.png) instead."
        shown = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if sys.platform.startswith("linux") and not shown:
            raise SinkError("there is no display to open a window on", fix=alternatives)
        cv2 = import_cv2()
        try:
            cv2.namedWindow("aeseg", cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise SinkError(
                "this OpenCV is built without windows",
                fix="pip uninstall opencv-python-headless; pip install opencv-python. "
                + alternatives,
            ) from error
        self._options = {"view": view, "alpha": alpha, "legend": legend}

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Show one frame."""
        cv2 = import_cv2()
        cv2.imshow("aeseg", render(frame.image, result, **self._options))  # type: ignore[arg-type]
        if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
            self.closed_by_user = True

    def close(self) -> None:
        """Close the window."""
        import_cv2().destroyWindow("aeseg")

    def abort(self) -> None:
        """Close the window."""
        self.close()
