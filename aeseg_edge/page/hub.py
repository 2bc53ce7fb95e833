"""The newest result, and who waits for it.

The loop puts results in and goes on at once. Nothing is encoded unless somebody waits, each
result at most once a view however many wait, and on a thread of its own. A viewer asks for the
next picture when it has the last one: one that is slow or stuck gets fewer pictures, newest
first, and nobody else notices.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aeseg_edge.errors import AesegError, UsageError
from aeseg_edge.page.encoding import Scale, Shot, encode_labels, encode_packet, encode_view
from aeseg_edge.support.text import without_password

if TYPE_CHECKING:
    from aeseg_edge.bundle.codebook import Codebook
    from aeseg_edge.segment.result import Segmentation
    from aeseg_edge.sources.base import Frame

_log = logging.getLogger(__name__)

HISTORY = 300
"""Results whose times are kept for a page that is opened later."""

_KEPT = 12
_WATCHED = 3.0
_MOST_VIEWERS = 256
_RATE_SPAN = 2.0


class Hub:
    """Between the loop's thread, which puts, and the server's, which waits.

    ``width``: most columns of pictures; ``quality``: of JPEGs; ``fps``: most packets a second, a
    faster source is thinned out; ``codebook`` gives the one in use.
    """

    def __init__(
        self,
        *,
        width: int = 960,
        quality: int = 82,
        fps: float = 30.0,
        codebook: Callable[[], Codebook] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.encoded = 0
        self._width, self._quality, self._period = width, quality, 1.0 / fps
        self._codebook = codebook
        self._clock = clock
        self._lock = threading.Lock()
        self._newest: Shot | None = None
        self._arrivals: deque[float] = deque(maxlen=512)
        self._times: deque[tuple[float, float | None, float | None]] = deque(maxlen=HISTORY)
        self._began = clock()
        self._asked: dict[str, float] = {}
        self._closed = False
        # From here on the server's thread alone.
        self._server: asyncio.AbstractEventLoop | None = None
        self._bell: asyncio.Event | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="aeseg-encode")
        self._tasks: dict[str, tuple[Shot, asyncio.Future[bytes]]] = {}
        self._failed: dict[str, int] = {}
        self._complained = False
        self._sent: deque[Shot] = deque(maxlen=_KEPT)
        self._due: dict[str, float] = {}
        self._scale = Scale()

    # --- the loop's side ---

    def put(self, frame: Frame, result: Segmentation) -> None:
        """Take a result. Never waits, never raises."""
        now = self._clock()
        with self._lock:
            number = 1 if self._newest is None else self._newest.number + 1
            self._newest = Shot(number, frame, result)
            self._arrivals.append(now)
            self._times.append((now, result.milliseconds.get("total"), result.frame_age))
        self._ring()

    @property
    def viewers(self) -> int:
        """Pages that asked for a frame in the last three seconds."""
        now = self._clock()
        return sum(now - when < _WATCHED for when in list(self._asked.values()))

    def close(self) -> None:
        """Send everybody away who waits; nothing is encoded afterwards."""
        self._closed = True
        self._ring()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ring(self) -> None:
        server = self._server
        if server is None:
            return
        try:
            server.call_soon_threadsafe(self._wake)
        except RuntimeError:
            # The server has just stopped; nobody is left to wake.
            self._server = None

    # --- the server's side ---

    def attach(self, server: asyncio.AbstractEventLoop) -> None:
        """Tell the hub which event loop waits; called once."""
        self._bell = asyncio.Event()
        self._server = server

    @property
    def closed(self) -> bool:
        """True once the run has ended."""
        return self._closed

    @property
    def newest(self) -> Shot | None:
        """The last result, None before the first."""
        with self._lock:
            return self._newest

    @property
    def rate(self) -> float:
        """Results a second over the last two seconds."""
        with self._lock:
            arrivals = list(self._arrivals)
        recent = [t for t in arrivals if self._clock() - t <= _RATE_SPAN]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / max(recent[-1] - recent[0], 1e-6)

    @property
    def silent(self) -> float:
        """Seconds since the last result, or since the beginning where there was none."""
        with self._lock:
            last = self._arrivals[-1] if self._arrivals else self._began
        return max(0.0, self._clock() - last)

    def history(self) -> list[list[float | None]]:
        """Seconds ago, total milliseconds, frame age in milliseconds; oldest first."""
        now = self._clock()
        with self._lock:
            times = list(self._times)
        return [
            [
                round(now - when, 3),
                None if total is None else round(total, 2),
                None if age is None else round(1e3 * age, 2),
            ]
            for when, total, age in times
        ]

    def sent(self, number: int) -> Shot | None:
        """Find a result that was sent a moment ago; the newest one where it is gone."""
        found = next((shot for shot in self._sent if shot.number == number), None)
        return found or self.newest

    async def packet(self, after: int, *, timeout: float, viewer: str = "") -> bytes | None:
        """Wait for a result newer than ``after`` and give its packet; None where none comes.

        Raises AesegError if none that came in time can be encoded, as ``view`` does.
        """

        def encode(taken: Shot) -> bytes:
            book = None if self._codebook is None else self._codebook()
            packet = encode_packet(
                taken, self._scale, width=self._width, quality=self._quality, codebook=book
            )
            self._sent.append(taken)
            return packet

        self._count(viewer)
        found = await self._next("packet", after, timeout, encode)
        self._count(viewer)
        return None if found is None else found[1]

    async def view(
        self, view: str, after: int | None, *, timeout: float
    ) -> tuple[int, bytes] | None:
        """Wait likewise for a picture as the other sinks draw it, and its number.

        Without ``after`` the newest result is drawn, the first one waited for.
        """
        if after is None:
            newest = self.newest
            after = 0 if newest is None else newest.number - 1

        def encode(taken: Shot) -> bytes:
            return encode_view(taken, view, width=self._width, quality=self._quality)

        found = await self._next(view, after, timeout, encode)
        return None if found is None else (found[0].number, found[1])

    async def labels(self) -> bytes | None:
        """Give the newest label map as a PNG, None before the first result."""
        shot = self.newest
        if shot is None or self._closed:
            return None
        return (await self._shared("labels", shot, shot.number - 1, encode_labels))[1]

    def _count(self, viewer: str) -> None:
        now = self._clock()
        if len(self._asked) >= _MOST_VIEWERS:
            kept = {name: when for name, when in self._asked.items() if now - when < _WATCHED}
            self._asked = kept if len(kept) < _MOST_VIEWERS else {}
        self._asked[viewer] = now

    async def _newer(self, after: int, timeout: float) -> Shot | None:
        """Wait for a result after one."""
        assert self._bell is not None
        until = self._clock() + timeout
        while not self._closed:
            shot = self.newest
            left = until - self._clock()
            if shot is not None and shot.number > after:
                return shot
            if left <= 0:
                return None
            bell = self._bell
            try:
                await asyncio.wait_for(bell.wait(), left)
            except asyncio.TimeoutError:
                return None
        return None

    async def _next(
        self, kind: str, after: int, timeout: float, encode: Callable[[Shot], bytes]
    ) -> tuple[Shot, bytes] | None:
        """Wait for a result after one that can be encoded: one that cannot is stepped over."""
        until = self._clock() + timeout
        while True:
            shot = await self._newer(after, until - self._clock())
            if shot is None:
                return None
            try:
                return await self._shared(kind, shot, after, encode)
            except AesegError:
                after = max(after, self._failed.get(kind, 0))
                newer = await self._newer(after, until - self._clock())
                if not self._closed and (newer is None or self._clock() >= until):
                    raise

    async def _shared(
        self, kind: str, shot: Shot, after: int, encode: Callable[[Shot], bytes]
    ) -> tuple[Shot, bytes]:
        """Encode once for all who wait; what is there already, or begun, is good enough."""
        known = self._tasks.get(kind)
        if known is None or known[0].number <= after or known[1].cancelled():
            wait = self._due.get(kind, 0.0) - self._clock()
            if wait > 0:
                await asyncio.sleep(wait)
                known = self._tasks.get(kind)
                shot = self.newest or shot
            if known is None or known[0].number <= after or known[1].cancelled():
                self._due[kind] = self._clock() + self._period
                self.encoded += 1
                loop = asyncio.get_running_loop()
                known = shot, loop.run_in_executor(self._pool, encode, shot)
                # Where nobody waits any more, nobody looks at what went wrong.
                known[1].add_done_callback(lambda done: done.cancelled() or done.exception())
                self._tasks[kind] = known
        try:
            return known[0], await asyncio.shield(known[1])
        except Exception as error:
            # Out of the way: whoever asks next may get a newer one.
            if self._tasks.get(kind) is known:
                del self._tasks[kind]
                self._failed[kind] = known[0].number
                level = logging.DEBUG if self._complained else logging.WARNING
                self._complained = True
                _log.log(level, "the live page leaves frames out: %s", error)
            raise

    def _wake(self) -> None:
        """Ring the bell: all who wait go on, and a new bell is hung up for the next result."""
        bell, self._bell = self._bell, asyncio.Event()
        if bell is not None:
            bell.set()


class Hubs:
    """One hub a source; the first source's is there from the beginning."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._first = Hub(**options)
        self._by_source: dict[str, Hub] = {}
        self._server: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def put(self, frame: Frame, result: Segmentation) -> None:
        """Take a result. Never waits, never raises."""
        hub = self._by_source.get(frame.source)
        if hub is None:
            hub = Hub(**self._options) if self._by_source else self._first
            if hub is not self._first and self._server is not None:
                hub.attach(self._server)
            # A copy: the server's thread may be looking through the old one.
            self._by_source = {**self._by_source, frame.source: hub}
            if self._closed:
                hub.close()
        hub.put(frame, result)

    def attach(self) -> None:
        """Tell every hub which event loop waits; called in it, once."""
        self._server = asyncio.get_running_loop()
        for hub in {self._first, *self._by_source.values()}:
            hub.attach(self._server)

    def close(self) -> None:
        """Send everybody away who waits."""
        self._closed = True
        for hub in {self._first, *self._by_source.values()}:
            hub.close()

    @property
    def by_source(self) -> dict[str, Hub]:
        """Hubs by the source's name as it is shown, in the order of their first results."""
        return {without_password(name): hub for name, hub in self._by_source.items()}

    def find(self, source: str | None) -> Hub:
        """The hub of a source, the first one's without a name; UsageError if there is none."""
        if source is None:
            return self._first
        found = self.by_source
        if source not in found:
            raise UsageError(
                f"there is no source {source!r}", fix=f"Use one of {', '.join(found) or 'none'}."
            )
        return found[source]

    @property
    def viewers(self) -> int:
        """Pages that asked for a frame in the last three seconds, of any source."""
        return sum(hub.viewers for hub in {self._first, *self._by_source.values()})

    @property
    def encoded(self) -> int:
        """Pictures encoded, of all sources."""
        return sum(hub.encoded for hub in {self._first, *self._by_source.values()})
