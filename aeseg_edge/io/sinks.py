"""Where results go, written as URIs or as people type them.

``out.mp4`` (or .avi, .mkv), ``out/%06d.png``, ``out/%06d.png?view=labels`` (raw class ids),
``window``, ``null://``.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.draw import VIEWS, fit, render
from aeseg_edge.errors import SinkError
from aeseg_edge.geometry import import_cv2
from aeseg_edge.io.atomic import move_into_place, temporary_beside, write_bytes, write_error
from aeseg_edge.io.frame import Frame
from aeseg_edge.io.images import video_backend

if TYPE_CHECKING:
    from aeseg_edge.counters import LoopCounters
    from aeseg_edge.segmenter import Segmentation

_log = logging.getLogger(__name__)

VIDEO_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
DEFAULT_FPS = 25.0
_NUMBER = re.compile(r"%\d*d")
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
        """Give up after an error: nothing half-written stays. After ``close`` it does nothing."""
        ...


@runtime_checkable
class WatchesLoop(Protocol):
    """A sink that shows how the loop is doing."""

    def watch(self, counters: Callable[[], LoopCounters]) -> None:
        """Keep the function that gives a snapshot; called once, before the first frame.

        Args:
            counters: Cheap, and callable from any thread until the sink is closed.
        """
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
        # Ctrl-C ends a run early; what was written until then is wanted.
        if kind is None or not issubclass(kind, Exception):
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
        numbers = _NUMBER.findall(pattern)
        # One that only makes sense in the folder's name would need a folder a frame.
        if len(numbers) > 1 or "%" in str(Path(pattern).parent) + _NUMBER.sub("", pattern):
            raise SinkError(
                f"{pattern} is not a file name with one number", fix="Use out/%06d.png."
            )
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
        try:
            done, data = cv2.imencode(path.suffix, picture)
        except cv2.error:
            # OpenCV 4 raises where OpenCV 5 says False; its text is about its own source code.
            done = False
        if not done:
            raise SinkError(
                f"{path} cannot be encoded at {picture.shape[1]}x{picture.shape[0]}",
                fix="Write .png.",
            )
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
        self._first: tuple[int, int] | None = None
        self._drawn = (0, 0)
        self._resized = False
        self._frames = 0
        self._temporary: Path | None = temporary_beside(path)

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Add one frame; the first decides the size of all."""
        if self._temporary is None:
            raise SinkError(f"{self.name} is closed", fix="Open it again.")
        height, width = frame.image.shape[:2]
        if self._first is None:
            self._first = height, width
        if self._first != (height, width) and not self._resized:
            self._resized = True
            _log.warning(
                "%s: frame %d is %dx%d, the first was %dx%d: such frames are fitted into it",
                self.name,
                frame.index,
                width,
                height,
                *self._first[::-1],
            )
        picture = _even(render(frame.image, result, size=self._first, **self._options))  # type: ignore[arg-type]
        if self._writer is None:
            self._writer = self._open(picture.shape[1], picture.shape[0])
            self._drawn = picture.shape[:2]
        # A class renamed during the run makes the legend wider, and OpenCV's writer leaves
        # out, without a word, what is not of its size.
        picture = fit(picture, *self._drawn)
        self._writer.write(picture)
        self._frames += 1
        if self._frames % 64 == 0:
            self._check_room()

    def close(self) -> None:
        """Finish the file, check that it is whole, and give it its name."""
        if self._temporary is None:
            return
        if self._writer is None:
            self.abort()
            _log.warning("%s is not written: there were no frames", self.name)
            return
        try:
            self._writer.release()
            found = _count_frames(self._temporary)
            if found < self._frames:
                raise SinkError(
                    f"{self.name} cannot be written whole: {found} of {self._frames} frames are "
                    "on the disk",
                    fix="The disk is probably full: free some space, or write to another disk.",
                )
            move_into_place(self._temporary, self._path)
        finally:
            # Nothing is left to remove where the file has got its name.
            self.abort()

    def abort(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _open(self, width: int, height: int) -> Any:
        cv2 = import_cv2()
        codec = VIDEO_CODECS[self._path.suffix.lower()]
        writer = cv2.VideoWriter(
            str(self._temporary), cv2.VideoWriter_fourcc(*codec), self._fps, (width, height)
        )
        if not writer.isOpened():
            self._check_room()
            raise SinkError(
                f"OpenCV cannot write {self.name} with the codec {codec} "
                f"at {width}x{height} and {self._fps:g} fps",
                fix="Check that the disk has room; else write an .avi, or an image pattern "
                "(out/%06d.png).",
            )
        return writer

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


def _even(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row and column of odd sides: encoders of YUV 4:2:0 want even ones."""
    down, right = picture.shape[0] % 2, picture.shape[1] % 2
    if not down and not right:
        return picture
    cv2 = import_cv2()
    padded = cv2.copyMakeBorder(picture, 0, down, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(padded, np.uint8)


def _count_frames(path: Path) -> int:
    """Frames that a player will find, 0 where it cannot open the file.

    MP4 and AVI files that lost their end have no index, or state no frames. Matroska has
    the number in its head and keeps it, so the last frame is looked for.
    """
    cv2 = import_cv2()
    capture = cv2.VideoCapture(str(path), video_backend())
    try:
        stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        if stated <= 0:
            return 0
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
        if not _display_answers(os.environ.get("DISPLAY", "")):
            raise SinkError(
                f"the display {os.environ['DISPLAY']} does not answer", fix=alternatives
            )
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
        self._open = True

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Show one frame."""
        if self.closed_by_user:
            return
        cv2 = import_cv2()
        cv2.imshow("aeseg", render(frame.image, result, **self._options))  # type: ignore[arg-type]
        key = cv2.waitKey(1) & 0xFF
        # Below 1: somebody clicked the window away; imshow would bring it back.
        gone = cv2.getWindowProperty("aeseg", cv2.WND_PROP_VISIBLE) < 1
        self.closed_by_user = gone or key in (ord("q"), 27)
        if gone:
            self._open = False

    def close(self) -> None:
        """Close the window."""
        if self._open:
            self._open = False
            import_cv2().destroyWindow("aeseg")

    def abort(self) -> None:
        """Close the window."""
        self.close()


def _display_answers(display: str) -> bool:
    """Knock at an X server (``[host]:number[.screen]``, X(7)): Qt aborts the process at a dead one.

    Names of another form are taken on trust.
    """
    match = re.fullmatch(r"(?:unix)?([^:/]*):(\d+)(?:\.\d+)?", display)
    if match is None:
        return True
    host, number = match[1], int(match[2])
    if host:
        try:
            socket.create_connection((host, 6000 + number), timeout=2).close()
        except (OSError, OverflowError):
            return False
        return True
    path = f"/tmp/.X11-unix/X{number}"
    for address in (path, "\0" + path):
        with socket.socket(socket.AF_UNIX) as knock:
            if knock.connect_ex(address) == 0:
                return True
    return False
