"""Workers: threads whose end can be waited for again after Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Worker:
    """A daemon thread and whether its work is done.

    Until CPython 3.13 a KeyboardInterrupt inside ``Thread.join`` with a time-out, or inside
    ``is_alive``, marks a thread that still runs as ended: whoever waits for it once more does
    not wait. An event has no such fault; the thread itself is asked only after its work is done.

    Args:
        work: What it does.
        name: Of the thread.
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
        """Wait until the work is done.

        Args:
            timeout: Seconds; no limit when None.

        Returns:
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
