"""Pictures: one file a frame."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import Asked, Sink
from aeseg_edge.sinks.names import NAME, NUMBER
from aeseg_edge.sources.base import Frame
from aeseg_edge.support.files import is_stream, write_bytes, write_error
from aeseg_edge.view.draw import encode

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation

_log = logging.getLogger(__name__)


class ImageSink(Sink):
    """One image file a frame; each is whole or not there.

    The target is a path with one ``%d`` or ``%06d``, with ``{name}`` (the name of the frame's
    file, or of its recording) or both; without, a single frame is taken. The view ``labels``
    writes class ids, 255 for void. Raises SinkError if the folder cannot be made, or the
    pattern has two numbers.
    """

    backlog = 16

    def __init__(self, asked: Asked) -> None:
        pattern, view = asked.target, asked.view
        numbers, folder = NUMBER.findall(pattern), Path(pattern).parent
        # One that only makes sense in the folder's name would need a folder a frame.
        if len(numbers) > 1 or "%" in str(folder) + NUMBER.sub("", pattern) or NAME in str(folder):
            raise SinkError(
                f"{pattern} is not a file name with one number", fix="Use out/%06d.png."
            )
        if view == "labels" and Path(pattern).suffix.lower() != ".png":
            raise SinkError(f"{pattern} would lose class ids", fix="Write labels as .png.")
        self.name = pattern
        self._numbered, self._named = bool(numbers), NAME in pattern
        self._written: dict[str, Path | None] = {}
        self._labels = view == "labels"
        self._draw = asked.draw
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise write_error(folder, problem, error=SinkError) from problem

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Write one image."""
        path = self._place(frame)
        picture = result.labels if self._labels else self._draw(frame.image, result)
        data = encode(path.suffix, picture)
        if data is None:
            raise SinkError(
                f"{path} cannot be encoded at {picture.shape[1]}x{picture.shape[0]}",
                fix="Write .png.",
            )
        if is_stream(path):
            raise SinkError(f"{path} is a device or a pipe", fix="Choose the name of a file.")
        write_bytes(path, data, error=SinkError)

    def _place(self, frame: Frame) -> Path:
        """The file of a frame: none is written twice."""
        path = Path(NUMBER.sub(lambda match: match[0] % frame.index, self.name))
        if self._named:
            path = path.with_name(path.name.replace(NAME, self._name_of(frame)))
        if self._numbered:
            return path
        # Disks that do not tell A from a have one file for both.
        key, count = str(path).casefold(), 2
        if key in self._written and (not self._named or self._written[key] == frame.path):
            number = f"{Path(self.name).stem}-%06d" if self._named else "out/%06d"
            raise SinkError(
                f"{self.name} is one image, and the source has more frames",
                fix=f"Write {number}{path.suffix}, or stop with --frames 1.",
            )
        wanted = path
        while key in self._written:
            path = wanted.with_name(f"{wanted.stem}-{count}{wanted.suffix}")
            key, count = str(path).casefold(), count + 1
        if path != wanted:
            first = self._written[str(wanted).casefold()]
            _log.warning(
                "%s and %s have one name: the second becomes %s", first, frame.path, path.name
            )
        self._written[key] = frame.path
        return path

    def _name_of(self, frame: Frame) -> str:
        """The name of the file that a frame is from, without its suffix."""
        file = frame.path or Path(frame.recording or frame.source)
        if frame.path is None and not file.is_file():
            raise SinkError(
                f"{self.name} asks for names of files, and {frame.source} has none",
                fix=f"Number them: {self.name.replace(NAME, '%06d')}.",
            )
        return file.stem
