"""Reading footage: what a source holds, and some of its frames, evenly spread.

One reader a source, each with ``found`` (how many frames there are) and ``sample``
(read some). A video is decoded from its start to its end and only the wanted frames are
converted: that needs no index, so a broken one does no harm, and holds one frame at a
time. Zips are read in memory; nothing is ever extracted.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import Geometry, fit_frame
from aeseg_edge.errors import FootageError, SourceError
from aeseg_edge.sources.decoding import Decoder, to_channels
from aeseg_edge.sources.images import Pictures
from aeseg_edge.sources.paths import Found, file_path, find, is_pipe
from aeseg_edge.sources.registry import is_live
from aeseg_edge.sources.video import no_frame, open_decoder, what_is_missing
from aeseg_edge.support.evenly import middles
from aeseg_edge.support.text import as_text

_log = logging.getLogger(__name__)

MIN_SIDE = 32
"""Pixels: a smaller picture holds less than one cell of the deepest stride."""
Sizes = list[tuple[int, int]]
"""Rows and columns of pictures as they came, before they were brought to the training size."""
_FIX = "Give videos, folders of images, globs, zips of images or single images."


@dataclass
class Notes:
    """What is noted about one source while it is read: names with reasons, and sentences."""

    unreadable: dict[str, str] = field(default_factory=dict)
    too_small: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        """Note a file or entry that cannot be decoded."""
        self.unreadable[name] = reason
        _log.warning("%s is skipped: it %s", as_text(name), as_text(reason))

    def warn(self, sentence: str) -> None:
        """Note what a person should know."""
        self.warnings.append(sentence)
        _log.warning("%s", as_text(sentence))

    def large_enough(self, name: str, image: NDArray[np.uint8]) -> bool:
        """Say whether a picture can be footage, and note it if not."""
        rows, columns = image.shape[:2]
        if min(rows, columns) >= MIN_SIDE:
            return True
        self.too_small[name] = f"{columns}x{rows}"
        _log.warning("%s is skipped: %dx%d pixels is too small", as_text(name), columns, rows)
        return False


class Reader(ABC):
    """One source of footage.

    Attributes:
        source: What the user gave, or the path of a video or zip that was found there.
        kind: ``video``, ``folder``, ``glob``, ``zip``, ``images`` or ``pairs``.
        found: How many frames there are.
        notes: What could not be read, and what else there is to say.
    """

    source: str
    kind: str
    found: int
    notes: Notes

    def work(self, budget: int) -> int:
        """Return how often ``sample`` will call ``tick``, about."""
        return min(budget, self.found)

    @abstractmethod
    def sample(
        self, room: NDArray[np.uint8], geometry: Geometry, tick: Callable[[], None]
    ) -> Sizes:
        """Read frames, evenly spread, in order, into the room given.

        ``room`` is uint8 [budget, height, width, channels], written from the front; ``tick`` is
        called once a unit of work. Returns of each frame written its size before; what could
        not be read is in ``notes``.
        """


class ImageReader(Reader):
    """Image files, or the entries of a zip, in order."""

    def __init__(self, pictures: Pictures) -> None:
        # With the range, which the manifest keeps with the source's name.
        stated = f"?range={pictures.levels}" if pictures.levels else ""
        self.source, self.kind = f"{pictures.source}{stated}", pictures.kind
        self.found = len(pictures.names)
        self.notes = Notes()
        self._pictures = pictures
        if pictures.damage:
            self.notes.skip(pictures.source, pictures.damage)
        for note in pictures.notes:
            self.notes.warn(note)

    def sample(
        self, room: NDArray[np.uint8], geometry: Geometry, tick: Callable[[], None]
    ) -> Sizes:
        """Read images, evenly spread, into the room given; see ``Reader``."""
        written: Sizes = []
        names = [self._pictures.names[i] for i in middles(self.found, len(room))]
        for name, image in self._pictures.images(names, geometry.channels, self.notes.warn):
            tick()
            if isinstance(image, str):
                self.notes.skip(name, image)
            elif self.notes.large_enough(name, image):
                room[len(written)] = fit_frame(image, geometry)
                written.append((image.shape[0], image.shape[1]))
        return written


class VideoReader(Reader):
    """One video file."""

    kind = "video"

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self.notes = Notes()
        self._path = path
        self._missing: list[str] = []
        self.found = self._claimed()

    def work(self, budget: int) -> int:
        """Return the number of frames: all are decoded, whatever the budget."""
        return self.found if budget else 0

    def sample(
        self, room: NDArray[np.uint8], geometry: Geometry, tick: Callable[[], None]
    ) -> Sizes:
        """Read frames, evenly spread, into the room given; see ``Reader``."""
        claimed, budget = self.found, len(room)
        if not claimed or not budget:
            return []
        if geometry.channels not in (1, 3):
            self.notes.skip(self.source, f"has 3 channels, {geometry.channels} are wanted")
            return []
        wanted = middles(claimed, budget)
        written, readable = self._read(wanted, room, geometry, tick)
        if self.notes.too_small:
            return []
        for sentence in self._missing:
            self.notes.warn(sentence)
        reached = sum(index < readable for index in wanted)
        if reached < 0.9 * min(budget, readable) or readable > 1.1 * claimed:
            # The container was wrong about its length: spread over the true one.
            self.notes.unreadable.clear()
            written, readable = self._read(middles(readable, budget), room, geometry, lambda: None)
        self.found = readable
        if not readable and not self.notes.unreadable:
            self._refuse(no_frame(self.source, self._path))
        return written

    def _open(self) -> Decoder | None:
        try:
            return open_decoder(self._path)
        except SourceError as problem:
            self._refuse(problem)
            return None

    def _refuse(self, problem: SourceError) -> None:
        self.notes.skip(self.source, str(problem).removeprefix(f"{self.source} ").rstrip("."))

    def _claimed(self) -> int:
        """Return the number of frames that the container states, or count them."""
        decoder = self._open()
        if decoder is None:
            return 0
        try:
            # Streams state none, damaged headers anything; no container spends less than
            # 4 bytes on a frame.
            if decoder.stated is not None and decoder.stated <= self._path.stat().st_size // 4:
                return decoder.stated
            while decoder.grab():
                pass
            if not decoder.index:
                self._refuse(no_frame(self.source, self._path))
            return decoder.index
        finally:
            decoder.release()

    def _read(
        self,
        wanted: Sequence[int],
        room: NDArray[np.uint8],
        geometry: Geometry,
        tick: Callable[[], None],
    ) -> tuple[Sizes, int]:
        """Return the sizes of the wanted frames written, and how many frames can be decoded."""
        written: Sizes = []
        left = iter(wanted)
        following = next(left, None)
        decoder = self._open()
        if decoder is None:
            return [], 0
        try:
            while decoder.grab():
                tick()
                index = decoder.index - 1
                if index == following:
                    following = next(left, None)
                    frame = decoder.image()
                    if frame is None:
                        self.notes.skip(f"{self.source} frame {index}", "cannot be decoded")
                    elif not self.notes.large_enough(self.source, frame):
                        break
                    else:
                        frame = to_channels(self.source, frame, geometry.channels)
                        room[len(written)] = fit_frame(frame, geometry)
                        written.append((frame.shape[0], frame.shape[1]))
            self._missing = what_is_missing(decoder, self._path)
        except SourceError as problem:
            self._refuse(problem)
            return [], 0
        finally:
            decoder.release()
        return written, decoder.index


def open_sources(sources: Sequence[str | Path]) -> list[Reader]:
    """Find out what each source is, and how many frames it holds: one reader or more for each.

    Paths of videos (one reader each), images, zips and folders, and glob patterns. Single
    images that follow one another (a glob that the shell expanded) are one source.

    Raises:
        FootageError: If a source does not exist or holds neither images nor videos.
    """
    found: list[Found] = []
    for source in map(str, sources):
        stream = "://" in source and not source.startswith("file://")
        path = Path(file_path(source))
        camera = not stream and not path.is_file() and not path.is_dir() and is_live(source)
        if stream or camera or source == "-" or is_pipe(path):
            raise FootageError(
                f"{source} is not a file, and training needs footage that it can read again",
                fix="Record it first: aeseg run SOURCE --view frame -o clip.mp4, or any recorder.",
            )
        found += find(source, error=FootageError, fix=_FIX)
    readers: list[Reader] = []
    for (kind, levels), group in groupby(found, key=lambda each: (each.kind, each.levels)):
        each = list(group)
        if kind == "images":
            names = tuple(name for one in each for name in one.files)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            readers.append(ImageReader(Pictures(f"{names[0]}{more}", kind, names, levels=levels)))
        else:
            readers += [_reader(one) for one in each]
    return readers


def _reader(found: Found) -> Reader:
    reader = (
        VideoReader(Path(found.source))
        if found.kind == "video"
        else ImageReader(found.pictures(error=FootageError))
    )
    for note in found.notes:
        reader.notes.warn(note)
    return reader
