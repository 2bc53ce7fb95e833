"""Image files: which they are, in what order, and how they become frames."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.sources.depth import Levels, to_bytes
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.zips import read_member

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
VIDEO_SUFFIXES = frozenset(
    {".avi", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)

TEXT_SUFFIXES = frozenset(
    {".adf", ".ans", ".art", ".asc", ".bin", ".diz", ".ice", ".idf", ".nfo", ".txt", ".vt", ".xb"}
)
"""Names under which FFmpeg draws any text or bytes as a terminal's picture, and calls it video."""

MAX_FILE_BYTES = 512 * 2**20
"""Larger image files are not read: the entry of a zip may claim any size."""


@dataclass(frozen=True)
class Pictures:
    """Image files of one place, or the entries of a zip: read in memory, nothing is extracted.

    Attributes:
        source: What messages call them.
        kind: ``images``, ``folder``, ``glob`` or ``zip``.
        names: Paths, or names of entries, in the order they are read.
        notes: Sentences for a person, about what else is in a zip.
        damage: Why none can be read.
        levels: What is black and white in those of more than 8 bits; all they can hold if None.
    """

    source: str
    kind: str
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    damage: str = ""
    levels: Levels | None = None

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, bytes | str]]:
        """Yield of each name what messages call it, and its bytes or why there are none."""
        if self.kind != "zip":
            for name in names:
                yield name, _read_file(Path(name))
        elif names:
            with zipfile.ZipFile(self.source) as archive:
                for name in names:
                    yield f"{self.source}:{name}", _read_entry(archive, name)

    def images(
        self, names: Sequence[str], channels: int, warn: Callable[[str], None]
    ) -> Iterator[tuple[str, NDArray[np.uint8] | str]]:
        """Yield of each name what messages call it, and its picture or why there is none.

        ``warn`` gets, once, what is lost of pictures of more than 8 bits.
        """
        told: list[str] = []
        for name, data in self.read(names):
            known = len(told)
            if isinstance(data, bytes):
                tell = None if known else told.append
                yield name, decode_image(data, channels, levels=self.levels, tell=tell)
            else:
                yield name, data
            if len(told) > known:
                warn(f"{name} {told[0]}")


def open_zip(path: Path) -> Pictures:
    """List the image entries of a zip; one that is damaged has none."""
    names: list[str] = []
    unsafe: list[str] = []
    videos: list[str] = []
    others: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        # The last two: names that are not the UTF-8 they say, a zip of a later version.
        return Pictures(str(path), "zip", (), damage=f"is not a readable zip ({error})")
    for name in entries:
        suffix = PurePosixPath(name).suffix.lower()
        if is_hidden(name) or name.endswith("/"):
            continue
        known = names if suffix in IMAGE_SUFFIXES else videos if suffix in VIDEO_SUFFIXES else None
        if known is None:
            others.append(name)
        else:
            (known if _stays_inside(name) else unsafe).append(name)
    notes = []
    if unsafe:
        notes.append(
            f"{len(unsafe)} entries of {path} are ignored: their paths lead out of the archive "
            f"({unsafe[0]})"
        )
    if videos:
        notes.append(
            f"{len(videos)} videos inside {path} are ignored ({videos[0]}): unzip them first"
        )
    if others:
        notes.append(left_out(str(path), others))
    return Pictures(str(path), "zip", tuple(sorted(names, key=natural)), tuple(notes))


def left_out(place: str, others: Sequence[str]) -> str:
    """Say that files of other kinds are not read."""
    return f"{len(others)} files of {place} are no images or videos and left out ({others[0]})"


def is_image(path: Path) -> bool:
    """Say whether a name looks like an image file's."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Say whether a path is one that systems keep for themselves."""
    parts = re.split(r"[/\\]", name)
    return parts[-1].startswith(".") or "__MACOSX" in parts


def natural(name: str) -> list[tuple[int, int, str]]:
    """Make a key that sorts names as people do: ``frame2`` before ``frame10``."""
    # Odd parts are the numbers. ASCII digits only: int() refuses some of what \d matches.
    parts = re.split(r"([0-9]+)", name)
    return [(1, int(part), "") if i % 2 else (0, 0, part) for i, part in enumerate(parts)]


