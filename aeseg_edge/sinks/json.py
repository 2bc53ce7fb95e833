"""One JSON object a line and frame: what the scene is made of, for scripts and logs."""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from shlex import quote
from typing import IO, TYPE_CHECKING, Any

from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import Asked, Sink
from aeseg_edge.sources.base import Frame
from aeseg_edge.support.files import is_stream, write_error
from aeseg_edge.support.text import to_json

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation

PIPE_BUF = getattr(select, "PIPE_BUF", 512)


def shares_by_name(result: Segmentation) -> dict[str, float]:
    """Give the share of the pixels that each class covers, 0..1, by name.

    Every class of the bundle is there, also one that is not in the picture; classes of one name
    are added up; void is listed where there is any.
    """
    found = result.shares
    shares: dict[str, float] = {}
    for item in result.classes:
        shares[item.name] = shares.get(item.name, 0.0) + found.get(item.id, 0.0)
    if VOID in found:
        shares["void"] = shares.get("void", 0.0) + found[VOID]
    return shares


def place_of(frame: Frame) -> dict[str, Any]:
    """Say where in its source a frame is from: recording, file, seconds; what it has of these."""
    found: dict[str, Any] = {}
    if frame.recording is not None:
        found["recording"] = frame.recording
    if frame.path is not None:
        found["path"] = str(frame.path)
    if frame.timestamp is not None:
        found["position"] = round(frame.timestamp, 6)
    return found


class JsonSink(Sink):
    """A file of JSON lines (one object a line, UTF-8), readable while it grows.

    Each line has ``time`` (seconds since 1970 at capture), ``source``, ``index``, ``age_ms``
    and ``shares`` (0..1 by class name), ``captured`` (the same moment as ISO 8601) of cameras,
    ``position`` in seconds of recordings, ``path`` of files, ``recording`` where the source
    has several, and ``drift`` where the loop measures it. With ``error`` and a decoder it has
    ``reconstruction_error``, the frame's mean in grey levels; null where all of it is void.

    The path ``-`` is standard output; a pipe is waited for with the first line, for ``patience``
    seconds. ``clock`` is what ``Frame.captured`` is measured with. Raises SinkError if the file
    cannot be written.
    """

    backlog = 64

    def __init__(
        self,
        path: Path,
        *,
        append: bool = False,
        error: bool = False,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        patience: float = 5.0,
    ) -> None:
        self.name = f"json:{path}"
        self._path = path
        self._stdout = str(path) == "-"
        self._mode = "ab" if append or self._stdout else "wb"
        self._error = error
        self._wall = wall
        self._clock = clock
        self._patience = patience
        self._interrupted = threading.Event()
        self._closed = False
        self._file: IO[bytes] | None = None
        try:
            self._file = self._open()
            if append and self._file is not None and not self._stdout:
                self._end_line()
        except OSError as problem:
            self.close()
            raise write_error(path, problem, error=SinkError) from problem

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Add one line."""
        if self._closed:
            raise SinkError(f"{self.name} is closed", fix="Open it again.")
        if self.closed_by_user:
            return
        now = self._wall() - (self._clock() - frame.captured)
        place = place_of(frame)
        if not place:
            moment = datetime.fromtimestamp(now, timezone.utc)
            place = {"captured": moment.isoformat(timespec="microseconds")}
        line = {
            "time": round(now, 6),
            "source": frame.source,
            "index": frame.index,
            **place,
            "age_ms": None if result.frame_age is None else round(result.frame_age * 1e3, 3),
            "shares": {name: round(share, 6) for name, share in shares_by_name(result).items()},
        }
        if self._error and result.decoding is not None:
            found = result.decoding.error(frame.image)
            line["reconstruction_error"] = None if found is None else round(found, 3)
        if result.drift is not None:
            line["drift"] = round(result.drift, 5)
        self._put(to_json(line).encode() + b"\n")

    def interrupt(self) -> bool:
        """Let a line go that waits for the reader of a pipe."""
        self._interrupted.set()
        return True

    def close(self) -> None:
        """Close the file; its lines are whole, and stay."""
        self._closed = True
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> IO[bytes] | None:
        """Open without waiting; None where nobody reads a pipe yet."""
        if self._stdout:
            return os.fdopen(os.dup(1), self._mode, buffering=0)
        begin = os.O_APPEND if self._mode == "ab" else os.O_TRUNC
        at_once = getattr(os, "O_NONBLOCK", 0)  # these two: not on Windows, only there
        flags = os.O_WRONLY | os.O_CREAT | begin | at_once | getattr(os, "O_BINARY", 0)
        try:
            number = os.open(self._path, flags, 0o666)
        except OSError as problem:
            if problem.errno == errno.ENXIO and is_stream(self._path):
                return None
            raise
        if at_once:
            os.set_blocking(number, True)
        # Unbuffered: each line is one write, and is there for whoever follows the file.
        return os.fdopen(number, self._mode, buffering=0)

    def _put(self, data: bytes) -> None:
        file = self._file or self._wait_for_reader()
        before = self._length()
        try:
            if before is None:
                for at in range(0, len(data), PIPE_BUF):
                    # What a pipe has room for without waiting (POSIX, write).
                    while not select.select([], [file], [], 0.1)[1]:
                        self._check_interrupted()
                    file.write(data[at : at + PIPE_BUF])
                return
            written = file.write(data)
            if written != len(data):
                # A full disk takes a part without complaint, and complains at the next one.
                file.write(data[written:])
        except BrokenPipeError as problem:
            if self._stdout:
                # Such as head: it has enough.
                self.closed_by_user = True
                return
            raise SinkError(
                f"the reader of {self.name} went away", fix="Keep it running, and run this again."
            ) from problem
        except OSError as problem:
            self._cut(before)
            raise write_error(self._path, problem, error=SinkError) from problem

    def _wait_for_reader(self) -> IO[bytes]:
        until = self._clock() + self._patience
        while self._file is None:
            try:
                self._file = self._open()
            except OSError as problem:
                raise write_error(self._path, problem, error=SinkError) from problem
            if self._file is None and (self._clock() >= until or self._interrupted.wait(0.05)):
                raise SinkError(
                    f"{self.name} is a pipe that nobody reads",
                    fix=f"Start its reader first, such as: cat {quote(str(self._path))}",
                )
        return self._file

    def _check_interrupted(self) -> None:
        if self._interrupted.is_set():
            raise SinkError(
                f"{self.name} takes no more lines", fix="See what its reader waits for."
            )

    def _length(self) -> int | None:
        assert self._file is not None
        found = os.fstat(self._file.fileno())
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def _end_line(self) -> None:
        """End a line that another run was cut off in: the first one here would be glued to it."""
        assert self._file is not None
        if not self._length() or not os.access(self._path, os.R_OK):
            return
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                self._file.write(b"\n")

    def _cut(self, length: int | None) -> None:
        """Remove a part of a line."""
        if length is not None and self._file is not None:
            self._file.truncate(length)


def open_json(asked: Asked) -> Sink:
    """Open ``json:FILE?append=1``; see ``open_sink``."""
    append = asked.options.get("append", "0")
    if append not in ("0", "1"):
        raise SinkError(f"{asked.uri} asks for append={append}", fix="Write ?append=1.")
    path = Path("-") if asked.target == "-" else asked.path
    return JsonSink(path, append=append == "1", error=asked.view == "error")
