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
    """One source. Every frame that came in is segmented, dropped, or still on its way.

    ``dropped`` is by stage: ``capture``, replaced by a newer frame before the engine was free,
    or left there when the run was stopped. ``stalls`` counts the times it gave no frame for
    longer than the stall timeout, ``reconnects`` how often it was opened again, ``problem`` says
    why it was lost last. ``age`` is the distribution of the frame age in ms when the labels
    were ready, None before the first, as ``size`` is (columns and rows of the last frame).
    ``drift``: how unlike the footage its scene is, 0..1 (see ``bundle.drift.Spread``); None
    where it is not measured. ``live``: a camera, as in ``Source``.
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
    live: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return _with_age(self.age, vars(self)) | {
            "dropped": dict(self.dropped),
            "size": None if self.size is None else list(self.size),
            "drift": None if self.drift is None else round(self.drift, 5),
        }


@dataclass(frozen=True)
class SinkCounters:
    """One sink: results it has taken, and was too slow for.

    ``age`` is the distribution of the frame age in ms when the sink was done with it.
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
    """A running loop at one moment; sources and sinks in the order given.

    ``lost_wakeups`` counts the times a thread slept past its time-out with work waiting; always
    0 unless there is a fault in the loop itself.
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
