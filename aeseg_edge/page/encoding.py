"""What is sent of a result: one packet for the page, pictures for everything else.

The page draws by itself (strength of the colours, views, colours of classes), so that all
viewers share one packet a frame whatever they look at.

A packet is a little-endian uint32, the length of a JSON object, the object, and its parts one
after another: ``image`` (JPEG), ``labels`` (zlib; uint8 [height, width]) and, where the run has
margins and distances, ``uncertainty`` and ``distance`` (zlib; uint8 [rows, columns]; a distance
of 128 is that of the footage's 99th percentile). ``parts`` in the object gives their
lengths.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import PADDING_BIAS
from aeseg_edge.errors import SinkError
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import without_password
from aeseg_edge.view.draw import as_bgr, encode, render

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation
    from aeseg_edge.sources.base import Frame


@dataclass(frozen=True)
class Shot:
    """One result as the sink got it; numbers begin at 1 and have no gaps."""

    number: int
    frame: Frame
    result: Segmentation


class Scale:
    """What a margin counts as certain: the median, averaged over the last frames.

    Margins are differences of scores, whose unit depends on the network; only their size
    against one another says something.
    """

    def __init__(self) -> None:
        self._level: float | None = None

    def uncertainty(self, margin: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Turn margins, float32 [h, w], into uncertainty, uint8 [h, w].

        255 where the two best classes score alike, 0 from the level on.
        """
        here = float(np.median(margin))
        if here >= -PADDING_BIAS:  # one class only: none is in doubt
            return np.zeros(margin.shape, np.uint8)
        before = here if self._level is None else self._level
        self._level = max(0.9 * before + 0.1 * here, 1e-6)
        return np.asarray(255 * (1 - np.clip(margin / self._level, 0, 1)), np.uint8)


def encode_packet(shot: Shot, scale: Scale, *, width: int, quality: int) -> bytes:
    """Encode what the page needs of one result: a packet, see the module's text.

    Frames wider than ``width`` are shrunk; ``quality`` of the JPEG is 1..100; the scale is kept
    from one frame to the next.
    """
    frame, result = shot.frame, shot.result
    image, labels = shrink(as_bgr(frame.image), result.labels, width)
    parts = {
        "image": _encode(".jpg", image, quality),
        "labels": zlib.compress(np.ascontiguousarray(labels).tobytes(), 1),
    }
    head: dict[str, Any] = {
        "number": shot.number,
        "frame": frame.index,
        "source": without_password(frame.source),
        "timestamp": frame.timestamp,
        "width": labels.shape[1],
        "height": labels.shape[0],
        "frame_width": frame.image.shape[1],
        "frame_height": frame.image.shape[0],
        "age": result.frame_age,
        "milliseconds": {key: round(value, 3) for key, value in result.milliseconds.items()},
        "shares": {str(key): round(value, 5) for key, value in result.shares.items()},
    }
    if result.margin is not None:
        rows, columns = result.margin.shape
        head |= {"rows": rows, "columns": columns}
        parts["uncertainty"] = zlib.compress(scale.uncertainty(result.margin).tobytes(), 1)
    if result.distance is not None:
        rows, columns = result.distance.shape
        head |= {"rows": rows, "columns": columns}
        far = np.clip(128 * np.nan_to_num(result.distance), 0, 255).astype(np.uint8)
        parts["distance"] = zlib.compress(far.tobytes(), 1)
    if result.drift is not None:
        head["drift"] = round(result.drift, 4)
    head["parts"] = {name: len(data) for name, data in parts.items()}
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((struct.pack("<I", len(text)), text, *parts.values()))


def encode_view(shot: Shot, view: str, *, width: int, quality: int) -> bytes:
    """Draw one result as the other sinks do, as a JPEG at most ``width`` columns wide."""
    picture = render(shot.frame.image, shot.result, view=view, legend=False)
    return _encode(".jpg", _fit(picture, width * (2 if view == "both" else 1)), quality)


def encode_labels(shot: Shot) -> bytes:
    """Give the label map at the frame's own size as a PNG of class ids; 255 is void."""
    return _encode(".png", shot.result.labels, 1)


def shrink(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], width: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make a frame and its labels at most ``width`` columns wide; both stay of one size."""
    small = _fit(image, width)
    if small.shape == image.shape:
        return image, labels
    cv2 = import_cv2()
    size = small.shape[1], small.shape[0]
    fitted = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return small, np.asarray(fitted, np.uint8)


def _fit(picture: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    if picture.shape[1] <= width:
        return picture
    cv2 = import_cv2()
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _encode(suffix: str, picture: NDArray[np.uint8], quality: int) -> bytes:
    cv2 = import_cv2()
    option = cv2.IMWRITE_JPEG_QUALITY if suffix == ".jpg" else cv2.IMWRITE_PNG_COMPRESSION
    data = encode(suffix, picture, [option, quality])
    if data is None:
        raise SinkError(
            f"a picture of {picture.shape[1]}x{picture.shape[0]} cannot be encoded",
            fix="Give smaller frames.",
        )
    return data
