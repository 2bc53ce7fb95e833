"""One OpenCV capture, read so that nothing wrong passes for a frame.

What OpenCV and the FFmpeg inside it do, measured with 4.6 (Debian's) to 5.0:

- One ``grab`` fails for each packet that cannot be decoded, and the next ones go on; at the end it
  fails for ever. The number of frames that a file states is no more than a hint: files that were
  trimmed, have a longer sound or a variable rate state others.
- A video that was filmed upright is turned by some versions, by others not (4.11), or the wrong
  way round (4.6).
- From 4.13 on (swscale 9) interlaced pictures are not converted: ``retrieve`` says that all is
  well and gives memory that nobody wrote. A line on standard error alone tells.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError
from aeseg_edge.support.require import import_cv2

_log = logging.getLogger(__name__)

_MISSES = (256, 4096)
"""Packets in a row that cannot be decoded and are still passed over: at least, at most."""
_PATIENCE = 10.0
"""Seconds that passing over them may take: behind an address each may wait for the network."""
_SURE = 2
"""First pictures of which is asked whether they were converted."""
_ROWS = 24
"""Rows that tell whether a picture equals the one before."""
_AGAIN = 32
"""Equal pictures in a row after which it is asked once more."""
_NOT_CONVERTED = b"interlaced to progressive"
_ERRORS = 16
"""FFmpeg's AV_LOG_ERROR: a lower level hides the line."""
_STDERR = threading.Lock()


