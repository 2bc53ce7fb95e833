"""What verbs tell: tables, warnings, JSON, pictures."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import AesegError, SinkError
from aeseg_edge.support.files import write_bytes
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import to_json

if TYPE_CHECKING:
    from aeseg_edge.bundle.manifest import Manifest
    from aeseg_edge.calibration.fit import Fitted
    from aeseg_edge.calibration.score.agreement import Agreement
    from aeseg_edge.export.network.reduce import DimensionChoice

_log = logging.getLogger(__name__)

_STDOUT = {"json:-", "json:/dev/stdout", "json:/dev/fd/1", "json:/proc/self/fd/1"}

Agreements = Mapping[tuple[str, str], "Agreement"]
"""By (precision, backend), against fp32."""


def tell(text: object, *, always: bool = False) -> None:
    """Say on standard error what is no result, unless ``--quiet``, or if ``always`` then too.

    A terminal or pipe that is gone cannot hear it, and ends no work.
    """
    if sys.stderr is not None and (always or _log.isEnabledFor(logging.INFO)):
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


@contextmanager
def own_stdout(options: argparse.Namespace, *, sinks_open: bool = False) -> Iterator[None]:
    """Keep standard output for JSON alone, where it goes there (``-``).

    What libraries print meanwhile, from Python or from C, goes to standard error. A sink on
    standard output has to be open before.
    """
    outputs = getattr(options, "output", None)
    sinks = [uri.partition("?")[0] for uri in outputs] if isinstance(outputs, list) else []
    due = sinks_open if _STDOUT & set(sinks) else _report(options) == "-"
    if "stdout" not in options:
        options.stdout = sys.stdout
    ours: TextIO | None = sys.stdout
    if ours is None or not due or options.stdout is not ours:
        yield
        return
    ours.flush()
    try:
        number = ours.fileno()
    except (OSError, ValueError):  # somebody called main() with another stdout
        with redirect_stdout(sys.stderr):
            yield
        return
    kept = os.dup(number)
    try:
        os.dup2(2, number)
        with (
            os.fdopen(os.dup(kept), "w", encoding=ours.encoding, errors="backslashreplace") as own,
            redirect_stdout(sys.stderr),
        ):
            options.stdout = own
            yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
        options.stdout = ours


def _report(options: argparse.Namespace) -> str | None:
    return getattr(options, "json", None) or getattr(options, "stats", None)


def write_json(options: argparse.Namespace, data: Any) -> None:
    """Write results where ``--json`` or ``--stats`` says; nothing without it."""
    target = _report(options)
    if target is None:
        return
    text = to_json(data, indent=1, allow_nan=False) + "\n"
    if target != "-":
        write_bytes(Path(target), text.encode(), error=AesegError)
    elif options.stdout is None:
        raise AesegError("standard output is closed", fix="Give --json or --stats a file.")
    else:
        options.stdout.write(text)


def show(options: argparse.Namespace, text: str, data: Any) -> None:
    """Print results for people, unless JSON goes there, and write them as ``--json`` says."""
    if options.json != "-":
        print(text)
    write_json(options, data)


def write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a picture: uint8 [h, w, 3], BGR."""
    done, data = import_cv2().imencode(path.suffix, pixels)
    if not done:
        raise SinkError(f"{path} cannot be encoded", fix="Write .png.")
    write_bytes(path, data.tobytes(), error=SinkError)


def entries_table(manifest: Manifest) -> list[str]:
    """Lines that list every (precision, backend) with its agreement."""
    lines = []
    for entry in manifest.entries:
        found = entry.agreement
        agreement = f"{100 * found['labels_equal']:6.2f} %" if found else "reference"
        advice = "" if entry.recommended else "  NOT RECOMMENDED"
        size_mb = manifest.files[entry.graph].size / 1e6
        lines.append(
            f"{entry.precision:<5} {entry.backend:<12} {size_mb:5.2f} MB  "
            f"agreement {agreement:>9}{advice}"
        )
    return lines


def print_below(below: Agreements, gate: float) -> None:
    """Print a warning for each precision that does not reach the gate, a share of labels 0..1."""
    for (precision, backend), found in below.items():
        print(
            f"WARNING: {precision} for {backend} agrees with fp32 on only "
            f"{100 * found.labels_equal:.1f} % of the labels, below the gate of "
            f"{100 * gate:.1f} %. The bundle marks it not recommended."
        )


def agreement_json(agreements: Agreements, below: Agreements) -> dict[str, Any]:
    """Give the part of ``--json`` that tells of agreement, keyed ``precision/backend``."""
    return {
        "agreement": {f"{p}/{b}": found.to_json() for (p, b), found in agreements.items()},
        "below_gate": [f"{p}/{b}" for p, b in below],
    }


def report_fitted(
    fitted: Fitted,
    output: Path,
    options: argparse.Namespace,
    gate: float,
    dimension: DimensionChoice | None = None,
) -> None:
    """Say what was made; loudly where a precision does not reach the gate."""
    from aeseg_edge.calibration.clusters.curves import write_curve

    manifest = fitted.bundle.manifest
    drawn = [item.curve() for item in (fitted.choice, dimension) if item is not None]
    curves = [path for curve in drawn for path in write_curve(curve, output)]
    if options.json != "-":
        print(f"{output}  ({output.stat().st_size / 1e6:.2f} MB): {manifest.clusters} clusters")
        print(f"  stability (ARI): {_stability(fitted)}")
        if fitted.matched is not None:
            print(f"  {fitted.matched.count} of {manifest.clusters} clusters keep their names")
        for path in curves:
            print(f"  curve: {path}")
        for line in entries_table(manifest):
            print(f"  {line}")
        print_below(fitted.below, gate)
    write_json(
        options,
        {
            "bundle": str(output),
            "clusters": manifest.clusters,
            "stability_ari": fitted.stability.restarts,
            "stability": fitted.stability.to_json(),
            "names": None if fitted.matched is None else fitted.matched.to_json(),
            "clusters_chosen": None if fitted.choice is None else fitted.choice.to_json(),
            "latents_chosen": None if dimension is None else dimension.to_json(),
            "curves": [str(path) for path in curves],
            "shares": [float(s) for s in fitted.clustering.shares],
            **agreement_json(fitted.agreements, fitted.below),
            "training": dict(manifest.training),
        },
    )


def _stability(fitted: Fitted) -> str:
    found = fitted.stability
    parts = [
        f"{title} {value:.2f}"
        for title, value in (
            (f"between {found.tried} starts", found.restarts),
            ("between halves of the footage", found.halves),
        )
        if value is not None
    ]
    low = "  LOW: other footage would give other clusters" if found.low else ""
    return (", ".join(parts) or "not measured, there is too little footage") + low
