"""Reading footage: what a source holds, and some of its frames, evenly spread.

One reader a source, each with ``found`` (how many frames there are) and ``sample``
(read some). A video is decoded from its start to its end and only the wanted frames are
converted: that needs no index, so a broken one does no harm, and holds one frame at a
time. Zips are read in memory; nothing is ever extracted.
"""

from __future__ import annotations

import glob
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import Geometry, fit_frame
from aeseg_edge.errors import FootageError
from aeseg_edge.sources.images import (
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    VIDEO_SUFFIXES,
    decode_image,
    natural,
)
from aeseg_edge.support.choose import middles
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import as_text, is_utf8
from aeseg_edge.support.zips import read_member

_log = logging.getLogger(__name__)

MIN_SIDE = 32
"""Pixels: a smaller picture holds less than one cell of the deepest stride."""
MAX_FILE_BYTES = 512 * 2**20
"""Larger image files are not read: the entry of a zip may claim any size."""
Sizes = list[tuple[int, int]]
"""Rows and columns of pictures as they came, before they were brought to the training size."""
_FIX = "Give videos, folders of images, globs, zips of images or single images."


@dataclass
class Notes:
    """What is noted about one source while it is read.

    Attributes:
        unreadable: Name and reason of what could not be decoded.
        too_small: Name and size of pictures under ``MIN_SIDE`` pixels a side.
        warnings: Sentences for a person.
    """

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


class Reader(Protocol):
    """One source of footage."""

    source: str
    kind: str
    found: int
    notes: Notes

    def work(self, budget: int) -> int:
        """Return how often ``sample`` will call ``tick``, about."""
        ...

    def sample(
        self, room: NDArray[np.uint8], geometry: Geometry, tick: Callable[[], None]
    ) -> Sizes:
        """Read frames, evenly spread, in order, into the room given.

        Args:
            room: uint8 [budget, height, width, channels], written from the front.
            geometry: Size, channels and resize mode of the frames.
            tick: Called once a unit of work.

        Returns:
            Of each frame that was written, its size before. What could not be read is in ``notes``.
        """
        ...


class ImageReader:
    """Image files, in the order of their names.

    Args:
        source: What the user gave.
        kind: ``folder``, ``glob``, ``images`` or ``zip``.
        files: Paths, or names of zip entries.
    """

    def __init__(self, source: str, kind: str, files: Sequence[str]) -> None:
        """Put the names in order; nothing is opened yet."""
        self.source = source
        self.kind = kind
        self.found = len(files)
        self.notes = Notes()
        self.files = sorted(files, key=natural) if kind != "images" else list(files)

    def work(self, budget: int) -> int:
        """Return the number of images that will be read."""
        return min(budget, self.found)

    def sample(
        self, room: NDArray[np.uint8], geometry: Geometry, tick: Callable[[], None]
    ) -> Sizes:
        """Read images, evenly spread, into the room given; see ``Reader``."""
        written: Sizes = []
        for name, data in self._contents([self.files[i] for i in middles(self.found, len(room))]):
            tick()
            image = decode_image(data, geometry.channels) if isinstance(data, bytes) else data
            if isinstance(image, str):
                self.notes.skip(name, image)
            elif self.notes.large_enough(name, image):
                room[len(written)] = fit_frame(image, geometry)
                written.append((image.shape[0], image.shape[1]))
        return written

    def _contents(self, names: list[str]) -> Iterator[tuple[str, bytes | str]]:
        """Yield each name with its bytes, or with the reason why there are none."""
        for name in names:
            try:
                if Path(name).stat().st_size > MAX_FILE_BYTES:
                    yield name, f"is larger than {MAX_FILE_BYTES} bytes"
                else:
                    yield name, Path(name).read_bytes()
            except OSError as error:
                yield name, f"cannot be read ({error.strerror or error})"


