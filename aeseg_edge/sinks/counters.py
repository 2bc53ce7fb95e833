"""What a running loop has counted: one frozen snapshot, safe to read from any thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aeseg_edge.support.stats import Summary

STATES = ("opening", "running", "stalled", "waiting", "ended", "failed")
"""Of a source. ``waiting``: it was lost, and is opened again when its back-off is over."""


@dataclass(frozen=True)
class SourceCounters:
    """One source.

    Every frame that came in is segmented, dropped, or still on its way.

    Attributes:
        name: As in ``Frame.source``.
        state: One of ``STATES``.
        frames_in: Frames captured.
        segmented: Frames that became labels.
        dropped: By stage: ``capture``, replaced by a newer frame before the engine was free,
            or left there when the run was stopped.
        reconnects: Times it was opened again.
        stalls: Times it gave no frame for longer than the stall timeout.
        age: Distribution of the frame age in ms when the labels were ready; None before the
            first.
        size: Columns and rows of the last frame; None before the first.
        problem: Why it was lost last; None while it never was.
        drift: How unlike the footage its scene is, 0..1; see ``bundle.drift.Spread``. None
            where it is not measured.
    """

    name: str
    state: str
    frames_in: int
    segmented: int
    dropped: Mapping[str, int]
    reconnects: int
    stalls: int
    age: Summary | None
    size: tuple[int, int] | None
    problem: str | None
    drift: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return _with_age(self.age, vars(self)) | {
            "dropped": dict(self.dropped),
            "size": None if self.size is None else list(self.size),
            "drift": None if self.drift is None else round(self.drift, 5),
        }


@dataclass(frozen=True)
class SinkCounters:
    """One sink.

    Attributes:
        name: The sink's name.
        delivered: Results it has taken.
        dropped: Results it was too slow for.
        age: Distribution of the frame age in ms when the sink was done with it.
    """

    name: str
    delivered: int
    dropped: int
    age: Summary | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return _with_age(self.age, vars(self))


@dataclass(frozen=True)
class LoopCounters:
    """A running loop at one moment.

    Attributes:
        seconds: Time since the run began.
        sources: One each, in the order given.
        sinks: One each, in the order given.
        lost_wakeups: Times a thread slept past its time-out with work waiting; always 0
            unless there is a fault in the loop itself.
    """

    seconds: float
    sources: tuple[SourceCounters, ...]
    sinks: tuple[SinkCounters, ...]
    lost_wakeups: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {
            "seconds": round(self.seconds, 3),
            "sources": [source.to_json() for source in self.sources],
            "sinks": [sink.to_json() for sink in self.sinks],
            "lost_wakeups": self.lost_wakeups,
        }


def _with_age(age: Summary | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, in their order, with the age as ``age_ms``."""
    told = None if age is None else age.to_json()
    return {
        "age_ms" if key == "age" else key: told if key == "age" else value
        for key, value in fields.items()
    }
