"""When a live source counts as stalled, and when it is opened again.

A state machine without threads: it is told what happens and asked what to do.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from aeseg_edge.errors import UsageError
from aeseg_edge.support.options import option, positive, seconds


@dataclass(frozen=True)
class Patience:
    """How long a live source is waited for. Seconds.

    Attributes:
        stall: Longest time between two frames.
        opening: Longest time from opening to the first frame: RTSP waits for a key frame.
        backoff: Wait before the first reconnect; doubled each time.
        most: Longest wait.
        jitter: Share of a wait that is drawn at random, so that the many cameras of one
            switch do not all come back in the same moment ("equal jitter": Brooker,
            Exponential Backoff and Jitter, AWS Architecture Blog, 2015).
        settled: A source that ran for this long since it was opened starts again with the
            first wait.
        restarts: Reconnects within ``window`` after which it is given up; None never does.
        window: See ``restarts``.
    """

    stall: float = option(
        5.0,
        parse=seconds,
        metavar="S",
        help="seconds without a frame after which a camera is opened again (default {default})",
    )
    opening: float = 15.0
    backoff: float = 0.5
    most: float = 30.0
    jitter: float = 0.5
    settled: float = 10.0
    restarts: int | None = option(
        None,
        parse=positive,
        metavar="N",
        help="give a camera up after N reconnects in ten minutes (default: never)",
    )
    window: float = 600.0

    def __post_init__(self) -> None:
        """Refuse times that would make the loop spin."""
        times = (self.stall, self.opening, self.backoff, self.most, self.settled, self.window)
        if min(times) <= 0 or not 0 <= self.jitter <= 1:
            raise UsageError(
                f"{self} has a time that is not above 0, or a jitter outside 0..1",
                fix="Use seconds above 0, such as a stall time-out of 5.",
            )


class Watchdog:
    """One live source's state (one of ``aeseg_edge.sinks.counters.STATES``). Its owner locks it."""

    def __init__(self, patience: Patience, now: float, chance: random.Random) -> None:
        self._patience = patience
        self._chance = chance
        self._since = now
        self._opened = now
        self._wait = patience.backoff
        self._due = now
        self._restarts: deque[float] = deque()
        self.state = "opening"
        self.stalls = 0
        self.reconnects = 0

    def frame(self, now: float) -> None:
        """A frame came."""
        self.state = "running"
        self._since = now
        if now - self._opened >= self._patience.settled:
            self._wait = self._patience.backoff

    def is_stalled(self, now: float) -> bool:
        """Say whether no frame came for too long; counted, and true once a stall."""
        limits = {"running": self._patience.stall, "opening": self._patience.opening}
        if self.state not in limits or now - self._since <= limits[self.state]:
            return False
        self.stalls += 1
        self.state = "stalled"
        return True

    def lost(self, now: float) -> bool:
        """Note that the source ended, failed or stalled, and choose when to open it again.

        False if it has been opened too often within the restart window: it is given up.
        """
        while self._restarts and now - self._restarts[0] > self._patience.window:
            self._restarts.popleft()
        most = self._patience.restarts
        if most is not None and len(self._restarts) >= most:
            self.state = "failed"
            return False
        wait = self._wait * (1 - self._patience.jitter * self._chance.random())
        self._wait = min(2 * self._wait, self._patience.most)
        self._due = now + wait
        self.state = "waiting"
        return True

    def is_due(self, now: float) -> bool:
        """Say whether the wait is over."""
        return self.state == "waiting" and now >= self._due

    def opening(self, now: float) -> None:
        """The source is being opened again."""
        # Without a limit nobody asks how many there were: days of them are not kept.
        if self._patience.restarts is not None:
            self._restarts.append(now)
        self.reconnects += 1
        self.state = "opening"
        self._since = self._opened = now

    def ended(self) -> None:
        """The source is at its end, and that is right."""
        self.state = "ended"
