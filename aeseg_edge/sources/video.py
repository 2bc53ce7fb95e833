"""Video files, and what reads as one: pipes, and recordings behind an address."""

from __future__ import annotations

import logging
import os
import select
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Frame, Source
from aeseg_edge.sources.decoding import Decoder, to_channels
from aeseg_edge.sources.images import video_backend
from aeseg_edge.sources.paths import is_avif, is_pipe
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import check_name

_log = logging.getLogger(__name__)

_PIPE = 10.0
"""Seconds in which a pipe gives its first byte."""
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"moof", b"uuid")


class VideoSource(Source):
    """Frames of a recording, decoded as they are read; the first one is read on opening.

    Args:
        decoder: Just opened; released with the source, and where its first frame is refused.
        channels: C of the frames, 1 or 3.
        path: Of a file.
        no_frame: Says what is wrong where there is no frame.
        clean: Called when the source is closed.
    """

    def __init__(
        self,
        decoder: Decoder,
        channels: int,
        *,
        no_frame: Callable[[], SourceError],
        path: Path | None = None,
        clean: Callable[[], object] = lambda: None,
    ) -> None:
        self.name = decoder.name
        self.fps, self.total = decoder.fps, decoder.stated
        self._decoder: Decoder | None = decoder
        self._channels = channels
        self._path = path
        self._clean = clean
        try:
            self._first = self._next()
            if self._first is None:
                raise no_frame()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        """Give frames to the end, and say there what was missing."""
        index = 0
        frame, self._first = self._first or self._next(), None
        while frame is not None:
            image, captured, seconds = frame
            yield Frame(image, index, captured, self.name, seconds, path=self._path)
            index += 1
            frame = self._next()
        if self._decoder is not None:
            for sentence in what_is_missing(self._decoder, self._path):
                _log.warning("%s", sentence)
            if self._path is None and self.total is not None and index < 0.9 * self.total:
                _log.warning(
                    "%s gave %d of about %d frames: the connection may have broken",
                    self.name,
                    index,
                    self.total,
                )

    def close(self) -> None:
        """Release the capture."""
        if self._decoder is not None:
            self._decoder.release()
            self._decoder = None
            self._clean()

    def _next(self) -> tuple[NDArray[np.uint8], float, float | None] | None:
        image = None if self._decoder is None else self._decoder.read()
        if image is None or self._decoder is None:
            return None
        seconds = self._decoder.seconds
        return to_channels(self.name, image, self._channels), time.monotonic(), seconds


def open_video(path: Path, channels: int) -> Source:
    """Open a video file, or a pipe that a video comes through, as frames of 1 or 3 channels."""
    if not is_pipe(path):
        return VideoSource(
            open_decoder(path), channels, path=path, no_frame=lambda: no_frame(str(path), path)
        )
    reading = _open_pipe(path)
    try:
        decoder = _decoder(str(path), f"pipe:{reading}")
    except SourceError as problem:
        os.close(reading)
        fix = "Pipes carry MPEG-TS, Matroska or raw H.264; an MP4 has to be a file."
        raise SourceError(problem.problem, fix=fix) from None
    return VideoSource(
        decoder,
        channels,
        no_frame=lambda: SourceError(f"{path} gives no frame", fix="Check who writes into it."),
        clean=lambda: os.close(reading),
    )


def open_decoder(path: Path) -> Decoder:
    """Open a video file; the name goes absolute, because FFmpeg takes ``12:30.mp4`` for a host."""
    check_name(path, error=SourceError)
    return _decoder(str(path), os.path.abspath(path))


def open_address(name: str, address: str, channels: int, *, fix: str) -> Source:
    """Open a recording behind an address, whose server gives any part of it."""
    cv2 = import_cv2()
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 10_000]
    capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        raise SourceError(f"{name} cannot be opened as a video", fix=fix)
    decoder = Decoder(name, capture, recorded=True, ffmpeg=True)
    return VideoSource(decoder, channels, no_frame=lambda: no_frame(name, address))


def count_frames(path: Path) -> int | None:
    """Read how many frames a video states, without decoding any; None where it does not say."""
    try:
        decoder = open_decoder(path)
    except SourceError:
        return 0
    decoder.release()
    return decoder.stated


