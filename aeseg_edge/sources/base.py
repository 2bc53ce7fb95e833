"""What a source is, and what sources share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Source(Protocol):
    """Frames, one after another.

    Attributes:
        name: What results are named by.
        fps: Frames a second as the recording or camera states it; None where unknown.
        live: True for cameras: frames that are not taken are gone.
        total: Frames the recording states; None where unknown.
    """

    name: str
    fps: float | None
    live: bool
    total: int | None

    def __iter__(self) -> Iterator[Frame]:
        """Give frames until the end; cameras have none.

        Raises:
            SourceError: If the source is lost before its end. A loop opens a live one again.
        """
        ...

    def close(self) -> None:
        """Release the file or device. Closing twice is fine."""
        ...

    def __enter__(self) -> Source:
        """Return itself."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        ...


class Closing:
    """What every source here shares: closing at the end of a ``with`` block."""

    def close(self) -> None:
        """Release nothing; sources that hold something say so themselves."""

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
        index: 0 for the first frame of the source.
        captured: ``time.monotonic()`` when the frame was there.
        source: Name of the source.
        timestamp: Position in a recording in seconds; None for cameras and pictures.
    """

    image: NDArray[np.uint8]
    index: int
    captured: float
    source: str
    timestamp: float | None = None
