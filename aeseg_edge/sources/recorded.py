"""Recorded sources: image files, several recordings in turn, and any of them at its own rate."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Frame, Source
from aeseg_edge.sources.depth import split_levels
from aeseg_edge.sources.images import Pictures
from aeseg_edge.sources.paths import Found, file_path, find
from aeseg_edge.sources.video import count_frames, open_video
from aeseg_edge.support.text import as_text

_log = logging.getLogger(__name__)


def open_recording(uri: str, channels: int) -> Source:
    """Open what a path stands for; several parts, such as the videos of a folder, play in turn."""
    found = find(uri)
    for each in found:
        _tell(each.notes)
    several = len(found) > 1
    source = Recordings(uri, found, channels) if several else _open(found[0], channels)
    source.name = split_levels(file_path(uri))[0]
    return source


def _open(found: Found, channels: int) -> Source:
    if found.kind == "video":
        return open_video(Path(found.files[0]), channels)
    pictures = found.pictures()
    _tell(pictures.notes)
    return ImageSource(pictures, channels)


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        _log.warning("%s", as_text(note))


class ImageSource(Source):
    """Image files in natural order; a zip that is damaged is refused.

    A frame has the number of its file. Files that cannot be read are skipped, named in the log,
    and counted in ``skipped``.
    """

    def __init__(self, pictures: Pictures, channels: int) -> None:
        if pictures.damage:
            raise SourceError(
                f"{pictures.source} {pictures.damage}", fix="Make or copy the zip again."
            )
        self.name = pictures.source
        self.total: int = len(pictures.names)
        self.skipped: list[str] = []
        self._pictures = pictures
        self._channels = channels

    def __iter__(self) -> Iterator[Frame]:
        """Read one image after another; a SourceError if none of them can be read."""
        names, none = self._pictures.names, True
        inside = Path(self.name) if self._pictures.kind == "zip" else Path()
        pictures = self._pictures.images(names, self._channels, lambda note: _tell((note,)))
        for index, (name, image) in enumerate(pictures):
            if isinstance(image, str):
                self.skipped.append(name)
                _log.warning("%s is skipped: it %s", as_text(name), as_text(image))
                continue
            none = False
            yield Frame(image, index, time.monotonic(), self.name, path=inside / names[index])
        if none:
            raise SourceError(
                f"none of the {self.total} images of {self.name} can be read",
                fix="Open one in a viewer; convert them to PNG or JPEG with "
                f"{self._channels} channels.",
            )


class Recordings(Source):
    """Several recordings, one after another, as one source.

    Frames are counted through and say which ``recording`` they are from. Recordings that cannot
    be read are skipped, named in the log, and counted in ``skipped``.
    """

    def __init__(self, name: str, found: Sequence[Found], channels: int) -> None:
        self.name = name
        self.skipped: list[str] = []
        self._left = list(found)
        self._channels = channels
        self._closed = False
        self._fix = "Play one to see whether it is whole; convert it to MP4 (H.264) if it is."
        self._current = self._next()
        self._count = len(found)
        if self._current is None:
            raise self._nothing()
        self.fps = self._current.fps
        counts = [self._current.total, *map(_count, self._left)]
        self.total = None if None in counts else sum(count or 0 for count in counts)

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames of each in turn; a SourceError if none of them can be read."""
        count, none = 0, True
        while self._current is not None:
            current, before = self._current, count
            if isinstance(current, ImageSource):
                count += current.total
            try:
                for frame in current:
                    index = before + frame.index
                    count, none = max(count, index + 1), False
                    yield replace(frame, index=index, source=self.name, recording=current.name)
            except SourceError as problem:
                self._skip(current.name, problem)
            current.close()
            self._current = self._next()
        if none and not self._closed:
            raise self._nothing()

    def close(self) -> None:
        """Close the one that is played, and play no other."""
        self._closed = True
        if self._current is not None:
            self._current.close()

    def _next(self) -> Source | None:
        while self._left and not self._closed:
            found = self._left.pop(0)
            try:
                return _open(found, self._channels)
            except SourceError as problem:
                self._skip(found.source, problem)
        return None

    def _nothing(self) -> SourceError:
        return SourceError(
            f"none of the {self._count} recordings of {self.name} can be read",
            fix=self._fix,
        )

    def _skip(self, name: str, problem: SourceError) -> None:
        self.skipped.append(name)
        self._fix = problem.fix
        _log.warning("%s is skipped: %s", as_text(name), as_text(str(problem)))


def _count(found: Found) -> int | None:
    """How many frames a recording states."""
    if found.kind == "video":
        return count_frames(Path(found.source))
    try:
        return len(found.pictures().names)
    except SourceError:
        return 0


class RealTime(Source):
    """A recording given at its own rate, as if it came from a camera; closed with this one.

    ``wait`` waits for some seconds, or until closed. One without a rate is refused.
    """

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
        self.fps = source.fps
        self.total = source.total
        self._source = source
        self._clock = clock
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait

    def __iter__(self) -> Iterator[Frame]:
        """Give each frame when it is due; ``captured`` is that moment."""
        started = due = self._clock()
        step, recording = 0.0, None
        for frame in self._source:
            if frame.recording != recording:
                recording, started = frame.recording, max(due + step, self._clock())
            at = frame.timestamp
            last = due
            due = started + (frame.index / (self.fps or 1.0) if at is None else at)
            step = due - last
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
