"""Pictures into a GStreamer pipeline: hardware encoders, RTSP servers, displays without X."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import Asked, Sink
from aeseg_edge.sinks.pace import Pace
from aeseg_edge.sources.base import Frame
from aeseg_edge.sources.gstreamer import INSTALL, LAUNCH, Child, has_launch, opencv_has_gstreamer
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import check_name, without_password
from aeseg_edge.view.draw import even, fit

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation
    from aeseg_edge.sinks.counters import LoopCounters

_APPSRC = re.compile(r"^\s*appsrc\b[^!]*!\s*")
_FLUSH = 10.0


class GstSink(Sink):
    """A pipeline that starts at appsrc, in OpenCV or in a gst-launch-1.0 child.

    Raises SinkError if it does not start at appsrc, or nothing here can run it.
    """

    def __init__(self, asked: Asked) -> None:
        pipeline = asked.target
        start = _APPSRC.match(pipeline)
        if start is None:
            raise SinkError(
                "the pipeline of gst:// does not start at appsrc",
                fix="Write gst://appsrc ! videoconvert ! x264enc ! mp4mux ! filesink ...",
            )
        check_name(pipeline, error=SinkError)
        self._in_opencv = opencv_has_gstreamer()
        if not self._in_opencv and not has_launch():
            raise SinkError(
                f"gst:// needs GStreamer: this OpenCV is built without it and {LAUNCH} is not "
                "installed",
                fix=INSTALL,
            )
        try:
            self._words = shlex.split(pipeline[start.end() :])
        except ValueError as error:
            problem = f"the pipeline of gst:// has an open quote ({error})"
            raise SinkError(problem, fix="Close it.") from error
        self.name = without_password(f"gst://{pipeline}")
        self._pipeline = pipeline
        self._pace = Pace(self.name, asked.fps)
        self._draw = asked.draw
        self._first: tuple[int, int] | None = None
        self._last: NDArray[np.uint8] | None = None
        self._writer: Any = None
        self._child: Child | None = None
        self._closed = False

    def watch(self, counters: Callable[[], LoopCounters]) -> None:
        """Keep what says which sources are cameras."""
        self._pace.watch(counters)

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Pass one picture on, as often as it lasts; the first decides the size of all."""
        if self._closed:
            raise SinkError(f"{self.name} is closed", fix="Open it again.")
        repeats = self._pace.repeats(frame)
        if repeats is None:
            return
        if self._first is None:
            self._first = frame.image.shape[0], frame.image.shape[1]
        picture = even(self._draw(frame.image, result, size=self._first))
        if self._last is None:
            self._open(*picture.shape[:2])
        else:
            picture = fit(picture, *self._last.shape[:2])
            for _ in range(repeats):
                self._push(self._last)
        self._push(picture)
        self._last = picture

    def close(self) -> None:
        """Send the end of the stream, and wait until the pipeline has written everything."""
        if self._closed:
            return
        self._closed = True
        self._pace.report()
        if self._writer is not None:
            self._writer.release()
        if self._child is not None:
            self._end_input()
            status = self._child.end(_FLUSH)
            if status != 0:
                raise self._failure()

    def abort(self) -> None:
        """End the pipeline as it is."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            self._writer.release()
        if self._child is not None:
            self._child.process.kill()
            self._end_input()
            self._child.end()

    def interrupt(self) -> bool:
        """End the child, which wakes up whoever writes to it."""
        if self._child is not None:
            self._child.process.kill()
        return True

    def _open(self, height: int, width: int) -> None:
        if self._in_opencv:
            cv2 = import_cv2()
            self._writer = cv2.VideoWriter(
                self._pipeline, cv2.CAP_GSTREAMER, 0, self._pace.fps, (width, height)
            )
            if not self._writer.isOpened():
                raise SinkError(
                    f"{self.name} cannot be opened", fix="Try it with gst-launch-1.0 videotestsrc."
                )
            return
        rate = Fraction(self._pace.fps).limit_denominator(1001)
        head = ["fdsrc", "fd=0", f"blocksize={3 * width * height}", "!", "rawvideoparse"]
        head += ["format=bgr", f"width={width}", f"height={height}"]
        # Without these, rows are taken to be padded to 4 bytes.
        head += [f"plane-strides=<{3 * width}>", "plane-offsets=<0>"]
        head += [f"framerate={rate.numerator}/{rate.denominator}", "!"]
        try:
            self._child = Child([*head, *self._words], stdin=subprocess.PIPE)
        except OSError as error:
            raise SinkError(f"{LAUNCH} cannot be started: {error}", fix=INSTALL) from error

    def _push(self, picture: NDArray[np.uint8]) -> None:
        if self._writer is not None:
            self._writer.write(picture)
            return
        assert self._child is not None
        stream = self._child.process.stdin
        assert stream is not None
        try:
            stream.write(np.ascontiguousarray(picture).data)
            stream.flush()
        except OSError as error:
            self._closed = True
            self._end_input()
            self._child.end()
            raise self._failure() from error

    def _end_input(self) -> None:
        assert self._child is not None
        stream = self._child.process.stdin
        if stream is not None:
            try:
                stream.close()
            except OSError:
                # What was left in the buffer has nowhere to go: the child is at its end.
                return

    def _failure(self) -> SinkError:
        assert self._child is not None
        return SinkError(
            f"the pipeline of {self.name} failed: {self._child.complaint}",
            fix="Try it with gst-launch-1.0 videotestsrc in the place of appsrc.",
        )
