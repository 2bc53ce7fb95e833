"""Mailboxes between the threads of a loop: the newest item, or a queue that loses none."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Lane:
    """One sender's way into a mailbox, with room for so many items.

    When it is full, ``newest`` replaces the oldest item and counts it as dropped; else the sender
    waits.
    """

    room: int = 1
    newest: bool = True


class Mailbox(Generic[Item]):
    """Items from several senders, a lane each, for one taker, who serves the senders in turn."""

    def __init__(
        self, lanes: Sequence[Lane], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lanes = tuple(lanes)
        self._clock = clock
        self._changed = threading.Condition()
        self._items: list[deque[tuple[float, Item]]] = [deque() for _ in lanes]
        self._dropped = [0] * len(lanes)
        self._next = 0
        self._closed = False
        self._lost_wakeups = 0

    def put(
        self, item: Item, lane: int = 0, *, cancelled: Callable[[], bool] | None = None
    ) -> bool:
        """Leave an item; waits only in a lane that loses none.

        ``cancelled`` is asked while waiting. False if the mailbox is closed or the sender gave up:
        the item is not in it, and counts as dropped.
        """
        rule, items = self._lanes[lane], self._items[lane]
        with self._changed:
            while not self._closed and len(items) >= rule.room and not rule.newest:
                # The time-out is for `cancelled`; room comes with a notification.
                self._changed.wait(0.1)
                if cancelled is not None and cancelled():
                    break
            if self._closed or (len(items) >= rule.room and not rule.newest):
                self._dropped[lane] += 1
                return False
            if len(items) >= rule.room:
                items.popleft()
                self._dropped[lane] += 1
            items.append((self._clock(), item))
            self._changed.notify_all()
        return True

    def take(self, timeout: float) -> tuple[int, Item] | None:
        """Take the oldest item of the lane whose turn it is, with the lane.

        Lanes are served round robin (the one after the last served goes first), so that one fast
        sender cannot starve the others. None when there is none in time, or never will be.
        """
        deadline = self._clock() + timeout
        with self._changed:
            while not any(self._items):
                left = deadline - self._clock()
                if self._closed or left <= 0:
                    return None
                if not self._changed.wait(left):
                    self._check_wakeup(timeout)
            count = len(self._lanes)
            order = ((self._next + step) % count for step in range(count))
            lane = next(lane for lane in order if self._items[lane])
            self._next = (lane + 1) % count
            item = self._items[lane].popleft()[1]
            self._changed.notify_all()
        return lane, item

    def close(self, *, discard: bool = False) -> None:
        """Take no more items; what is inside can still be taken, or is dropped and counted."""
        with self._changed:
            self._closed = True
            if discard:
                for lane, items in enumerate(self._items):
                    self._dropped[lane] += len(items)
                    items.clear()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether it is closed; items may be left."""
        return self._closed

    @property
    def dropped(self) -> tuple[int, ...]:
        """Items that were replaced or discarded, by lane."""
        with self._changed:
            return tuple(self._dropped)

    @property
    def lost_wakeups(self) -> int:
        """Times the taker slept to its time-out beside an item that had waited for half of it."""
        return self._lost_wakeups

    def _check_wakeup(self, timeout: float) -> None:
        """Count a notification that did not arrive: a fault of this class, which a soak finds."""
        oldest = min((items[0][0] for items in self._items if items), default=None)
        if oldest is not None and self._clock() - oldest > timeout / 2:
            self._lost_wakeups += 1


class Worker:
    """A daemon thread and whether its work is done.

    Until CPython 3.13 a KeyboardInterrupt inside ``Thread.join`` with a time-out, or inside
    ``is_alive``, marks a thread that still runs as ended: whoever waits for it once more does
    not wait. An event has no such fault; the thread itself is asked only after its work is done.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = work
        self._ended = threading.Event()
        self._begun = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._begun = True
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the work is done."""
        return self._ended.is_set()

    def wait(self, timeout: float | None) -> bool:
        """Wait so many seconds until the work is done, or without limit (None).

        False if it is still under way; True also where it never began.
        """
        if not self._begun:
            return True
        if not self._ended.wait(timeout):
            return False
        self._thread.join()
        return True

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended.set()
