"""Motion JPEG over HTTP: what most network cameras and many robots offer."""

from __future__ import annotations

import base64
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Frame, Source
from aeseg_edge.sources.capture import open_stream
from aeseg_edge.sources.images import decode_image
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import without_password

_log = logging.getLogger(__name__)

_TIMEOUT = 10.0
_MAX_PART = 64 << 20
_MAX_BAD = 30
_FIX = "Open the address in a browser; check the network, the password and the camera's manual."


class MjpegSource(Source):
    """A multipart/x-mixed-replace stream of JPEG pictures (RFC 2046, section 5.1).

    Raises ``NotMjpeg`` if what answers at ``http://[user:password@]host[:port]/path`` is something
    else.
    """

    live = True

    def __init__(self, uri: str, channels: int) -> None:
        self.name = without_password(uri)
        self._channels = channels
        self._bad = 0
        self._response = self._connect(uri)
        kind = self._response.headers.get_content_type()
        boundary = self._response.headers.get_param("boundary")
        if kind != "multipart/x-mixed-replace" or not isinstance(boundary, str):
            self.close()
            raise NotMjpeg(f"{self.name} gives {kind}, not a stream of JPEGs", fix=_FIX)
        # Some cameras repeat the dashes of the delimiter in the parameter.
        self._delimiter = b"--" + boundary.strip('"').removeprefix("--").encode()
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

    def _connect(self, uri: str) -> Any:
        # Cameras are on the local network: no proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Redirects())
        try:
            parts = urlsplit(uri)
            request = urllib.request.Request(self.name)
            if parts.username is not None:
                pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                token = base64.b64encode(pair.encode()).decode()
                request.add_header("Authorization", f"Basic {token}")
            return opener.open(request, timeout=_TIMEOUT)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise SourceError(f"{self.name} cannot be opened: {reason}", fix=_FIX) from error

    def _next(self) -> NDArray[np.uint8]:
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
            while not self._line().startswith(self._delimiter):
                pass
            length = None
            while header := self._line().strip():
                if match := re.fullmatch(rb"content-length:\s*(\d+)", header, re.I):
                    length = int(match[1])
            if length is not None:
                if length > _MAX_PART:
                    raise SourceError(f"{self.name} announces {length} bytes", fix=_FIX)
                data = bytes(self._response.read(length))
                if len(data) < length:
                    raise EOFError
                return data
            return self._until_end_of_picture()
        except (OSError, EOFError, ValueError, http.client.HTTPException) as error:
            raise SourceError(
                f"{self.name} stopped: {str(error) or 'the camera hung up'}", fix=_FIX
            ) from error

    def _until_end_of_picture(self) -> bytes:
        """Read a part of no stated length, up to the JPEG's end-of-image marker."""
        parts, size = [], 0
        while True:
            line = self._line()
            parts.append(line)
            size += len(line)
            # The delimiter stands on a line of its own; the picture's last line is before it.
            if line.rstrip(b"\r\n").endswith(b"\xff\xd9"):
                return b"".join(parts)
            if size > _MAX_PART:
                raise SourceError(f"{self.name} sends a part without an end", fix=_FIX)

    def _line(self) -> bytes:
        line = bytes(self._response.readline(_MAX_PART))
        if not line:
            raise EOFError
        return line


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a camera elsewhere without its password: who knows what is there."""

    def redirect_request(self, req: urllib.request.Request, *more: Any) -> Any:
        new = super().redirect_request(req, *more)
        if new is not None and (new.type, new.host) != (req.type, req.host):
            new.remove_header("Authorization")
        return new


class NotMjpeg(SourceError):
    """What answers at an address is not a stream of JPEG pictures."""


def open_http(uri: str, channels: int) -> Source:
    """Open what answers at an address: pictures, else whatever FFmpeg makes of it."""
    try:
        return MjpegSource(uri, channels)
    except NotMjpeg as problem:
        # A video, or a playlist: FFmpeg knows what to do with it.
        try:
            return open_stream(without_password(uri), uri, import_cv2().CAP_FFMPEG, channels)
        except SourceError:
            raise problem from None
