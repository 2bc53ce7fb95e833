"""Video that survives a kill: what is encoded is put on the disk every two seconds.

OpenCV's writer keeps up to 256 KiB to itself, which may be minutes, and an MP4 has no index
before its end. So short parts are encoded, and their packets go one after another into a raw
stream beside the target, from which the target is made at the end, without encoding again.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SinkError
from aeseg_edge.support.files import write_error
from aeseg_edge.support.require import import_cv2

_log = logging.getLogger(__name__)

_SECONDS = 2.0
_MOST_FRAMES = 64
_ENDS = {"mp4v": ".m4v", "MJPG": ".mjpeg"}
_GROUP, _PICTURE = b"\0\0\1\xb3", b"\0\0\1\xb6"
_ISO_MEDIA = (".mp4", ".m4v", ".mov")


def open_writer(
    path: Path, codec: str, fps: float, size: tuple[int, int], raw: bool = False
) -> Any:
    """Open OpenCV's writer at columns x rows; ``raw`` takes packets in the place of pictures."""
    cv2 = import_cv2()
    code = cv2.VideoWriter_fourcc(*codec)
    if raw:
        # Without an interval, OpenCV takes every packet for a key frame.
        options = [cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1, cv2.VIDEOWRITER_PROP_KEY_INTERVAL, 1 << 30]
        return cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, fps, size, options)
    return cv2.VideoWriter(str(path), code, fps, size)


def can_spool(codec: str) -> bool:
    """Say whether this OpenCV takes packets (4.5.5 and later with FFmpeg) that are a stream."""
    cv2 = import_cv2()
    known = cv2.videoio_registry.getWriterBackends()
    takes = hasattr(cv2, "VIDEOWRITER_PROP_KEY_FLAG") and cv2.CAP_FFMPEG in known
    return takes and codec in _ENDS


class Spool:
    """A raw stream on the disk, from which a video is made.

    Args:
        temporary: The hidden file that the video is made in; the stream lies beside it.
        name: What messages call the video.
        codec: ``mp4v`` or ``MJPG``.
        fps: Frames a second.
        size: Columns and rows.
    """

    def __init__(
        self, temporary: Path, name: str, codec: str, fps: float, size: tuple[int, int]
    ) -> None:
        # The rate is in the name: JPEGs one after another do not say it.
        self.path = temporary.with_name(f"{temporary.stem}.raw-{fps:.6g}{_ENDS[codec]}")
        self._part = temporary.with_name(f"{temporary.stem}.part.avi")
        self._name, self._codec, self._fps, self._size = name, codec, fps, size
        self._writer: Any = None
        self._lengths, self._keys = array("L"), bytearray()
        self._frames = 0
        self._kept = False
        self._span = max(1, min(_MOST_FRAMES, round(_SECONDS * fps)))
        try:
            self._file = self.path.open("xb+")
        except OSError as problem:
            raise write_error(Path(name), problem, error=SinkError) from problem
        _lock(self._file.fileno())

    def write(self, picture: NDArray[np.uint8]) -> bool:
        """Add a picture, uint8 [H, W, 3]; True where everything is on the disk now.

        Raises:
            SinkError: If it cannot be encoded, or the disk is full.
        """
        if self._writer is None:
            codec = "XVID" if self._codec == "mp4v" else self._codec
            self._writer = open_writer(self._part, codec, self._fps, self._size)
            if not self._writer.isOpened():
                raise cannot_encode(self._name, self._codec, self._fps, self._size)
        self._writer.write(picture)
        self._frames += 1
        if self._frames % self._span:
            return False
        self._flush()
        return True

    def finish(self, target: Path) -> None:
        """Make the video.

        Raises:
            SinkError: If the disk is full.
        """
        self._flush()
        writer = open_writer(target, self._codec, self._fps, self._size, raw=True)
        if not writer.isOpened():
            raise cannot_encode(self._name, self._codec, self._fps, self._size)
        cv2 = import_cv2()
        self._file.seek(0)
        for length, key in zip(self._lengths, self._keys, strict=True):
            writer.set(cv2.VIDEOWRITER_PROP_KEY_FLAG, key)
            # One row: OpenCV 4 looks at the columns for the length.
            writer.write(np.frombuffer(self._file.read(length), np.uint8)[None])
        writer.release()
        if target.suffix.lower() in _ISO_MEDIA and self._lengths:
            self._file.seek(0)
            _add_header(target, self._file.read(self._lengths[0]))

    def keep(self, target: Path) -> SinkError:
        """Leave the stream where the video could not be made of it, and say so."""
        self._kept = True
        return SinkError(
            f"{self._name} cannot be finished, the disk is probably full; all of it is in "
            f"{self.path}",
            fix=f"Free some space, then: {_rescue(self.path, target)}",
        )

    def remove(self) -> None:
        """Remove the stream, unless it is kept, and what belongs to it."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        with contextlib.suppress(OSError):  # what a full disk did not take
            self._file.close()
        for path in (self._part,) if self._kept else (self._part, self.path):
            path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        try:
            for packet in _packets(self._part):
                self._file.write(packet)
                self._lengths.append(len(packet))
                # vop_coding_type is 0 in a picture of its own (ISO/IEC 14496-2, 6.2.5); OpenCV
                # calls every packet of an AVI a key frame.
                at = packet.find(_PICTURE) + len(_PICTURE)
                alone = self._codec != "mp4v" or packet[at : at + 1] < b"\x40"
                self._keys.append(alone)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as problem:
            raise write_error(Path(self._name), problem, error=SinkError) from problem
        if len(self._lengths) < self._frames:
            raise not_whole(self._name, len(self._lengths), self._frames)
        self._part.unlink(missing_ok=True)


def not_whole(name: str, found: int, frames: int) -> SinkError:
    """Say that a full disk took a part only."""
    return SinkError(
        f"{name} cannot be written whole: {found} of {frames} frames are on the disk",
        fix="The disk is probably full: free some space, or write to another disk.",
    )


def cannot_encode(name: str, codec: str, fps: float, size: tuple[int, int]) -> SinkError:
    """Say that OpenCV's writer does not open."""
    return SinkError(
        f"OpenCV cannot write {name} with the codec {codec} at {size[0]}x{size[1]} and {fps:g} fps",
        fix="Check that the disk has room; else write an .avi, or an image pattern (out/%06d.png).",
    )


