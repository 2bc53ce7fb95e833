"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from typing import Any

from aeseg_edge.cli.output import tell

_log = logging.getLogger(__name__)


class Progress:
    """Shows stages and their fractions. A context manager.

    Bars need ``rich`` and a terminal. Without either, or if ``plain``, there is one line when a
    stage begins, one every ten seconds, and one when it is done: logs stay readable.
    """

    def __init__(self, *, plain: bool = False) -> None:
        shown = not plain and sys.stderr is not None and sys.stderr.isatty()
        self._bars = _bars() if shown and _log.isEnabledFor(logging.INFO) else None
        self._tasks: dict[str, Any] = {}
        self._stage = ""
        self._said = self._begun = 0.0

    def __enter__(self) -> Progress:
        """Start the bars where there can be any."""
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *ended: object) -> None:
        """Stop the bars."""
        if self._bars is not None:
            with suppress(OSError):  # the terminal may be gone
                self._bars.stop()

    def update(self, stage: str, fraction: float, note: str = "") -> None:
        """Say how far a stage is, 0..1, with something short, such as a loss."""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=1.0, note=note)
            self._bars.update(self._tasks[stage], completed=fraction, note=note)
            return
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._begun = stage, now
        elif fraction < 1.0 and now - self._said < 10.0:
            return
        self._said = now
        took = f" ({now - self._begun:.1f} s)" if fraction >= 1.0 else ""
        tell(f"{stage}: {100 * fraction:.0f} %{took} {note}".rstrip())


def _bars() -> Any:
    """Give rich's bars, not started; None where rich is missing."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
