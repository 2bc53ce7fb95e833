"""What one frame gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import ClassInfo
from aeseg_edge.segment.decoder import Decoding
from aeseg_edge.support.require import import_cv2

if TYPE_CHECKING:
    from aeseg_edge.sources.base import Frame


@dataclass(frozen=True)
class Segmentation:
    """What one frame became.

    Attributes:
        labels: uint8 [H, W] at the frame's own size: class ids, 255 is void.
        classes: Every class of the bundle.
        palette: uint8 [256, 3], BGR: ``palette[labels]`` is a picture.
        milliseconds: ``preprocess``, ``copy_in``, ``inference``, ``copy_out``,
            ``postprocess`` and their sum, ``total``. Copies are 0 on a CPU.
        frame_age: Seconds from capture to labels; None where capture time is unknown.
        margin: float32 [h/r, w/r] over the graph's input: best score less the best one of another
            class (of another cluster, where each is a class of its own).
        latents: float32 [D, h/r, w/r] over the graph's input.
        distance: float32 [h/r, w/r] over the graph's input: how far each latent is from its
            centre, in units of calibration's 99th percentile: above 1 the footage had next
            to nothing like it. NaN outside the frame and the region of interest.
        frame_drift: With ``distance``: how differently from calibration's they are distributed,
            0..1; see ``bundle.drift.Spread``, whose ``usual`` says what known frames have.
        drift: From a loop: the running mean of ``frame_drift`` of this camera.
        frame: The frame itself, from ``stream``.
        decoding: Draws the segmented image and the reconstruction error, where the
            segmenter was opened with a decoder.
    """

    labels: NDArray[np.uint8]
    classes: tuple[ClassInfo, ...]
    palette: NDArray[np.uint8]
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    frame_age: float | None = None
    margin: NDArray[np.float32] | None = None
    latents: NDArray[np.float32] | None = None
    distance: NDArray[np.float32] | None = None
    frame_drift: float | None = None
    drift: float | None = None
    frame: Frame | None = None
    decoding: Decoding | None = None

    @property
    def shares(self) -> dict[int, float]:
        """Share of the pixels that each class covers, 0..1, by class id; void counts too."""
        cv2 = import_cv2()
        # Three times as fast as numpy's bincount, which makes 64-bit indices first.
        counts = cv2.calcHist([self.labels], [0], None, [256], [0, 256]).ravel()
        return {int(i): float(counts[i] / self.labels.size) for i in np.flatnonzero(counts)}
