"""What answers over HTTP: Motion JPEG of cameras and robots, recordings, other streams."""

from __future__ import annotations

import base64
import http.client
import logging
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Absent, Frame, Source
from aeseg_edge.sources.capture import open_stream
from aeseg_edge.sources.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, decode_image
from aeseg_edge.sources.video import open_address
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import without_password

_log = logging.getLogger(__name__)

_TIMEOUT = 10.0
_MAX_PART = 64 << 20
_MAX_BAD = 30
_MUCH = 8 << 20
_END = b"\xff\xd9"
_FILES = ("application/octet-stream", "application/mp4", "binary/octet-stream")
_FIX = "Open the address in a browser; check the network, the password and the camera's manual."


class MjpegSource(Source):
    """A multipart stream of JPEG pictures (RFC 2046, section 5.1), as cameras understand it.

    What the header calls the boundary is not trusted: many cameras state another one. A part
    begins at a line with two dashes and ends by its length, its end-of-image marker or the next
    such line, whichever is right. Each picture comes within ten seconds, or the source is lost.

    Args:
        name: Without a password.
        response: Whose headers were read; closed with the source.
        channels: C of the frames, 1 or 3.
    """

    live = True

    def __init__(self, name: str, response: Any, channels: int) -> None:
        self.name = name
        self._channels = channels
        self._bad = 0
        self._response = response
        self._held = bytearray()
        self._until = 0.0
        boundary = response.headers.get_param("boundary")
        self._token = boundary.strip('"-').encode() if isinstance(boundary, str) else b""
        try:
            self._first = self._next()
            self._first_at = time.monotonic()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        """Give frames until the camera stops, or sends no picture for too long: a SourceError."""
        index = 0
        image, captured = self._first, self._first_at
        while True:
            yield Frame(image, index, captured, self.name)
            index += 1
            image = self._next()
            captured = time.monotonic()

    def close(self) -> None:
        """Hang up."""
        self._response.close()

    def _next(self) -> NDArray[np.uint8]:
        self._until = time.monotonic() + _TIMEOUT
        while True:
            data = self._part()
            image = decode_image(data, self._channels)
            if not isinstance(image, str):
                self._bad = 0
                return image
            self._bad += 1
            _log.debug("%s: a part %s", self.name, image)
            if self._bad >= _MAX_BAD:
                raise SourceError(f"{self.name}: a part of the stream {image}", fix=_FIX)

    def _part(self) -> bytes:
        """Read the body of the next part."""
        try:
            while not self._is_delimiter(line := self._line()):
                pass
            mark, length = line.strip(), 0
            while header := self._line().strip():
                if match := re.fullmatch(rb"content-length\s*:\s*(\d+)", header, re.I):
                    length = int(match[1])
            if length > _MAX_PART:
                raise SourceError(f"{self.name} announces {length} bytes", fix=_FIX)
            while len(self._held) < length:
                self._more()
            data = self._taken(length)
            end = data.rfind(_END) + len(_END)
            if end < len(_END):
                # No length, or one that is too short.
                return data + self._rest(mark)
            # Padding, or what a length that is too long took of the next part.
            self._held[:0] = data[end:]
            return data[:end]
        except (OSError, EOFError, ValueError, http.client.HTTPException) as error:
            raise Absent(
                f"{self.name} stopped: {str(error) or 'the camera hung up'}", fix=_FIX
            ) from error

    def _is_delimiter(self, line: bytes) -> bool:
        return line.startswith(b"--") or (bool(self._token) and line.strip() == self._token)

    def _rest(self, mark: bytes) -> bytes:
        """Read up to the JPEG's end-of-image marker, perhaps padded, or the next delimiter."""
        parts, size = [], 0
        while not (line := self._line()).startswith(mark):
            parts.append(line)
            size += len(line)
            # The delimiter stands on a line of its own; the picture's last line is before it.
            if line.rstrip(b"\r\n\0").endswith(_END):
                return b"".join(parts)
            if size > _MAX_PART:
                raise SourceError(f"{self.name} sends a part without an end", fix=_FIX)
        self._held[:0] = line
        return b"".join(parts)

    def _line(self) -> bytes:
        looked = 0
        while (at := self._held.find(b"\n", looked)) < 0:
            looked = len(self._held)
            if looked > _MAX_PART:
                raise SourceError(f"{self.name} sends a part without an end", fix=_FIX)
            self._more()
        return self._taken(at + 1)

    def _taken(self, length: int) -> bytes:
        data = bytes(self._held[:length])
        del self._held[:length]
        return data

    def _more(self) -> None:
        if time.monotonic() > self._until:
            raise TimeoutError(f"it gave no picture within {_TIMEOUT:g} s")
        if not (data := self._response.read1(1 << 16)):
            raise EOFError
        self._held += data