class ZipReader(ImageReader):
    """Image entries of one zip.

    Args:
        path: The zip.

    Raises:
        FootageError: If it holds no image at all.
    """

    def __init__(self, path: Path) -> None:
        """List the entries; nothing is unpacked yet."""
        names: list[str] = []
        unsafe: list[str] = []
        videos: list[str] = []
        damage = ""
        try:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    suffix = PurePosixPath(name).suffix.lower()
                    if _is_hidden(name) or suffix not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
                        continue
                    kinds = names if suffix in IMAGE_SUFFIXES else videos
                    (kinds if _stays_inside(name) else unsafe).append(name)
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            # The last two: names that are not the UTF-8 they say, a zip of a later version.
            damage = f"is not a readable zip ({error})"
        super().__init__(str(path), "zip", names)
        if damage:
            self.notes.skip(str(path), damage)
        if unsafe:
            self.notes.warn(
                f"{len(unsafe)} entries of {path} are ignored: their paths lead out of the "
                f"archive ({unsafe[0]})"
            )
        if videos:
            self.notes.warn(
                f"{len(videos)} videos inside {path} are ignored ({videos[0]}): unzip them first"
            )
        if not names and not damage:
            raise FootageError(
                f"{path} holds no images that can be used",
                fix="Give a zip of images, or unzip it and give its videos or folders.",
            )

    def _contents(self, names: list[str]) -> Iterator[tuple[str, bytes | str]]:
        if not names:
            return  # A damaged zip: opening it again would fail again.
        with zipfile.ZipFile(self.source) as archive:
            for name in names:
                full = f"{self.source}:{name}"
                try:
                    info = archive.getinfo(name)
                    if info.file_size > MAX_FILE_BYTES:
                        yield full, f"is larger than {MAX_FILE_BYTES} bytes"
                    else:
                        yield full, read_member(archive, info)
                except (OSError, EOFError, zipfile.BadZipFile, zlib.error, ValueError) as error:
                    yield full, f"is damaged ({error})"
                except (RuntimeError, NotImplementedError) as error:
                    # zipfile's errors for encrypted entries and unknown methods.
                    yield full, f"cannot be unpacked ({error})"


class VideoReader:
    """One video file.

    Args:
        path: The file.
    """

    kind = "video"

    def __init__(self, path: Path) -> None:
        """Find the length."""
        self.source = str(path)
        self.notes = Notes()
        self._path = path
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
        if readable < 0.98 * claimed - 1:
            self.notes.warn(
                f"{self.source} says that it has {claimed} frames, and {readable} can be read: "
                "it is damaged or cut off"
            )
        reached = sum(index < readable for index in wanted)
        if reached < 0.9 * min(budget, readable) or readable > 1.1 * claimed:
            # The container was wrong about its length: spread over the true one.
            self.notes.unreadable.clear()
            written, readable = self._read(middles(readable, budget), room, geometry, lambda: None)
        self.found = readable
        if not readable:
            self.notes.skip(self.source, "has no frame that can be decoded")
        return written

    def _open(self) -> Any:
        cv2 = import_cv2()
        # Other backends than FFmpeg take "clip_01.mp4" for a numbered series of images.
        return cv2.VideoCapture(self.source, cv2.CAP_FFMPEG)

    def _claimed(self) -> int:
        """Return the number of frames that the container states, or count them."""
        if not is_utf8(self.source):
            self.notes.skip(self.source, "has a name that is not UTF-8: rename it")
            return 0
        cv2 = import_cv2()
        capture = self._open()
        try:
            if not capture.isOpened():
                self.notes.skip(self.source, "cannot be opened as a video")
                return 0
            claimed = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            # Streams state none, damaged headers anything; no container spends less than
            # 4 bytes on a frame.
            if 0 < claimed <= self._path.stat().st_size // 4:
                return claimed
            counted = 0
            while capture.grab():
                counted += 1
            if not counted:
                self.notes.skip(self.source, "has no frame that can be decoded")
            return counted
        finally:
            capture.release()

    def _read(
        self,
        wanted: Sequence[int],
        room: NDArray[np.uint8],
        geometry: Geometry,
        tick: Callable[[], None],
    ) -> tuple[Sizes, int]:
        """Return the sizes of the wanted frames written, and how many frames can be decoded."""
        cv2 = import_cv2()
        written: Sizes = []
        left = iter(wanted)
        following = next(left, None)
        index = 0
        capture = self._open()
        try:
            while capture.grab():
                tick()
                if index == following:
                    following = next(left, None)
                    good, frame = capture.retrieve()
                    if not good:
                        self.notes.skip(f"{self.source} frame {index}", "cannot be decoded")
                    elif not self.notes.large_enough(self.source, frame):
                        break
                    else:
                        if geometry.channels == 1:
                            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)[..., None]
                        room[len(written)] = fit_frame(frame, geometry)
                        written.append((frame.shape[0], frame.shape[1]))
                index += 1
        finally:
            capture.release()
        return written, index


