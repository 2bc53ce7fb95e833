"""Time of what plays: a video lasts as long as what it shows."""

from __future__ import annotations

import logging
from collections.abc import Callable

from aeseg_edge.sinks.counters import LoopCounters
from aeseg_edge.sources.base import Frame

_log = logging.getLogger(__name__)

DEFAULT_FPS = 25.0
_CAMERA_FPS = 30.0
"""Of what has times and states no rate: as fast as nearly all cameras."""
_LONGEST = 60.0
_EARLY = 0.2


class Pace:
    """Gives frames their slots in a stream of a constant rate, ``fps`` where one is stated.

    A gap is filled by repeating the picture before it, and what comes faster than the rate is
    left out. Recordings have their own time (``timestamp``), cameras the time of capture;
    pictures take one slot each.
    """

    def __init__(self, name: str, fps: float | None) -> None:
        self.fps = fps or DEFAULT_FPS
        self.left_out = self.taken = 0
        self._stated = bool(fps)
        self._name = name
        self._counters: Callable[[], LoopCounters] | None = None
        self._timed = True
        self._last: tuple[str | None, float | None] = None, None
        self._now = 0.0
        self._next = 0

    def watch(self, counters: Callable[[], LoopCounters]) -> None:
        """Keep what tells cameras from recordings without times."""
        self._counters = counters

    def repeats(self, frame: Frame) -> int | None:
        """Say how often the picture before is repeated first; None leaves this one out."""
        if not self._next:
            self._begin(frame)
            return 0
        step, (recording, before) = 1 / self.fps, self._last
        at = self._moment(frame)
        since = step if at is None or before is None else at - before
        stands = since < 0 or (since == 0 and frame.timestamp is not None)
        if frame.recording != recording or stands:
            since = step
        elif since > max(_LONGEST, 2 * step):
            _log.warning(
                "%s: no frame for %.0f s: this pause is left out of the video", self._name, since
            )
            since = step
        self._last = frame.recording, at
        self._now += since
        ahead = round(self._now * self.fps) - self._next
        if ahead < -max(1, round(_EARLY * self.fps)):
            self.left_out += 1
            return None
        self._next += max(0, ahead) + 1
        self.taken += 1
        return max(0, ahead)

    def report(self) -> None:
        """Say at the end what was left out; a rate that is a little off says nothing."""
        if 20 * self.left_out > self.taken:
            _log.warning(
                "%s: %d of %d frames are left out: they came faster than %g a second",
                self._name,
                self.left_out,
                self.left_out + self.taken,
                self.fps,
            )

    def _begin(self, frame: Frame) -> None:
        if self._counters is not None:
            live = {each.name: each.live for each in self._counters().sources}
            self._timed = live.get(frame.source, True)
        at = self._moment(frame)
        if at is not None and not self._stated:
            self.fps = _CAMERA_FPS
        self._last = frame.recording, at
        self._next = self.taken = 1

    def _moment(self, frame: Frame) -> float | None:
        if frame.timestamp is not None:
            return frame.timestamp
        timed = self._timed and frame.path is None and frame.captured > 0
        return frame.captured if timed else None
