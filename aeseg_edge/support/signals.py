"""SIGINT, SIGTERM and SIGHUP as an event that a loop looks at."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_log = logging.getLogger(__name__)


def endings() -> tuple[signal.Signals, ...]:
    """Give the signals besides Ctrl-C that ask a process to end; not SIGHUP where it is ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turn SIGINT, SIGTERM and SIGHUP into an event; a second signal ends the process at once.

    SIGHUP comes when a terminal is closed or ssh is lost, often twice: it never insists. Where it
    is ignored (nohup), it stays so.
    Outside the main thread signals cannot be caught, and the event stays unset.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            if number == signal.SIGHUP:
                return
            raise KeyboardInterrupt
        _log.info("signal %d: finishing the current frame", number)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, *endings())}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
