"""What a source is, and what sources share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError


class Absent(SourceError):
    """Nothing answers where a source should be; to open it again may help."""


class Source(ABC):
    """Frames, one after another. A source of one's own sets ``name`` and gives frames.

    Attributes:
        name: What results are named by.
        fps: Frames a second as the recording or camera states it; None where unknown.
        live: True for cameras: frames that are not taken are gone.
        total: Frames the recording states; None where unknown.
    """

    name: str
    fps: float | None = None
    live: bool = False
    total: int | None = None

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Give frames until the end; cameras have none.

        Raises:
            SourceError: If the source is lost before its end. A loop opens a live one again.
        """

    def interrupt(self) -> None:  # noqa: B027 - most have nothing that hangs
        """Wake up a thread that waits inside the source; called from another one."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Release the file or device. Closing twice is fine."""

    def __enter__(self) -> Any:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


@dataclass(frozen=True)
class Frame:
    """A picture, and when and where it was taken.

    Attributes:
        image: uint8 [H, W, C], BGR.
        index: 0 for the first frame of the source. A picture of a folder, a zip or pairs has the
            number of its file in their order, so that one that cannot be read leaves a gap.
        captured: ``time.monotonic()`` when the frame was there.
        source: Name of the source.
        timestamp: Position in its recording in seconds; None for cameras and pictures.
        recording: Which of a source's recordings it is from; None where there is only one.
        path: The file that it is from: a picture (of a pair, the first; in a zip, the entry's
            name behind that of the zip) or a video; None for streams and cameras.
    """

    image: NDArray[np.uint8]
    index: int
    captured: float
    source: str
    timestamp: float | None = None
    recording: str | None = None
    path: Path | None = None
