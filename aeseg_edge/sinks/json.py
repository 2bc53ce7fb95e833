"""One JSON object a line and frame: what the scene is made of, for scripts and logs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import Asked, Sink
from aeseg_edge.sources.base import Frame
from aeseg_edge.support.files import write_error
from aeseg_edge.support.text import to_json

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation


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


class JsonSink(Sink):
    """A file of JSON lines (one object a line, UTF-8), readable while it grows.

    Each line has ``time`` (seconds since 1970 at capture), ``source``, ``index``, ``age_ms``
    and ``shares`` (0..1 by class name), ``recording`` where the source has several, and
    ``drift`` where the loop measures it.

    Args:
        path: The file; begun anew unless ``append``.
        append: Keep the lines that are there.
        error: Add ``reconstruction_error``, the frame's mean in grey levels, where results
            come from a segmenter with a decoder; null where all of a frame is void.
        wall: Seconds since 1970.
        clock: What ``Frame.captured`` is measured with.

    Raises:
        SinkError: If it cannot be written.
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
    ) -> None:
        self.name = f"json:{path}"
        self._path = path
        self._error = error
        self._wall = wall
        self._clock = clock
        self._file: IO[bytes] | None = None
        try:
            # Unbuffered: each line is one write, and is there for whoever follows the file.
            self._file = path.open("ab" if append else "wb", buffering=0)
            if append:
                self._end_line()
        except OSError as problem:
            self.close()
            raise write_error(path, problem, error=SinkError) from problem

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Add one line."""
        if self._file is None:
            raise SinkError(f"{self.name} is closed", fix="Open it again.")
        age = self._clock() - frame.captured
        line = {
            "time": round(self._wall() - age, 6),
            "source": frame.source,
            "index": frame.index,
            **({} if frame.recording is None else {"recording": frame.recording}),
            "age_ms": None if result.frame_age is None else round(result.frame_age * 1e3, 3),
            "shares": {name: round(share, 6) for name, share in shares_by_name(result).items()},
        }
        if self._error and result.decoding is not None:
            found = result.decoding.error(frame.image)
            line["reconstruction_error"] = None if found is None else round(found, 3)
        if result.drift is not None:
            line["drift"] = round(result.drift, 5)
        data = to_json(line).encode() + b"\n"
        before = self._length()
        try:
            written = self._file.write(data)
            if written != len(data):
                # A full disk takes a part without complaint, and complains at the next one.
                self._file.write(data[written:])
        except OSError as problem:
            self._cut(before)
            raise write_error(self._path, problem, error=SinkError) from problem

    def close(self) -> None:
        """Close the file; its lines are whole, and stay."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _length(self) -> int | None:
        assert self._file is not None
        return os.fstat(self._file.fileno()).st_size if self._path.is_file() else None

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
    return JsonSink(asked.path, append=append == "1", error=asked.view == "error")