def tell_of_leftovers(target: Path) -> None:
    """Say where the streams of earlier runs are that were killed; empty ones are removed.

    Args:
        target: The video, links resolved.
    """
    stem = target.stem[:40]
    for end in _ENDS.values():
        for path in sorted(target.parent.glob(f".{glob.escape(stem)}-????????.raw-*{end}")):
            with contextlib.suppress(OSError):
                with path.open("rb+") as file:
                    if not _lock(file.fileno()):
                        continue
                begun = path.name.rpartition(".raw-")[0]
                for other in (f"{begun}{target.suffix}", f"{begun}.part.avi"):
                    path.with_name(other).unlink(missing_ok=True)
                if path.stat().st_size == 0:
                    path.unlink()
                    continue
                _log.warning(
                    "a run into %s was cut off; what it wrote is in %s. To keep it: %s; then "
                    "remove it",
                    target,
                    path,
                    _rescue(path, target.with_name(f"{stem}-saved{target.suffix}")),
                )


def _rescue(path: Path, target: Path) -> str:
    """The command that makes a video of a stream."""
    rate = path.stem.rpartition(".raw-")[2]
    return f"ffmpeg -framerate {rate} -i {quote(str(path))} -c copy {quote(str(target))}"


def _lock(number: int) -> bool:
    """Hold a file while this process lives; False where another one does."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _packets(part: Path) -> Iterator[bytes]:
    """What is encoded in a part."""
    cv2 = import_cv2()
    capture = cv2.VideoCapture(str(part), cv2.CAP_FFMPEG)
    try:
        capture.set(cv2.CAP_PROP_FORMAT, -1)
        while capture.isOpened():
            good, packet = capture.read()
            if not good:
                return
            yield packet.tobytes()
    finally:
        capture.release()


def _add_header(path: Path, packet: bytes) -> None:
    """Write an MPEG-4 stream's header into the file's head too, where other players look for it.

    It is the DecoderSpecificInfo in the box esds (ISO/IEC 14496-1, 7.2.6.6). FFmpeg writes the
    head last, so nothing moves, and lengths of descriptors with four bytes.
    """
    begins = [at for mark in (_GROUP, _PICTURE) if (at := packet.find(mark)) > 0]
    with path.open("rb+") as file:
        at, size, kind = 0, 0, b""
        while kind != b"moov":
            at += size
            file.seek(at)
            head = file.read(16)
            if len(head) < 8:
                return
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            size = int.from_bytes(head[8:], "big") if size == 1 else size
        file.seek(at)
        moov = bytearray(file.read(size))
        config = re.search(rb"esds.{4}\x03\x80{3}.{4}\x04\x80{3}\x0d", moov, re.DOTALL)
        if config is None or not begins or at + size != path.stat().st_size:
            return
        header = packet[: min(begins)]
        added = b"\x05\x80\x80\x80" + bytes([len(header)]) + header
        grown = len(added)
        moov[config.end() + 13 : config.end() + 13] = added
        moov[config.end() - 1] += grown
        moov[config.start() + 12] += grown
        for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"mp4v", b"esds"):
            start = moov.index(box) - 4
            length = int.from_bytes(moov[start : start + 4], "big") + grown
            moov[start : start + 4] = length.to_bytes(4, "big")
        file.seek(at)
        file.write(moov)