def open_sources(sources: Sequence[str | Path]) -> list[Reader]:
    """Find out what each source is, and how many frames it holds.

    Single images that follow one another (a glob that the shell expanded) are one source.

    Args:
        sources: Paths of videos, images, zips and folders, and glob patterns.

    Returns:
        One reader or more for each source; a folder of videos gives one for each video.

    Raises:
        FootageError: If a source does not exist or holds neither images nor videos.
    """
    readers: list[Reader] = []
    singles: list[str] = []
    for source in sources:
        text = str(source).removeprefix("file://")
        path = Path(text)
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
            singles.append(text)
            continue
        if singles:
            readers.append(_singles(singles))
            singles = []
        if path.is_dir():
            readers += _from_folder(path)
        elif path.is_file():
            readers.append(_from_file(path))
        elif glob.has_magic(text):
            readers += _from_glob(text)
        elif "://" in text:
            raise FootageError(
                f"{text} is not a file, and training needs footage that it can read again",
                fix="Record it first: aeseg run SOURCE ... -o clip.mp4, or any recorder.",
            )
        else:
            raise FootageError(f"{text} does not exist", fix="Check the path.")
    if singles:
        readers.append(_singles(singles))
    return readers


def _from_folder(folder: Path) -> list[Reader]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = [str(path) for path in files if not _is_hidden(str(path.relative_to(folder)))]
    readers = _from_names(str(folder), "folder", names)
    if not readers:
        content = f"{len(files)} other files" if files else "no files"
        raise FootageError(f"folder {folder} holds no images or videos, but {content}", fix=_FIX)
    return readers


def _from_glob(pattern: str) -> list[Reader]:
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]
    readers = _from_names(pattern, "glob", [str(path) for path in found if path.is_file()])
    for path in sorted((path for path in found if path.is_dir()), key=lambda p: natural(str(p))):
        if "**" not in pattern:
            readers += _from_folder(path)
    if not readers:
        content = (
            f"matches {len(found)} files, none of them footage" if found else "matches nothing"
        )
        raise FootageError(f"{pattern} {content}", fix=_FIX)
    return readers


def _from_names(source: str, kind: str, names: list[str]) -> list[Reader]:
    names.sort(key=natural)
    images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    readers: list[Reader] = [ImageReader(source, kind, images)] if images else []
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            readers.append(VideoReader(Path(name)))
        elif suffix == ".zip" and kind == "glob":
            readers.append(ZipReader(Path(name)))
    return readers


def _from_file(path: Path) -> Reader:
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        return ZipReader(path)
    if path.suffix.lower() in TEXT_SUFFIXES:
        raise FootageError(f"{path} is neither an image nor a video", fix=_FIX)
    return VideoReader(path)


def _singles(names: list[str]) -> Reader:
    source = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    return ImageReader(source, "images", list(names))


def _is_hidden(name: str) -> bool:
    parts = re.split(r"[/\\]", name)
    return parts[-1].startswith(".") or "__MACOSX" in parts


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]
