"""What a sink is, and what sinks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from aeseg_edge.sources.base import Frame

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation
    from aeseg_edge.sinks.counters import LoopCounters


class Sink(Protocol):
    """Takes results, one after another, on a thread of its own.

    A loop also looks for four attributes that a sink may leave out: ``backlog`` (int, 1),
    ``on_main_thread`` (bool, False) and, with that one, ``idle()``, see ``Closing``; and
    ``interrupt()``, which wakes up a ``write`` that hangs on another thread: it then raises.

    Attributes:
        name: What messages call it.
        closed_by_user: True once somebody closed the window.
    """

    name: str
    closed_by_user: bool

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Take one result.

        Raises:
            SinkError: If it cannot be written.
        """
        ...

    def close(self) -> None:
        """Finish: what was written is whole. Closing twice is fine."""
        ...

    def abort(self) -> None:
        """Give up after an error: nothing half-written stays. After ``close`` it does nothing."""
        ...


@runtime_checkable
class WatchesLoop(Protocol):
    """A sink that shows how the loop is doing."""

    def watch(self, counters: Callable[[], LoopCounters]) -> None:
        """Keep the function that gives a snapshot; called once, before the first frame.

        Args:
            counters: Cheap, and callable from any thread until the sink is closed.
        """
        ...


class Closing:
    """What the sinks here share.

    Attributes:
        backlog: Results that may wait for a sink in a live run: one for what is watched, more
            for what is kept.
        on_main_thread: True for windows.
    """

    closed_by_user = False
    backlog = 1
    on_main_thread = False

    def close(self) -> None:
        """Finish; nothing to do for most."""

    def abort(self) -> None:
        """Give up; nothing to do for most."""

    def __enter__(self) -> Any:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; after an error, abort."""
        # Ctrl-C ends a run early; what was written until then is wanted.
        if kind is None or not issubclass(kind, Exception):
            self.close()
        else:
            self.abort()


@dataclass(frozen=True)
class Routed:
    """A sink for the results of one source.

    Attributes:
        sink: Open.
        source: The name of the source.
    """

    sink: Sink
    source: str


class NullSink(Closing):
    """Takes results and drops them: for timing and for counting."""

    name = "null://"

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Do nothing."""
