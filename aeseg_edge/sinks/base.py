"""What a sink is, and what sinks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SinkError, UsageError
from aeseg_edge.sources.base import Frame
from aeseg_edge.view.draw import render

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation
    from aeseg_edge.sinks.counters import LoopCounters


class Sink(ABC):
    """Takes results, one after another, on a thread of its own.

    A sink of one's own sets ``name`` and writes; the rest has defaults.

    Attributes:
        name: What messages call it.
        closed_by_user: True once somebody closed the window.
        backlog: Results that may wait for a sink in a live run: one for what is watched, more
            for what is kept.
        on_main_thread: True for windows.
        wants: What it can use of a result besides labels: ``latents``, ``margin``,
            ``distance``. Asked for each frame, from another thread; may change.
    """

    name: str
    closed_by_user: bool = False
    backlog: int = 1
    on_main_thread: bool = False
    wants: frozenset[str] = frozenset()

    @abstractmethod
    def write(self, frame: Frame, result: Segmentation) -> None:
        """Take one result; SinkError if it cannot be written."""

    def watch(self, counters: Callable[[], LoopCounters]) -> None:  # noqa: B027 - most do not
        """Keep the function that gives a snapshot of the loop; called once, before all frames.

        It is cheap, and callable from any thread until the sink is closed.
        """

    def idle(self) -> None:  # noqa: B027 - for windows
        """Look at keys and the close button; called between frames, on the main thread."""

    def interrupt(self) -> bool:
        """Wake up a ``write`` that hangs on another thread: it then raises.

        False where the sink cannot do that.
        """
        return False

    def close(self) -> None:  # noqa: B027 - most have nothing to finish
        """Finish: what was written is whole. Closing twice is fine."""

    def abort(self) -> None:
        """Give up after an error: nothing half-written stays. After ``close`` it does nothing."""
        self.close()

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
class Asked:
    """What a sink is opened with; see ``open_sink``.

    ``target`` is what the user wrote as ``uri`` without prefix and options, ``options`` what
    stands behind the question mark, ``fps`` the rate of what plays.
    """

    uri: str
    target: str
    options: Mapping[str, str] = field(default_factory=dict)
    fps: float | None = None
    view: str = "overlay"
    alpha: float = 0.5
    legend: bool = True
    title: str = "aeseg"
    live: object = None

    @property
    def draw(self) -> Callable[..., NDArray[np.uint8]]:
        """Draw a result over its image as it was asked for; see ``render``."""
        return partial(render, view=self.view, alpha=self.alpha, legend=self.legend)

    @property
    def path(self) -> Path:
        """The file that is named.

        Raises:
            SinkError: If none is.
        """
        if not self.target or Path(self.target).is_dir():
            kind = self.uri.partition(":")[0]
            raise SinkError(f"{self.uri} names no file", fix=f"Write {kind}:FILE.")
        return Path(self.target)


@dataclass(frozen=True)
class Routed:
    """An open sink for the results of one source."""

    sink: Sink
    source: str


class CalledSink(Sink):
    """A function, or an object that has ``write(frame, result)`` and perhaps ``close()``."""

    def __init__(self, given: Any) -> None:
        self._write = getattr(given, "write", given)
        self._close = getattr(given, "close", None)
        default = getattr(given, "__name__", type(given).__name__)
        self.name = str(getattr(given, "name", default))

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Call it."""
        self._write(frame, result)

    def close(self) -> None:
        """Close it, once, where it can be closed."""
        close, self._close = self._close, None
        if callable(close):
            close()


def as_sinks(given: object) -> list[Sink | Routed]:
    """Give what a loop was given as sinks: functions and objects with ``write`` become such."""
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise UsageError(f"sinks={given!r} is no list of sinks", fix="Write sinks=[...].")
    found: list[Sink | Routed] = []
    for each in given:
        if isinstance(each, Sink | Routed):
            found.append(each)
        elif isinstance(each, type) or not callable(getattr(each, "write", each)):
            raise UsageError(
                f"{each!r} is no sink",
                fix="Give what open_sink gives, a function of frame and result, or an object with "
                "write(frame, result).",
            )
        else:
            found.append(CalledSink(each))
    return found


class NullSink(Sink):
    """Takes results and drops them: for timing and for counting."""

    name = "null://"

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Do nothing."""


def open_null(asked: Asked) -> Sink:
    """Open ``null://``."""
    return NullSink()
