"""Feed: one source on a thread of its own, watched, and opened again when it is lost."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from aeseg_edge.errors import AesegError, SourceError
from aeseg_edge.loop.watchdog import Patience, Watchdog
from aeseg_edge.sources.base import Frame, Source
from aeseg_edge.support.threads import Worker

_log = logging.getLogger(__name__)

_MOST_STUCK = 2
"""Threads that may hang in a driver at once; a third opening waits until one returns."""


OPEN_AT_ONCE = 4
"""Recordings of one loop that are open at the same time: each takes about 50 MB at 720p."""


@dataclass(frozen=True)
class Input:
    """One source of a loop.

    Attributes:
        source: Open.
        name: What its frames are named by; the source's own name when empty.
        reopen: Opens it again after it was lost; None for what ends once: files.
    """

    source: Source
    name: str = ""
    reopen: Callable[[], Source] | None = None


@dataclass(frozen=True)
class Captured:
    """A frame (its index counts on over reconnects) and the opening of the source it came from.

    ``session`` is 0 before the first reconnect, 1 after it: smoothing does not reach across.
    """

    frame: Frame
    session: int


class Feed:
    """Takes frames of one source as they come and hands them on.

    The owner calls ``check`` a few times a second. A thread that hangs in a driver is left
    behind: what it gives when it wakes up is thrown away, never passed off as new. ``put`` takes a
    frame, and is False when no more are wanted; ``most`` frames end the feed.
    """

    def __init__(
        self,
        given: Input,
        put: Callable[[Captured, Callable[[], bool]], bool],
        *,
        patience: Patience,
        most: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self.name = given.name or given.source.name
        self.live = given.source.live
        self.error: AesegError | None = None
        """What ended the feed; None while it runs, and after a good end."""
        self.started = False
        self._reopen = given.reopen if given.source.live else None
        self._source: Source | None = given.source
        self._put = put
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._watchdog = Watchdog(patience, clock(), chance or random.Random())
        self._session = 0
        self._workers: list[Worker] = []
        self._handing_over = False
        self._stopped = False
        self._frames = 0
        self._size: tuple[int, int] | None = None
        self._problem: str | None = None
        self._crash: BaseException | None = None

    def start(self) -> None:
        """Begin to capture."""
        with self._lock:
            self.started = True
            self._spawn()

    @property
    def done(self) -> bool:
        """Whether no frame will come any more."""
        return self._watchdog.state in ("ended", "failed")

    @property
    def figures(self) -> tuple[str, int, int, int, tuple[int, int] | None, str | None]:
        """State, frames, reconnects, stalls, size and last problem, all of one moment."""
        with self._lock:
            dog = self._watchdog
            more = self._size, self._problem
            return dog.state, self._frames, dog.reconnects, dog.stalls, *more

    def check(self) -> None:
        """Notice a stall, and open the source again when it is time."""
        with self._lock:
            if self._crash is not None:
                crash, self._crash = self._crash, None
                raise crash
            now = self._clock()
            watched = self._reopen is not None and not self._stopped and not self._handing_over
            if watched and self._watchdog.is_stalled(now):
                stuck, self._source = self._source, None
                self._leave("it gives no frame")
                if stuck is not None:
                    stuck.interrupt()
            if self._reopen is None or self._stopped or not self._watchdog.is_due(now):
                return
            self._workers = [worker for worker in self._workers if not worker.ended]
            if len(self._workers) < _MOST_STUCK:
                self._watchdog.opening(now)
                self._spawn()

    def stop(self) -> None:
        """Capture no more; a frame under way is thrown away."""
        with self._lock:
            self._stopped = True
            self._session += 1
            if not self.done:
                self._watchdog.ended()
            source, self._source = self._source, None
        if source is None:
            return
        if not self._workers:
            source.close()
        # A source that is being read is closed by its own thread; this only wakes it up.
        source.interrupt()

    def join(self, timeout: float) -> None:
        """Wait for the threads, so that devices are free; those that hang are left."""
        for worker in self._workers:
            if not worker.wait(timeout):
                _log.warning("%s: the driver hangs; its thread is left behind", self.name)

    def _spawn(self) -> None:
        source, self._source = self._source, None
        worker = Worker(partial(self._capture, self._session, source), f"capture {self.name}")
        self._workers.append(worker)
        worker.start()

    def _capture(self, session: int, source: Source | None) -> None:
        """Run one opening of the source to its end; the body of a thread."""
        try:
            if source is None:
                assert self._reopen is not None
                source = self._reopen()
            try:
                with self._lock:
                    current = self._is_current(session)
                    self._source = source if current else self._source
                if current:
                    self._read(session, source)
            finally:
                source.close()
            self._end(session, None)
        except (AesegError, OSError) as error:
            self._end(session, error)
        except BaseException as error:
            if self._reopen is not None and isinstance(error, Exception):
                # A fault in one camera's driver or decoder: the other cameras go on.
                _log.debug("%s: a fault in the source", self.name, exc_info=True)
                self._end(session, error)
                return
            # A fault in a source of somebody's own: the loop raises it where the caller sees it.
            with self._lock:
                self._crash = error

    def _read(self, session: int, source: Source) -> None:
        if self._most == 0:
            return
        for frame in source:
            with self._lock:
                if not self._is_current(session):
                    return
                self._watchdog.frame(self._clock())
                # Of a recording the number is its own; a camera's goes on over reconnects.
                index = self._frames if self.live else frame.index
                numbered = replace(frame, index=index, source=self.name)
                self._frames += 1
                self._size = frame.image.shape[1], frame.image.shape[0]
                # A sender that waits for room is not stalled.
                self._handing_over = True
            taken = self._put(Captured(numbered, session), lambda: not self._is_current(session))
            with self._lock:
                if not self._is_current(session):
                    return
                self._handing_over = False
                self._watchdog.frame(self._clock())
            if not taken or self._frames == self._most:
                return

    def _is_current(self, session: int) -> bool:
        return session == self._session and not self._stopped

    def _end(self, session: int, error: Exception | None) -> None:
        """Note that a source ended or failed; called by its own thread."""
        with self._lock:
            if not self._is_current(session):
                return
            self._source = None
            if error is None:
                self._watchdog.ended()
            elif self._reopen is None:
                self._fail(error)
            else:
                self._leave(_text(error))

    def _leave(self, problem: str) -> None:
        """Give up one opening, under the lock; whatever it still gives is old."""
        self._session += 1
        self._problem = problem
        if self._watchdog.lost(self._clock()):
            _log.warning("%s is lost and will be opened again: %s", self.name, problem)
        else:
            self._fail(
                SourceError(
                    f"{self.name} was lost again and again: {problem}",
                    fix="Check its cable, power and network; --restarts allows more.",
                )
            )

    def _fail(self, error: Exception) -> None:
        self._problem = _text(error)
        self._watchdog.state = "failed"
        self.error = (
            error
            if isinstance(error, AesegError)
            else SourceError(f"{self.name} cannot be read: {error}", fix="Check the disk.")
        )


def _text(error: Exception) -> str:
    if isinstance(error, AesegError):
        return error.problem
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