def no_frame(name: str, address: str | Path) -> SourceError:
    """Say why a video that was opened gives no frame: its codec is unknown, or it has none."""
    cv2 = import_cv2()
    address = os.path.abspath(address) if isinstance(address, Path) else address
    packets = cv2.VideoCapture(address, video_backend(), [cv2.CAP_PROP_FORMAT, -1])
    try:
        decoder = Decoder(name, packets, recorded=False, ffmpeg=False)
        if decoder.grab():
            command = f"ffmpeg -i {shlex.quote(name)} -c:v libx264 -pix_fmt yuv420p OUT.mp4"
            return SourceError(
                f"{name} is coded in {decoder.codec}, which OpenCV {cv2.__version__} cannot decode",
                fix=f"Convert it: {command}.",
            )
    finally:
        packets.release()
    return SourceError(
        f"{name} has no frame that can be decoded",
        fix="It is damaged or cut short: record or copy it again.",
    )


def what_is_missing(decoder: Decoder, path: Path | None) -> list[str]:
    """Say what a video that was read to its end lacks; nothing of one that is whole."""
    said = []
    lost, gaps = decoder.lost, decoder.gaps
    if lost:
        packets = "1 damaged packet" if lost == 1 else f"{lost} damaged packets"
        said.append(f"{decoder.name}: {packets} could not be decoded, and the rest is read")
    if gaps > lost:
        said.append(f"{decoder.name}: about {gaps} frames are missing: its times have gaps")
    if path is not None and not is_pipe(path):
        have, wanted = path.stat().st_size, _stated_size(path)
        if have < wanted:
            said.append(f"{decoder.name} is cut short: {have} of {wanted} bytes are there")
    return said


def _decoder(name: str, address: str) -> Decoder:
    how = video_backend()
    cv2 = import_cv2()
    capture = cv2.VideoCapture(address, how)
    if not capture.isOpened():
        raise _not_opened(name, address)
    return Decoder(name, capture, recorded=True, ffmpeg=how == cv2.CAP_FFMPEG)


def _not_opened(name: str, address: str) -> SourceError:
    problem = f"{name} cannot be opened as a video"
    try:
        if not address.startswith("pipe:"):
            open(address, "rb").close()
    except OSError as error:
        return SourceError(
            f"{problem}: {error.strerror or error}", fix="Check who may read it (ls -l)."
        )
    if is_avif(Path(address)):
        version = import_cv2().__version__
        return SourceError(
            f"{name} is a picture (AVIF or HEIC) that OpenCV {version} cannot decode",
            fix=f"Convert it: ffmpeg -i {name} {Path(name).stem}.png.",
        )
    return SourceError(
        problem, fix="Play it to see whether it is whole; convert it to MP4 (H.264) if it is."
    )


def _open_pipe(path: Path) -> int:
    """Open a pipe without waiting for whoever writes, then wait for its first byte, not for ever.

    Returns:
        A descriptor that reads.
    """
    try:
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise SourceError(
            f"{path} cannot be opened: {error.strerror}", fix="Give a video file or a pipe."
        ) from error
    if not select.select([reading], [], [], _PIPE)[0]:
        os.close(reading)
        raise SourceError(
            f"{path} gives nothing within {_PIPE:g} s", fix="Start whoever writes into it first."
        )
    os.set_blocking(reading, True)
    return reading


def _stated_size(path: Path) -> int:
    """Read how long a file is by its container's own words; 0 where there are none.

    RIFF (AVI), ISO/IEC 14496-12 (MP4, MOV) and EBML (Matroska, RFC 8794) state the length of
    their outermost parts, which a file that is cut short no longer has.
    """
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while 0 <= at < size:
            file.seek(at)
            length = _part(file)
            if length <= 0:
                return at if length == 0 else 0
            at += length
    return at


def _part(file: IO[bytes]) -> int:
    """Read the length of one outermost part: 0 where it is none, -1 where it does not say."""
    head = file.read(16)
    if head[:4] == b"RIFF" and len(head) >= 8:
        length = int.from_bytes(head[4:8], "little")
        return 8 + length + length % 2 if length else -1
    if head[4:8] in _BOXES:
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        return length if length >= 8 else -1
    if head[:4] in (b"\x1aE\xdf\xa3", b"\x18S\x80g") and len(head) > 4 and head[4]:
        # A variable-length integer: as many bytes as there are zeros before the first one, and one.
        wide = 9 - head[4].bit_length()
        value = int.from_bytes(head[4 : 4 + wide], "big") & ((1 << 7 * wide) - 1)
        return -1 if value == (1 << 7 * wide) - 1 else 4 + wide + value
    return 0
