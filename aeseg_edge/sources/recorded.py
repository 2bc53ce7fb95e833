"""Recorded sources: image files, and any of them at its own rate."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Closing, Frame, Source
from aeseg_edge.sources.images import decode_image

_log = logging.getLogger(__name__)


class ImageSource(Closing):
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


class RealTime(Closing):
    """A recording given at its own rate, as if it came from a camera.

    Args:
        source: Recorded, with a rate; closed with this one.
        clock: Monotonic seconds.
        wait: Waits for some seconds, or until closed.

    Raises:
        SourceError: If the source has no rate.
    """

    live = False

    def __init__(
        self,
        source: Source,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        if source.fps is None:
            source.close()
            raise SourceError(
                f"{source.name} has no rate to be played at", fix="Leave --realtime out."
            )
        self.name = source.name
        self.fps: float | None = source.fps
        self.total = source.total
        self._source = source
        self._clock = clock
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait

    def __iter__(self) -> Iterator[Frame]:
        """Give each frame when it is due; ``captured`` is that moment."""
        rate = self.fps or 1.0
        started = self._clock()
        for frame in self._source:
            due = started + frame.index / rate
            # A reader that fell behind is not made to catch up by a burst of old frames: they
            # are due already, and the newest wins.
            if (early := due - self._clock()) > 0:
                self._wait(early)
            if self._closed.is_set():
                return
            yield replace(frame, captured=due)

    def interrupt(self) -> None:
        """Wake up whoever waits for the next frame."""
        self._closed.set()

    def close(self) -> None:
        """Close the recording."""
        self._closed.set()
        self._source.close()
