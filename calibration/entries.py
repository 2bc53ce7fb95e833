"""The graphs of a bundle, how far each agrees with fp32, and which are recommended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.bundle.manifest import Entry, Manifest
from aeseg_edge.bundle.variants import BACKENDS, INT8, ONNXRUNTIME, REFERENCE, VARIANTS, variant
from aeseg_edge.calibration.graphs.assemble import attach_head
from aeseg_edge.calibration.score.agreement import Agreement, gate, measure_agreement
from aeseg_edge.calibration.score.sensitivity import RECORD, exclude_layers, excluded_of
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.support.progress import Progress

_log = logging.getLogger(__name__)


GATE = 0.25
"""Chosen with the default strength on a driving and a fixed camera: docs/reliability.md."""


def deployed_graphs(
    encoder: onnx.ModelProto,
    frames: Sequence[NDArray[np.uint8]],
    spec: GraphSpec,
    *,
    ranges: str,
    gate: float | None = None,
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, bytes]:
    """Make every graph of a bundle from one encoder.

    Args:
        encoder: float32 encoder, ``frame`` -> ``encoded``.
        frames: uint8 [H, W, C] each, at the graph's size: what int8 ranges are fitted on.
        spec: Sizes of the deployed graph.
        ranges: ``minmax``, ``percentile`` or ``entropy``.
        gate: Width of the smoothing gate; None to mix everywhere alike.
        exclude: Convolutions that stay in floating point in the int8 graphs.
        progress: Called with a stage and its fraction.

    Returns:
        Member path -> serialised ONNX, for every graph of ``VARIANTS``.

    Raises:
        CalibrationError: If there are no frames, or a range is not usable.
    """
    tell = progress or (lambda stage, fraction: None)
    made = {}
    for row in VARIANTS:
        if row.graph not in made:
            stage = f"{row.precision} ranges ({row.layout})"
            model = row.make(
                encoder,
                frames,
                method=ranges,
                exclude=exclude,
                progress=lambda _, done, stage=stage: tell(stage, done),
            )
            made[row.graph] = attach_head(model, spec, gate=gate, layout=row.layout)
    return {path: model.SerializeToString() for path, model in made.items()}


def fresh_entries() -> tuple[Entry, ...]:
    """Give the manifest's entries for ``deployed_graphs``, before agreement is measured."""
    return tuple(
        Entry(precision=row.precision, backend=row.backend, graph=row.graph, note=row.note)
        for row in VARIANTS
    )


def named_exclusions(settings: FitSettings) -> dict[str, Any]:
    """Give what the manifest's record says of convolutions that were named to stay in float."""
    if not settings.excluded:
        return {}
    named = {"names": list(settings.excluded), "why": "named by the user"}
    return {RECORD: {"asked": list(settings.excluded), **dict.fromkeys(BACKENDS, named)}}


def chosen_exclusions(
    bundle: Bundle,
    frames: Sequence[NDArray[np.uint8]],
    settings: FitSettings,
    *,
    progress: Progress | None = None,
) -> Bundle:
    """Leave convolutions out of int8 by what they buy, where the settings say ``auto``.

    Args:
        bundle: Freshly made, all in int8.
        frames: Those of the ranges: the gate is measured on others.
        settings: See ``FitSettings``.
        progress: Called with a stage and its fraction.

    Returns:
        The bundle itself where nothing is asked for.
    """
    if settings.int8_exclude != "auto":
        return bundle
    target = settings.int8_target
    tell = progress or (lambda stage, fraction: None)
    return exclude_layers(
        bundle,
        frames,
        settings.minimum_agreement if target is None else target,
        stated=target,
        threads=settings.threads,
        progress=lambda fraction: tell("int8 layers", fraction),
    )


def with_agreement(
    bundle: Bundle,
    frames: Sequence[NDArray[np.uint8]],
    *,
    minimum: float,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Bundle, dict[tuple[str, str], Agreement], dict[tuple[str, str], Agreement]]:
    """Measure a bundle's entries and write the figures into its manifest.

    Another codebook on the same graphs agrees to another degree, so this is run again
    whenever the decisions change.

    Args:
        bundle: Left as it is.
        frames: uint8 [H, W, C] each; not those the ranges were fitted on.
        minimum: Gate, 0..1; an entry below it is not recommended.
        threads: For ONNX Runtime.
        progress: Called with a stage and its fraction.

    Returns:
        The bundle with its figures, all agreements, and those below the gate.
    """
    agreements = compare_entries(bundle, frames, threads=threads, progress=progress)
    below = gate(agreements, minimum)
    for key, found in below.items():
        _log.warning(
            "%s for %s agrees with fp32 on only %.1f %% of the labels (gate: %.1f %%): "
            "not recommended",
            *key,
            100 * found.labels_equal,
            100 * minimum,
        )
    entries = tuple(
        _with_agreement(entry, agreements, below, minimum, bundle.manifest)
        for entry in bundle.manifest.entries
    )
    finished = bundle.with_manifest(replace(bundle.manifest, entries=entries))
    return finished, agreements, below


def smoothing_gate(samples: NDArray[np.float32]) -> float:
    """Choose the width of the smoothing gate from the latents of the footage.

    Args:
        samples: float32 [n, D], centred or not.

    Returns:
        ``GATE`` of their standard deviation (root mean square over the channels), in float32.
    """
    return float(np.float32(GATE * np.sqrt(samples.var(axis=0, dtype=np.float64).mean())))


def compare_entries(
    bundle: Bundle,
    frames: Sequence[NDArray[np.uint8]],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[tuple[str, str], Agreement]:
    """Measure every entry's labels against fp32's, all on ONNX Runtime.

    Args:
        bundle: Its graphs are run as a device would, through Segmenter.
        frames: uint8 [H, W, C] each; not those the ranges were fitted on.
        threads: For ONNX Runtime.
        progress: Called with a stage and its fraction.

    Returns:
        By (precision, backend); entries that share fp32's graph are left out.
    """
    reference_graph = bundle.manifest.entry(*REFERENCE).graph
    keys = [entry.key for entry in bundle.manifest.entries if entry.graph != reference_graph]
    done = 0
    with ExitStack() as stack:

        def labeller(key: tuple[str, str]) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
            segmenter = stack.enter_context(
                Segmenter.load(
                    bundle, precision=key[0], backend=ONNXRUNTIME, graph=key[1], threads=threads
                )
            )
            return lambda frame: segmenter(frame).labels

        reference = labeller(REFERENCE)

        def counted(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
            nonlocal done
            done += 1
            if progress is not None:
                progress("agreement", done / len(frames))
            return reference(frame)

        return measure_agreement(
            counted,
            {key: labeller(key) for key in keys},
            frames,
            [item.id for item in bundle.codebook.classes],
        )


def _with_agreement(
    entry: Entry,
    agreements: Mapping[tuple[str, str], Agreement],
    below: Mapping[tuple[str, str], Agreement],
    minimum: float,
    manifest: Manifest,
) -> Entry:
    found = agreements.get(entry.key)
    if found is None:
        return entry
    note = variant(*entry.key).note
    if entry.precision == INT8 and (floats := excluded_of(manifest.training, entry.backend)):
        kept = f"not in int8: {', '.join(floats)}"
        note = f"{kept}; {note}" if note else kept
    if entry.key in below:
        reason = f"agrees with fp32 on {100 * found.labels_equal:.1f} % of labels, gate {minimum}"
        note = f"{reason}; {note}" if note else reason
    return replace(entry, agreement=found.to_json(), recommended=entry.key not in below, note=note)
