"""How much labels flicker where the picture stands still."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.errors import FrameError
from aeseg_edge.support.require import import_cv2

UNCHANGED = 3.0
"""Of 255: mean colours of 3x3 pixels that differ by no more in any channel are the same."""


@dataclass(frozen=True)
class Flicker:
    """How labels behave from one frame to the next.

    Attributes:
        frames: Frames looked at.
        unchanged: Share of the pixels whose image did not change, 0..1.
        flicker: Share of those whose label changed all the same, 0..1; None without any.
        agreement: Share of the other pixels that have the label of the reference, 0..1: what
            smoothing holds back there, it lowers. None without a reference, or without any.
    """

    frames: int
    unchanged: float
    flicker: float | None
    agreement: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return asdict(self)


class FlickerMeter:
    """Compares each frame and its labels with the ones before.

    A pixel's image did not change where the mean colour of its 3x3 pixels differs by at most
    ``threshold`` in every channel: single pixels are noise. Void pixels do not count.

    Args:
        threshold: Of 255.
    """

    def __init__(self, threshold: float = UNCHANGED) -> None:
        self._threshold = threshold
        self._last: tuple[NDArray[np.float32], NDArray[np.uint8]] | None = None
        self._frames = 0
        self._pixels = self._still = self._flipped = 0
        self._moved = self._agreed = 0
        self._compared = False

    def add(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        reference: NDArray[np.uint8] | None = None,
    ) -> None:
        """Take the next frame, uint8 [H, W, C], and its labels, uint8 [H, W].

        `reference` are the frame's labels without smoothing. FrameError where shapes do not fit.
        """
        if frame.shape[:2] != labels.shape or (
            reference is not None and reference.shape != labels.shape
        ):
            raise FrameError(
                f"labels {list(labels.shape)} are not of the frame {list(frame.shape)}",
                fix="Give both of one frame.",
            )
        blurred = np.asarray(import_cv2().blur(frame.astype(np.float32), (3, 3)), np.float32)
        blurred = blurred.reshape(frame.shape)
        last, self._last = self._last, (blurred, labels)
        self._frames += 1
        if last is None or last[1].shape != labels.shape:
            return
        counts = (labels != VOID) & (last[1] != VOID)
        still = (np.abs(blurred - last[0]).max(axis=2) <= self._threshold) & counts
        moved = counts & ~still
        self._pixels += int(counts.sum())
        self._still += int(still.sum())
        self._flipped += int(((labels != last[1]) & still).sum())
        if reference is not None:
            self._compared = True
            self._moved += int(moved.sum())
            self._agreed += int(((labels == reference) & moved).sum())

    def restart(self) -> None:
        """Compare the next frame with none before it: it is of another recording."""
        self._last = None

    def result(self) -> Flicker:
        """Give the figures of all frames so far."""
        return Flicker(
            frames=self._frames,
            unchanged=self._still / max(self._pixels, 1),
            flicker=self._flipped / self._still if self._still else None,
            agreement=self._agreed / self._moved if self._compared and self._moved else None,
        )
