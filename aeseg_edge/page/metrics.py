"""The text that Prometheus reads (exposition format 0.0.4)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]


class Metrics:
    """Collects families of samples and writes them, each family with its type once."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: set[str] = set()

    def add(self, name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
        """Add one family of samples (labels and value); one that is there already is left out.

        The name is as Prometheus wants it (``aeseg_frames_total``), the kind ``counter`` or
        ``gauge``; values that are not numbers are written as NaN or Inf.
        """
        rows = list(samples)
        if name in self._names or not rows:
            return
        self._names.add(name)
        self._lines += [f"# HELP {name} {_escape(text)}", f"# TYPE {name} {kind}"]
        for labels, value in rows:
            inner = ",".join(f'{key}="{_escape(text, quote=True)}"' for key, text in labels.items())
            self._lines.append(
                f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}"
            )

    def add_status(self, status: Mapping[str, object]) -> None:
        """Add every number of a loop's status; one level of mappings becomes a label.

        Names that end in ``_total`` are counters. Truth values are 0 and 1; texts are left out.
        """
        for key, value in status.items():
            name = "aeseg_loop_" + re.sub(r"[^a-zA-Z0-9_]", "_", key)
            kind = "counter" if name.endswith("_total") else "gauge"
            if isinstance(value, (int, float)):
                self.add(name, kind, "From the run loop.", [({}, float(value))])
            elif isinstance(value, Mapping):
                rows: list[Sample] = [
                    ({"kind": str(inner)}, float(number))
                    for inner, number in value.items()
                    if isinstance(number, (int, float))
                ]
                self.add(name, kind, "From the run loop.", rows)

    def text(self) -> str:
        """Give the whole text."""
        return "\n".join(self._lines) + "\n"


def _escape(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
