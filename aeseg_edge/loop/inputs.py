"""Opening the sources of a loop: cameras side by side, none for ever, recordings as they come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from aeseg_edge.errors import SourceError
from aeseg_edge.loop.feed import OPEN_AT_ONCE, Input
from aeseg_edge.sources.base import Absent, Frame, Source
from aeseg_edge.sources.registry import files_of, is_live, name_of
from aeseg_edge.support.text import as_text
from aeseg_edge.support.threads import Worker

_log = logging.getLogger(__name__)

_TICK = 0.05
_LONGEST = 20.0
"""Seconds in which one source of a loop has to be open."""
_GRACE = 5.0
"""Seconds that the other cameras have once one is open; they may come later."""


class Pending(Source):
    """A source that a thread of its own is opening, and that may not be there yet.

    Given to a loop as it is, it stands for a camera: what was wrong is its first loss.

    Args:
        name: Until it is open.
        opens: Opens it.

    Attributes:
        source: Once it is open.
        problem: Why it is not.
    """

    live = True

    def __init__(self, name: str, opens: Callable[[], Source]) -> None:
        self.name = name
        self.source: Source | None = None
        self.problem: BaseException | None = None
        self._opens = opens
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        Worker(self._open, f"open {name}").start()

    def wait(self, timeout: float) -> bool:
        """Wait until it is open, or cannot be opened."""
        return self._done.wait(timeout)

    def __iter__(self) -> Iterator[Frame]:
        """Wait for it, then give its frames; raise what was wrong."""
        self._done.wait()
        if self.problem is not None:
            raise self.problem
        if self.source is not None:
            yield from self.source

    def interrupt(self) -> None:
        """Wake up whoever waits for it."""
        self._done.set()
        if self.source is not None:
            self.source.interrupt()

    def close(self) -> None:
        """Close it, also where it is opened only later."""
        with self._lock:
            self._closed = True
        if self.source is not None:
            self.source.close()

    def _open(self) -> None:
        try:
            source = self._opens()
        except BaseException as error:
            self.problem = error
        else:
            with self._lock:
                self.source, late = source, self._closed
            if late:
                source.close()
        self._done.set()


class Later(Source):
    """A recording that was opened once to see what it is, and is opened again in its turn.

    Args:
        source: Open; closed here.
        opens: Opens it again.
    """

    def __init__(self, source: Source, opens: Callable[[], Source]) -> None:
        source.close()
        self.name, self.fps, self.total = source.name, source.fps, source.total
        self._opens = opens
        self._source: Source | None = None

    def __iter__(self) -> Iterator[Frame]:
        """Open it, give its frames, close it."""
        with self._opens() as source:
            self._source = source
            yield from source

    def interrupt(self) -> None:
        """Wake up a thread that waits inside."""
        if self._source is not None:
            self._source.interrupt()

    def close(self) -> None:
        """Close what is open."""
        if self._source is not None:
            self._source.close()


def open_inputs(
    uris: Sequence[str],
    opens: Callable[[str], Source],
    *,
    stop: threading.Event | None = None,
    duration: float | None = None,
) -> list[Input]:
    """Open the sources of a loop, under names unlike each other.

    Where there are several, one that does not answer does not keep the others from running: a
    camera is opened again and again by the loop, a file that cannot be read is left out; both
    are said. With many recordings each is looked at and closed until its turn comes.

    Args:
        uris: See ``aeseg_edge.sources``.
        opens: Opens one of them.
        stop: Ends the wait; what is not open then is given as it is.
        duration: Seconds after which the run ends.

    Raises:
        SourceError: If none can be opened, or one is written wrong or not there.
    """
    waiting = _Wait(stop, duration)
    cameras = {at: _begin(uri, opens) for at, uri in enumerate(uris) if is_live(uri)}
    inputs: list[Input] = []
    problems: list[SourceError] = []
    ready = 0
    try:
        for at, uri in enumerate(uris):
            pending = cameras.get(at) or _begin(uri, opens)
            source: Source = pending
            if waiting.for_it(pending, camera=at in cameras):
                problem, opened = pending.problem, pending.source
                if opened is not None:
                    source, ready = opened, ready + 1
                    waiting.one_is_open = waiting.one_is_open or opened.live
                elif not isinstance(problem, SourceError):
                    raise problem or SourceError(f"{uri} is not open", fix="Try again.")
                elif len(uris) == 1 or not (isinstance(problem, Absent) or files_of(uri)):
                    raise problem
                else:
                    problems.append(problem)
                    if at not in cameras:
                        _log.warning("%s is skipped: %s", as_text(uri), as_text(str(problem)))
                        continue
            elif not waiting.stopped:
                late = f"{pending.name} is not open after {waiting.seconds:.0f} s"
                problems.append(SourceError(late, fix="Check the camera, the network or the disk."))
                if at not in cameras:
                    raise problems[-1]
            again = partial(opens, uri)
            if len(uris) > OPEN_AT_ONCE and not source.live and files_of(uri):
                source = Later(source, again)
            name, count = source.name, 2
            while name in {each.name for each in inputs}:
                name, count = f"{source.name} ({count})", count + 1
            inputs.append(Input(source, name, again if source.live else None))
        if problems and not ready and not waiting.stopped:
            raise problems[0]
    except BaseException:
        for each in [*cameras.values(), *(each.source for each in inputs)]:
            each.close()
        raise
    return inputs


def _begin(uri: str, opens: Callable[[str], Source]) -> Pending:
    return Pending(name_of(uri), partial(opens, uri))


class _Wait:
    """How long sources are waited for."""

    def __init__(self, stop: threading.Event | None, duration: float | None) -> None:
        self._stop = stop
        self._began = time.monotonic()
        self._duration = duration
        self.one_is_open = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def stopped(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    def for_it(self, pending: Pending, *, camera: bool) -> bool:
        """Wait for a source; False where that takes too long, or the run is to end."""
        since = self.seconds
        while not pending.wait(_TICK):
            longest = _LONGEST if not camera or not self.one_is_open else since + _GRACE
            # A recording, perhaps on a slow disk, is what the run is about.
            late = camera and self.seconds > longest
            over = self._duration is not None and self.seconds > self._duration
            if self.stopped or late or over:
                return False
        return True