class Fetched(Source):
    """A recording that was fetched before it is read, because its server gives no parts of it.

    Args:
        name: Its address, without a password.
        source: Of the file.
        folder: That the file is in; removed with the source.
    """

    def __init__(self, name: str, source: Source, folder: Any) -> None:
        self.name, self.fps, self.total = name, source.fps, source.total
        self._source = source
        self._folder = folder

    def __iter__(self) -> Iterator[Frame]:
        """Give its frames."""
        for frame in self._source:
            yield replace(frame, source=self.name, path=None)

    def close(self) -> None:
        """Remove it."""
        self._source.close()
        self._folder.cleanup()


def _connect(uri: str) -> Any:
    name = without_password(uri)
    # Cameras are on the local network: no proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Redirects())
    try:
        parts = urlsplit(uri)
        request = urllib.request.Request(name)
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            token = base64.b64encode(pair.encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        return opener.open(request, timeout=_TIMEOUT)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        # A wrong address or password stays wrong, and a file is no camera that comes back.
        wrong = isinstance(error, ValueError) or 400 <= getattr(error, "code", 0) < 500
        wrong = wrong or _suffix(uri) in VIDEO_SUFFIXES | IMAGE_SUFFIXES
        kind = SourceError if wrong else Absent
        raise kind(f"{name} cannot be opened: {reason}", fix=_FIX) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a camera elsewhere without its password: who knows what is there."""

    def redirect_request(self, req: urllib.request.Request, *more: Any) -> Any:
        new = super().redirect_request(req, *more)
        if new is not None and (new.type, new.host) != (req.type, req.host):
            new.remove_header("Authorization")
        return new


def open_http(uri: str, channels: int) -> Source:
    """Open what answers at an address: pictures, a recording, else whatever FFmpeg makes of it.

    A recording is what has a length and is a video or a picture by its type or name.
    """
    name, response = without_password(uri), _connect(uri)
    kind = response.headers.get_content_type()
    if kind.startswith("multipart/"):
        return MjpegSource(name, response, channels)
    with response:
        suffix = _suffix(uri)
        known = suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES
        by_type = kind.startswith(("video/", "image/")) or kind in _FILES
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > 0 and (known or by_type) and suffix != ".m3u8":
            parts = response.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
            if not parts or kind.startswith("image/") or suffix in IMAGE_SUFFIXES:
                return _fetch(name, response, int(length), suffix, channels)
            response.close()
            return open_address(name, uri, channels, fix=f"Fetch it (curl -O {name}) and play it.")
    # A stream or a playlist: FFmpeg knows what to do with it.
    try:
        return open_stream(name, uri, import_cv2().CAP_FFMPEG, channels)
    except SourceError as problem:
        if not isinstance(problem, Absent):
            raise
        raise Absent(f"{name} gives {kind}, not a stream of JPEGs or a video", fix=_FIX) from None


def _suffix(uri: str) -> str:
    return PurePosixPath(uri.partition("?")[0]).suffix.lower()


def _fetch(name: str, response: Any, length: int, suffix: str, channels: int) -> Source:
    """Fetch a file, then open it."""
    from aeseg_edge.sources.recorded import open_recording

    folder = tempfile.TemporaryDirectory(prefix="aeseg-")
    path = Path(folder.name) / f"fetched{suffix}"
    advice = f"Fetch it (curl -O {name}) and give the file."
    try:
        if shutil.disk_usage(folder.name).free < length:
            raise SourceError(f"{name} has {length} bytes, too many for {folder.name}", fix=advice)
        if length > _MUCH:
            _log.warning("%s: its server gives no parts, so %d MB come first", name, length >> 20)
        with path.open("wb") as file:
            shutil.copyfileobj(response, file)
        if (have := path.stat().st_size) < length:
            raise SourceError(f"{name} broke off after {have} of {length} bytes", fix=advice)
        return Fetched(name, open_recording(str(path), channels), folder)
    except SourceError as problem:
        folder.cleanup()
        raise SourceError(problem.problem.replace(str(path), name), fix=problem.fix) from None
    except (OSError, http.client.HTTPException) as error:
        folder.cleanup()
        raise SourceError(f"{name} cannot be fetched: {error}", fix=advice) from error
