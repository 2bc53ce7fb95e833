"""Pictures: one file a frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import Asked, Sink
from aeseg_edge.sinks.names import NUMBER
from aeseg_edge.sources.base import Frame
from aeseg_edge.support.files import write_bytes, write_error
from aeseg_edge.view.draw import encode

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation


class ImageSink(Sink):
    """One image file a frame; each is whole or not there.

    The target is a path with one ``%d`` or ``%06d``; without one, a single frame is taken. The
    view ``labels`` writes class ids, 255 for void. Raises SinkError if the folder cannot be
    made, or the pattern has two numbers.
    """

    backlog = 16

    def __init__(self, asked: Asked) -> None:
        pattern, view = asked.target, asked.view
        numbers = NUMBER.findall(pattern)
        # One that only makes sense in the folder's name would need a folder a frame.
        if len(numbers) > 1 or "%" in str(Path(pattern).parent) + NUMBER.sub("", pattern):
            raise SinkError(
                f"{pattern} is not a file name with one number", fix="Use out/%06d.png."
            )
        if view == "labels" and Path(pattern).suffix.lower() != ".png":
            raise SinkError(f"{pattern} would lose class ids", fix="Write labels as .png.")
        self.name = pattern
        self._numbered = bool(numbers)
        self._written = 0
        self._labels = view == "labels"
        self._draw = asked.draw
        folder = Path(pattern).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise write_error(folder, problem, error=SinkError) from problem

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Write one image."""
        if self._written and not self._numbered:
            raise SinkError(
                f"{self.name} is one image, and the source has more frames",
                fix="Write out/%06d.png, or stop with --frames 1.",
            )
        path = Path(self.name % frame.index if self._numbered else self.name)
        picture = result.labels if self._labels else self._draw(frame.image, result)
        data = encode(path.suffix, picture)
        if data is None:
            raise SinkError(
                f"{path} cannot be encoded at {picture.shape[1]}x{picture.shape[0]}",
                fix="Write .png.",
            )
        write_bytes(path, data, error=SinkError)
        self._written += 1