class Decoder:
    """Frames of an open capture: upright, in order, with the stream's own time.

    Args:
        name: For messages.
        capture: Open; released with this.
        recorded: What cannot be decoded is passed over; a camera's first failure is its end.
        ffmpeg: It is FFmpeg that decodes.

    Attributes:
        fps: As stated; None where it is not.
        stated: Frames, likewise; see above.
        index: Frames that were grabbed.
        lost: Packets that could not be decoded, with good ones after them.
        seconds: Time of the last frame grabbed, from the first; None where nothing tells.
    """

    def __init__(self, name: str, capture: Any, *, recorded: bool, ffmpeg: bool) -> None:
        cv2 = import_cv2()
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self.name = name
        self.fps = rate if 0 < rate < 1000 else None
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if recorded else 0
        self.stated = count if 0 < count < 1 << 40 else None
        self.index = self.lost = 0
        self.seconds: float | None = None
        self._capture = capture
        self._recorded = recorded
        self._turn = _turn(capture) if recorded else None
        self._doubtful = ffmpeg and _leaves_interlaced(name)
        self._start: float | None = None
        self._step = 1 / self.fps if self.fps else None
        self._steps: Counter[int] = Counter()
        self._seen = self._equal = 0
        self._rows = b""

    def grab(self) -> bool:
        """Go to the next frame that can be decoded; False at the end."""
        least, most = _MISSES
        left = min(most, max(least, (self.stated or 0) - self.index)) if self._recorded else 1
        misses, since = 0, time.monotonic()
        while misses < left and time.monotonic() - since <= _PATIENCE:
            if self._capture.grab():
                self.lost += misses
                self.index += 1
                if self._recorded:
                    self._read_time()
                return True
            misses += 1
        return False

    def image(self) -> NDArray[np.uint8] | None:
        """Convert the frame grabbed: uint8 [H, W, C], upright; None where that fails.

        Raises:
            SourceError: If it is interlaced and this OpenCV cannot convert that.
        """
        good, image = self._capture.retrieve() if not self._doubtful else self._retrieve()
        if not good:
            return None
        if image.ndim == 2:
            image = image[..., None]
        return image if self._turn is None else np.asarray(import_cv2().rotate(image, self._turn))

    def read(self) -> NDArray[np.uint8] | None:
        """Give the next picture; None at the end."""
        while self.grab():
            image = self.image()
            if image is not None or not self._recorded:
                return image
            self.lost += 1
        return None

    def release(self) -> None:
        """Release the capture."""
        self._capture.release()

    @property
    def codec(self) -> str:
        """Four characters of what it is coded with, such as AV01."""
        code = int(self._capture.get(import_cv2().CAP_PROP_FOURCC)) & 0xFFFFFFFF
        text = code.to_bytes(4, "little").decode("ascii", "replace")
        return text.strip("\0 ").upper() or "its codec"

    @property
    def gaps(self) -> int:
        """Frames that a steady rate lacks: in some containers damaged ones vanish."""
        usual = self._steps.most_common(1)[0][0] if self._steps else 0
        near = sum(n for step, n in self._steps.items() if abs(step - usual) <= max(2, usual / 10))
        if usual <= 0 or near < 0.9 * sum(self._steps.values()):
            return 0
        wide = [(step, n) for step, n in self._steps.items() if step > max(1.5 * usual, usual + 2)]
        return sum(n * (round(step / usual) - 1) for step, n in wide)

    def _read_time(self) -> None:
        """Read the frame's time; where it does not go on (raw H.264, 4.6's last frames), step."""
        at = float(self._capture.get(import_cv2().CAP_PROP_POS_MSEC)) / 1e3
        if self._start is None or self.seconds is None:
            self._start, self.seconds = at, None if self._step is None and self.index > 1 else 0.0
            return
        at -= self._start
        if at > self.seconds:
            self._step = at - self.seconds
            self._steps[round(self._step * 1e3)] += 1
            self.seconds = at
        elif self._step is not None:
            self.seconds += self._step

    def _retrieve(self) -> tuple[bool, Any]:
        """Convert, and notice where nothing was converted.

        That a picture has not changed may be a sign of it, and costs little to ask again.
        """
        self._seen += 1
        good, image = self._asked() if self._seen <= _SURE else self._capture.retrieve()
        rows = image[:: max(1, len(image) // _ROWS)].tobytes() if good else b""
        self._equal = self._equal + 1 if rows == self._rows else 0
        self._rows = rows
        if self._seen > _SURE and self._equal % _AGAIN == 1:
            good, image = self._asked()
        return good, image

    def _asked(self) -> tuple[bool, Any]:
        (good, image), said = _listening(self._capture.retrieve)
        if _NOT_CONVERTED in said:
            command = (
                f"ffmpeg -i {shlex.quote(self.name)} -vf bwdif=mode=send_frame:deint=interlaced "
                "-c:v libx264 -crf 18 -pix_fmt yuv420p -c:a copy OUT.mp4"
            )
            raise SourceError(
                f"{self.name} is interlaced, which OpenCV {import_cv2().__version__} cannot read",
                fix=f"Make it progressive: {command}."
                if self._recorded
                else "Set the camera or sender to progressive, or use an OpenCV before 4.13.",
            )
        return good, image


def to_channels(name: str, image: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Bring a decoded frame to the channels wanted."""
    if image.shape[2] == channels:
        return image
    if (image.shape[2], channels) == (3, 1):
        cv2 = import_cv2()
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None], np.uint8)
    raise SourceError(
        f"{name} has {image.shape[2]} channels, the bundle wants {channels}",
        fix="Use a bundle that was trained on such footage.",
    )


def _turn(capture: Any) -> int | None:
    """Tell OpenCV to turn nothing, and say how pictures are turned to be upright."""
    cv2 = import_cv2()
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    degrees = int(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 360
    if cv2.__version__.startswith("4.6."):
        degrees = -degrees % 360
    turns = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
    turn: int | None = turns.get(degrees)
    return turn


def _leaves_interlaced(name: str) -> bool:
    """Say whether this OpenCV cannot convert interlaced pictures, so that they are looked for."""
    found = re.search(r"swscale:\s+YES \((\d+)\.", import_cv2().getBuildInformation())
    if found is None or int(found[1]) < 9:
        return False
    level = os.environ.get("OPENCV_FFMPEG_LOGLEVEL", "")
    if re.fullmatch(r"-?\d+", level) and int(level) < _ERRORS:
        _log.warning(
            "%s: OPENCV_FFMPEG_LOGLEVEL=%s hides whether it is interlaced, and interlaced pictures "
            "would be wrong: unset it",
            name,
            level,
        )
    return True


def _listening(call: Callable[[], tuple[bool, Any]]) -> tuple[tuple[bool, Any], bytes]:
    """Make a call and hear what it writes to standard error; what others write there goes on."""
    with _STDERR, tempfile.TemporaryFile() as heard:
        try:
            kept = os.dup(2)
        except OSError:  # Nobody gave this process one.
            return call(), b""
        try:
            os.dup2(heard.fileno(), 2)
            result = call()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        heard.seek(0)
        said = heard.read()
        for line in said.splitlines(keepends=True):
            if _NOT_CONVERTED not in line and b": fmt:" not in line:
                os.write(2, line)
    return result, said
