"""Power and temperature while something runs: a Jetson's own monitors, read from sysfs.

Nothing is estimated: a machine without monitors has no figures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from aeseg_edge.measure.machine import power, temperatures, throttling

PERIOD = 0.1
"""Seconds between readings. An INA3221 averages in between; reading it takes about 1 ms."""

_SLOW_PERIOD = 1.0
"""Where there are only temperatures: they move slowly, and some firmware answers slowly."""

# What feeds the whole module. A module without such a rail has several, which are added up.
# Source: NVIDIA Jetson Linux Developer Guide, "Power Monitor": VDD_IN of Orin NX and Orin Nano.
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN")


@dataclass(frozen=True)
class PowerRecord:
    """Readings of one run.

    Attributes:
        seconds: Time of each reading since the run began.
        watts: By rail, one value a reading.
        degrees: By thermal zone, degrees Celsius, one value a reading.
        throttled: By counter or flag (see device.throttling), what it rose by during the
            run; None where the machine has none.
    """

    seconds: tuple[float, ...]
    watts: Mapping[str, tuple[float, ...]]
    degrees: Mapping[str, tuple[float, ...]]
    throttled: Mapping[str, int] | None

    @property
    def total_of(self) -> tuple[str, ...]:
        """The rails that make the total: the module's input, or all where there is none."""
        inputs = tuple(name for name in self.watts if name in _INPUT_RAILS)
        return inputs[:1] or tuple(self.watts)

    @property
    def total_watts(self) -> float | None:
        """Mean watts of the module over the run; None where it cannot be measured."""
        if not self.watts:
            return None
        return sum(_mean(self.watts[name]) for name in self.total_of)

    def to_json(self) -> dict[str, Any]:
        """Return mean and peak of each rail and zone, and the raw readings, as JSON types."""
        total = self.total_watts
        return {
            "total_watts": None if total is None else round(total, 4),
            "total_of": list(self.total_of),
            "rails_watts": _spans(self.watts),
            "temperatures": _spans(self.degrees),
            "throttled": None if self.throttled is None else dict(self.throttled),
            "samples": {
                "seconds": [round(value, 3) for value in self.seconds],
                "watts": {name: list(values) for name, values in self.watts.items()},
                "degrees": {name: list(values) for name, values in self.degrees.items()},
            },
        }

    def lines(self) -> list[str]:
        """Return what a person wants to know, a line each; none where there is nothing."""
        found = []
        total = self.total_watts
        if total is not None:
            found.append(f"power {total:.2f} W ({' + '.join(self.total_of)})")
        if self.degrees:
            zone, values = max(self.degrees.items(), key=lambda item: max(item[1]))
            found.append(f"hottest {zone}: {values[0]:.1f} to {max(values):.1f} degrees Celsius")
        risen = {name: count for name, count in (self.throttled or {}).items() if count}
        if risen:
            counts = ", ".join(f"{name} {count}" for name, count in risen.items())
            found.append(f"THROTTLED during the run: {counts}")
        return found


class PowerRecorder:
    """Reads the monitors in a thread of its own while a ``with`` block runs.

    The readings do not wait for frames: taken between frames only, they would miss what the
    work itself draws. Where there is nothing to read, no thread is started.

    Args:
        root: Where /sys is looked up.
        period: Seconds between readings; at least one is taken before and one after the block.
        clock: Monotonic seconds.

    Example:
        >>> with PowerRecorder() as recorder:
        ...     pass
        >>> recorder.record().total_watts is None or recorder.record().total_watts > 0
        True
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        period: float = PERIOD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._period = period
        self._clock = clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._readings: list[tuple[float, dict[str, float], dict[str, float]]] = []
        self._before: dict[str, int] | None = None
        self._peak: dict[str, int] = {}
        self._start = 0.0

    def __enter__(self) -> PowerRecorder:
        """Take the first reading and go on reading."""
        self._before = throttling(self._root)
        self._peak = dict(self._before or {})
        self._start = self._clock()
        if self._read():
            if not self._readings[0][1]:
                self._period = max(self._period, _SLOW_PERIOD)
            self._thread = threading.Thread(target=self._run, name="power", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the last reading."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._read()
        self._watch()

    def record(self) -> PowerRecord:
        """Return the readings, once the block has ended."""
        return PowerRecord(
            seconds=tuple(when for when, _, _ in self._readings),
            watts=_columns([watts for _, watts, _ in self._readings]),
            degrees=_columns([degrees for _, _, degrees in self._readings]),
            throttled=(
                None
                if self._before is None
                else {name: self._peak[name] - count for name, count in self._before.items()}
            ),
        )

    def _run(self) -> None:
        alerts = any(name.endswith("-alert") for name in self._peak)
        while not self._stop.wait(self._period):
            self._read()
            if alerts:
                # Counters can wait for the end; an alert may come and go.
                self._watch()

    def _watch(self) -> None:
        for name, value in (throttling(self._root) or {}).items():
            self._peak[name] = max(value, self._peak.get(name, value))

    def _read(self) -> bool:
        rails = power(self._root)
        zones = temperatures(self._root)
        if rails is None and zones is None:
            return False
        watts = {name: rail["watts"] for name, rail in (rails or {}).items()}
        self._readings.append((self._clock() - self._start, watts, zones or {}))
        return True


def _columns(rows: list[dict[str, float]]) -> dict[str, tuple[float, ...]]:
    """One tuple a name; a name that a reading lacks (a part switched off) is left out of it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: tuple(row[name] for row in rows if name in row) for name in names}


def _spans(columns: Mapping[str, tuple[float, ...]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "first": round(values[0], 4),
            "mean": round(_mean(values), 4),
            "max": round(max(values), 4),
            "last": round(values[-1], 4),
        }
        for name, values in columns.items()
    }


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