def decode_image(
    data: bytes,
    channels: int,
    *,
    levels: Levels | None = None,
    tell: Callable[[str], None] | None = None,
) -> NDArray[np.uint8] | str:
    """Decode an image file to the channels wanted.

    Values of more than 8 bits are brought to 0..255 by ``levels``; without any, 65535 (or the
    maximum that a PGM or PPM states) becomes 255. Grey is repeated for colour, colour is made
    grey (ITU-R BT.601) for one channel, alpha is dropped unless four channels are wanted.
    Pictures that a camera marked as turned (EXIF) are turned upright, as videos are.

    Args:
        data: The bytes of the file.
        channels: C, 1, 3 or 4.
        levels: What is black and white; 8-bit pictures are left as they are.
        tell: Gets what is lost ("holds ...").

    Returns:
        uint8 [H, W, C], or why that is not possible ("is not ...").
    """
    cv2 = import_cv2()
    if not data:
        return "is empty"
    if _is_cut_jpeg(data):
        return "is cut short: the end of the JPEG is missing"
    # IMREAD_UNCHANGED is the only way to alpha. Turning is not left to OpenCV: which formats
    # it turns depends on its version.
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED if channels == 4 else flags
        )
    except cv2.error as error:
        return f"cannot be decoded ({error.err})"
    if image is None:
        return "is not an image that OpenCV can decode"
    image = to_bytes(image, data, levels, tell)
    if isinstance(image, str):
        return image
    # OpenCV turns TIFF files whatever it is asked for.
    image = image if _is_tiff(data) else turn(image, orientation_of(data))
    if image.ndim == 2:
        image = image[..., None]
    have = image.shape[2]
    if have == channels:
        return np.ascontiguousarray(image)
    codes = {
        (1, 3): cv2.COLOR_GRAY2BGR,
        (4, 3): cv2.COLOR_BGRA2BGR,
        (3, 1): cv2.COLOR_BGR2GRAY,
        (4, 1): cv2.COLOR_BGRA2GRAY,
    }
    if (have, channels) not in codes:
        return f"has {have} channels, {channels} are wanted"
    converted = cv2.cvtColor(np.ascontiguousarray(image), codes[have, channels])
    return np.ascontiguousarray(converted.reshape(*image.shape[:2], channels), np.uint8)


def orientation_of(data: bytes) -> int:
    """Read how a JPEG, PNG, WebP or TIFF is to be turned: EXIF's orientation, 1 to 8.

    1, as it is stored, where there is none. Source: CIPA DC-008 (Exif 2.32), 4.6.4, tag 274.
    """
    block = data if _is_tiff(data) else next((part for part in _exif(data)), b"")
    order = "little" if block[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(block[at : at + size], order)  # type: ignore[arg-type]

    first = number(4, 4)
    for at in range(first + 2, min(first + 2 + 12 * number(first, 2), len(block)), 12):
        if number(at, 2) == 0x0112:
            return value if 1 <= (value := number(at + 8, 2)) <= 8 else 1
    return 1


def turn(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels [H, W, ...] upright, by EXIF's orientation; a view."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


def _exif(data: bytes) -> Iterator[bytes]:
    """Yield the TIFF blocks that EXIF is in."""
    if data[:2] == b"\xff\xd8":
        for marker, at, size in _jpeg_segments(data):
            if marker == 0xE1 and data[at : at + 6] == b"Exif\0\0":
                yield data[at + 6 : at + size]
        return
    # Chunks: of PNG (PNG 3rd edition, 5.3 and 11.3.3.4) and of RIFF (RFC 9649, 2.7).
    is_png = data[:4] == b"\x89PNG"
    if not is_png and (data[:4], data[8:12]) != (b"RIFF", b"WEBP"):
        return
    at = 8 if is_png else 12
    while at + 8 <= len(data):
        name, size = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4], "big")
        if not is_png:
            name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name in (b"eXIf", b"EXIF"):
            yield data[at + 8 : at + 8 + size].removeprefix(b"Exif\0\0")
        at += 12 + size if is_png else 8 + size + size % 2


def _is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*")


def read_grey(path: Path) -> NDArray[np.uint8] | None:
    """Read a picture as uint8 [H, W], under whichever name: ``cv2.imread`` takes UTF-8 only.

    None where it cannot be read or is no picture.
    """
    cv2 = import_cv2()
    try:
        data = path.read_bytes()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    except (OSError, cv2.error):
        return None
    return None if image is None else np.asarray(image, np.uint8)


def _read_file(path: Path) -> bytes | str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return f"is larger than {MAX_FILE_BYTES} bytes"
        return path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytes | str:
    try:
        info = archive.getinfo(name)
        if info.file_size > MAX_FILE_BYTES:
            return f"is larger than {MAX_FILE_BYTES} bytes"
        return read_member(archive, info)
    except (RuntimeError, NotImplementedError) as error:
        # zipfile's errors for encrypted entries and unknown methods.
        return f"cannot be unpacked ({error})"
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        return f"is damaged ({error})"


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]


def _is_cut_jpeg(data: bytes) -> bool:
    """Say whether a JPEG lost its end: OpenCV 4 fills the missing part with grey.

    The end is looked for behind the start of the scan: a thumbnail before it has one too.
    """
    scans = (at for marker, at, _ in _jpeg_segments(data) if marker == 0xDA)
    return (start := next(scans, None)) is not None and data.rfind(b"\xff\xd9", start) < 0


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, place and size of the segments up to the scan (ITU-T T.81, B.1.1.4)."""
    at = 2
    while data[:2] == b"\xff\xd8" and data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], at + 4, size - 2
        if data[at + 1] == 0xDA:
            return
        at += 2 + size


def video_backend() -> int:
    """Choose OpenCV's reader of video files: FFmpeg, or whatever this build has instead.

    Other backends take ``clip_01.mp4`` for a numbered series of images, so FFmpeg goes
    first; a build with GStreamer alone has no FFmpeg.
    """
    cv2 = import_cv2()
    known = cv2.videoio_registry.getStreamBackends()
    return int(cv2.CAP_FFMPEG if cv2.CAP_FFMPEG in known else cv2.CAP_ANY)
