"""Video files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import Asked, Sink
from aeseg_edge.sinks.pace import Pace
from aeseg_edge.sinks.spool import (
    Spool,
    can_spool,
    cannot_encode,
    not_whole,
    open_writer,
    tell_of_leftovers,
)
from aeseg_edge.sources.base import Frame
from aeseg_edge.sources.images import video_backend
from aeseg_edge.support.files import move_into_place, temporary_beside, write_error
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import check_name
from aeseg_edge.view.draw import even, fit

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation
    from aeseg_edge.sinks.counters import LoopCounters


_log = logging.getLogger(__name__)

_CODECS = {".avi": "MJPG", ".webm": "VP80"}
_SMALLEST_VP8 = 6
"""Below, FFmpeg writes packets that it does not read."""


class VideoSink(Sink):
    """A video file, written beside its target and renamed when it is whole.

    The target is .mp4, .mkv, .mov (MPEG-4), .avi (MJPEG) or .webm (VP8); what was written before
    a kill is in a hidden file beside it, of a .webm not all. Raises SinkError if the folder does
    not exist or cannot be written.
    """

    backlog = 16

    def __init__(self, asked: Asked) -> None:
        self._path = path = Path(asked.target)
        self.name = str(path)
        self._codec = _CODECS.get(path.suffix.lower(), "mp4v")
        self._draw = asked.draw
        self._pace = Pace(self.name, asked.fps)
        self._spool: Spool | None = None
        self._writer: Any = None
        self._first: tuple[int, int] | None = None
        self._last: NDArray[np.uint8] | None = None
        self._resized = False
        self._frames = 0
        # What OpenCV is given is the file beside the one that a link points to.
        check_name(os.path.realpath(path), error=SinkError)
        self._temporary: Path | None = temporary_beside(path)
        tell_of_leftovers(Path(os.path.realpath(path)))

    def watch(self, counters: Callable[[], LoopCounters]) -> None:
        """Keep what says which sources are cameras."""
        self._pace.watch(counters)

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Add one frame, as often as it lasts; the first decides the size of all."""
        if self._temporary is None:
            raise SinkError(f"{self.name} is closed", fix="Open it again.")
        repeats = self._pace.repeats(frame)
        if repeats is None:
            return
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
        picture = even(self._draw(frame.image, result, size=self._first))
        if self._last is None:
            self._open(picture.shape[1], picture.shape[0])
        else:
            # A class renamed during the run makes the legend wider, and OpenCV's writer leaves
            # out, without a word, what is not of its size.
            picture = fit(picture, *self._last.shape[:2])
            for _ in range(repeats):
                self._encode(self._last)
        self._encode(picture)
        self._last = picture

    def close(self) -> None:
        """Finish the file, check that it is whole, and give it its name."""
        if self._temporary is None:
            return
        if self._last is None:
            self.abort()
            _log.warning("%s is not written: there were no frames", self.name)
            return
        try:
            if self._spool is not None:
                self._spool.finish(self._temporary)
            else:
                self._writer.release()
            found = _count_frames(self._temporary)
            if found < self._frames and self._spool is not None:
                raise self._spool.keep(self._path)
            if found < self._frames:
                raise not_whole(self.name, found, self._frames)
            move_into_place(self._temporary, self._path)
            self._pace.report()
        finally:
            # Nothing is left to remove where the file has got its name.
            self.abort()

    def abort(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        if self._spool is not None:
            self._spool.remove()
            self._spool = None
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _open(self, width: int, height: int) -> None:
        assert self._temporary is not None
        fps = _mpeg4_rate(self._pace.fps) if self._codec == "mp4v" else self._pace.fps
        if self._codec == "VP80" and min(width, height) < _SMALLEST_VP8:
            raise cannot_encode(self.name, self._codec, fps, (width, height))
        if can_spool(self._codec):
            self._spool = Spool(self._temporary, self.name, self._codec, fps, (width, height))
            return
        self._writer = open_writer(self._temporary, self._codec, fps, (width, height))
        if not self._writer.isOpened():
            self._check_room()
            raise cannot_encode(self.name, self._codec, fps, (width, height))

    def _encode(self, picture: NDArray[np.uint8]) -> None:
        self._frames += 1
        if self._spool is not None:
            if self._spool.write(picture):
                self._check_room()
            return
        self._writer.write(picture)
        if self._frames % 64 == 0:
            self._check_room()

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


def _mpeg4_rate(fps: float) -> float:
    """Round a rate to what MPEG-4 has room for.

    OpenCV writes a rate as a fraction over 1, 10, 100 or 1000, whichever comes near enough, and
    MPEG-4 counts time in 16 bits (ISO/IEC 14496-2, vop_time_increment_resolution): as many of
    three decimals as leave its digits below 65536.
    """
    decimals = next((n for n in (3, 2, 1) if fps * 10**n < 0xFFFF), 0)
    return round(fps, decimals)


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
