"""From an encoder and frames to a bundle: codebook, four graphs, agreement.

Torch is not needed: both the trainer (``export.pipeline``) and ``aeseg calibrate`` end here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.backends.base import GraphSpec
from aeseg_edge.bundle import Bundle
from aeseg_edge.errors import CalibrationError
from aeseg_edge.geometry import Geometry
from aeseg_edge.manifest import Entry, Manifest
from aeseg_edge.novelty import spread_of
from aeseg_edge.segmenter import Segmenter

from .agreement import Agreement, gate, measure_agreement
from .balance import BALANCES
from .choose import Choice
from .clustering import METHODS, Clustering, reordered
from .codebooks import find_codebook
from .decoding import attach_decoder
from .frames import split_for_agreement
from .graph import Target, attach_head, centre_latents, detach_head, to_half
from .latents import EncoderSession, draw_samples
from .matching import Matched, encoder_of, encoder_shift, match_codebooks
from .ranges import quantize_for_cpu, quantize_for_tensorrt
from .sensitivity import RECORD, check_names, exclude_layers, excluded_of
from .settings import FitSettings as FitSettings
from .stability import Stability

_log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""(stage, fraction of that stage)."""

GRAPHS = {
    ("fp32", "onnxruntime"): "graphs/fp32.onnx",
    ("fp32", "tensorrt"): "graphs/fp32.onnx",
    ("fp16", "tensorrt"): "graphs/fp16.onnx",
    ("int8", "onnxruntime"): "graphs/int8-cpu.onnx",
    ("int8", "tensorrt"): "graphs/int8-tensorrt.onnx",
}

_TARGETS: dict[str, Target] = {
    "graphs/fp32.onnx": "any",
    "graphs/fp16.onnx": "tensorrt",
    "graphs/int8-cpu.onnx": "cpu",
    "graphs/int8-tensorrt.onnx": "tensorrt",
}

GATE = 0.25
"""Chosen with the default strength on a driving and a fixed camera: docs/reliability.md."""

REFERENCE = ("fp32", "onnxruntime")

_NOTES = {
    ("fp32", "tensorrt"): "the same graph as fp32 for onnxruntime; not run on a GPU here",
    ("fp16", "tensorrt"): "agreement measured with fp16 emulated on a CPU",
    ("int8", "tensorrt"): "agreement measured with int8 and fp16 emulated on a CPU",
}


@dataclass(frozen=True)
class Fitted:
    """A finished bundle and what was measured on the way.

    Attributes:
        bundle: Verified, in memory.
        clustering: The centres.
        stability: How much of them is chance.
        agreements: By (precision, backend), against fp32.
        below: Those under the gate.
        choice: How the number of clusters was chosen; None where it was given.
        matched: Which clusters kept an older bundle's names; None where names are fresh.
    """

    bundle: Bundle
    clustering: Clustering
    stability: Stability
    agreements: Mapping[tuple[str, str], Agreement]
    below: Mapping[tuple[str, str], Agreement]
    choice: Choice | None = None
    matched: Matched | None = None


def fit_bundle(
    encoder: onnx.ModelProto,
    frames: Sequence[NDArray[np.uint8]],
    *,
    spec: GraphSpec,
    geometry: Geometry,
    multiple: int,
    settings: FitSettings,
    training: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    region: NDArray[np.uint8] | None = None,
    centre: bool = True,
    names_from: Bundle | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit centres and ranges, make every graph, measure agreement, build the bundle.

    Args:
        encoder: float32 encoder, ``frame`` -> ``encoded``.
        frames: uint8 [H, W, C] each, at the graph's size.
        spec: Sizes of the deployed graph.
        geometry: How frames of other sizes are brought to it.
        multiple: Deepest stride of the encoder.
        settings: See ``FitSettings``.
        training: For the manifest.
        provenance: For the manifest.
        region: uint8 [H, W] region of interest; latents outside do not count.
        centre: Subtract the mean latent from the encoder (once, when it is exported).
        names_from: Its names, colours, merges and void go to the clusters near its own; with
            ``centre`` the latents are then centred as its are. None for fresh names.
        progress: Called with a stage and its fraction.

    Raises:
        CalibrationError: If the frames are too few or too alike for what is asked, or
            ``names_from`` has another encoder.
        UsageError: If a convolution that is to be excluded is not there.
    """
    tell = progress or (lambda stage, fraction: None)
    check_names(encoder, settings.excluded)
    ranges_on, check_on = split_for_agreement(
        frames, settings.calibration_frames, settings.agreement_frames
    )
    session = EncoderSession(encoder, threads=settings.threads)
    shift = None
    if names_from is not None:
        shift = _shift(names_from, session, frames, centre, settings.threads)
    samples = draw_samples(
        session,
        frames,
        count=settings.samples,
        seed=settings.seed,
        region=region,
        tick=lambda fraction: tell("latents", fraction),
    )
    mean = np.zeros(spec.latent_dim)
    offset: NDArray[np.float32] = np.zeros((spec.latent_dim, 1, 1), np.float32)
    if centre:
        mean = samples.latents.mean(axis=0, dtype=np.float64) if shift is None else shift
        encoder = centre_latents(encoder, mean)
        samples = samples.centred(mean)
        offset = mean.astype(np.float32)[:, None, None]
    found = find_codebook(
        session, frames, samples, settings, mean=mean, region=region, progress=tell
    )
    clustering, codebook, matched = found.clustering, found.codebook, None
    if names_from is not None:
        matched = match_codebooks(names_from.codebook, codebook)
        clustering, codebook = reordered(clustering, matched.order), matched.codebook
        _log.info("%d of %d clusters keep their names", matched.count, codebook.clusters)

    spec = replace(spec, squares=codebook.squares)
    chosen = [frames[i] for i in ranges_on]
    width = smoothing_gate(samples.latents)
    graphs = deployed_graphs(
        encoder,
        chosen,
        spec,
        ranges=settings.ranges,
        gate=width,
        exclude=settings.excluded,
        progress=progress,
    )
    manifest = Manifest(
        geometry=geometry,
        stride=spec.stride,
        output_stride=spec.output_stride,
        multiple=multiple,
        latent_dim=spec.latent_dim,
        clusters=codebook.clusters,
        classes=(),
        method=clustering.method,
        entries=fresh_entries(),
        gate=width,
        squares=spec.squares,
        spread=spread_of(
            samples.latents, codebook, (session(frames[i]) - offset for i in ranges_on)
        ),
        training={
            **(training or {}),
            "calibration": {
                **found.to_json(),
                "shares": [round(float(share), 5) for share in clustering.shares],
                **({} if matched is None else {"names": matched.to_json()}),
                "seed": settings.seed,
                "frames": len(frames),
                "range_frames": len(ranges_on),
                "ranges": settings.ranges,
                **named_exclusions(settings),
            },
        },
        provenance=dict(provenance or {}),
    )
    draft = Bundle.build(manifest, codebook, graphs, region=region)
    draft = chosen_exclusions(draft, chosen, settings, progress=progress)
    bundle, agreements, below = with_agreement(
        draft,
        [frames[i] for i in check_on],
        minimum=settings.minimum_agreement,
        threads=settings.threads,
        progress=progress,
    )
    return Fitted(bundle, clustering, found.stability, agreements, below, found.choice, matched)


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
        Member path -> serialised ONNX, for every path of ``GRAPHS``.

    Raises:
        CalibrationError: If there are no frames, or a range is not usable.
    """
    tell = progress or (lambda stage, fraction: None)
    encoders = {
        "graphs/fp32.onnx": encoder,
        "graphs/fp16.onnx": to_half(encoder),
        "graphs/int8-cpu.onnx": quantize_for_cpu(
            encoder,
            frames,
            method=ranges,
            exclude=exclude,
            progress=lambda _, f: tell("int8 ranges (cpu)", f),
        ),
        "graphs/int8-tensorrt.onnx": quantize_for_tensorrt(
            encoder,
            frames,
            method=ranges,
            exclude=exclude,
            progress=lambda _, f: tell("int8 ranges (tensorrt)", f),
        ),
    }
    return {
        name: attach_head(model, spec, gate=gate, target=_TARGETS[name]).SerializeToString()
        for name, model in encoders.items()
    }


def fresh_entries() -> tuple[Entry, ...]:
    """Give the manifest's entries for ``deployed_graphs``, before agreement is measured."""
    return tuple(
        Entry(precision=key[0], backend=key[1], graph=path, note=_NOTES.get(key, ""))
        for key, path in GRAPHS.items()
    )


def named_exclusions(settings: FitSettings) -> dict[str, Any]:
    """Give what the manifest's record says of convolutions that were named to stay in float."""
    if not settings.excluded:
        return {}
    named = {"names": list(settings.excluded), "why": "named by the user"}
    return {RECORD: {"asked": list(settings.excluded), "onnxruntime": named, "tensorrt": named}}


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
                    bundle, precision=key[0], backend="onnxruntime", graph=key[1], threads=threads
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


def recalibrate(
    bundle: Bundle,
    frames: Sequence[NDArray[np.uint8]],
    settings: FitSettings,
    *,
    provenance: Mapping[str, Any] | None = None,
    names_from: Bundle | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit new centres and ranges for a bundle on other footage, without torch.

    Args:
        bundle: Its fp32 graph is the encoder; it stays as it is.
        frames: uint8 [H, W, C] each, at the graph's size.
        settings: See ``FitSettings``.
        provenance: Of the new footage, for the manifest.
        names_from: Whose names to keep, see ``fit_bundle``; may be ``bundle`` itself.
        progress: Called with a stage and its fraction.

    Raises:
        CalibrationError: If the frames are too few or too alike.
        ExportError: If the bundle's graph is not one of this project.
    """
    manifest = bundle.manifest
    encoder = detach_head(onnx.load_from_string(bundle.graph(*REFERENCE)))
    fitted = fit_bundle(
        encoder,
        frames,
        spec=manifest.spec,
        geometry=manifest.geometry,
        multiple=manifest.multiple,
        settings=settings,
        training={k: v for k, v in manifest.training.items() if k != "calibration"},
        provenance={**manifest.provenance, **(provenance or {})},
        region=bundle.region,
        centre=False,
        names_from=names_from,
        progress=progress,
    )
    if manifest.modalities:
        fitted = replace(fitted, bundle=fitted.bundle.with_modalities(manifest.modalities))
    if (decoder := bundle.decoder) is None:
        return fitted
    # The encoder is as it was, and so its decoder; means and errors are the new footage's.
    drawn = attach_decoder(fitted.bundle, decoder.graph, frames, threads=settings.threads)
    return replace(fitted, bundle=drawn)


def _shift(
    names_from: Bundle,
    session: EncoderSession,
    frames: Sequence[NDArray[np.uint8]],
    centre: bool,
    threads: int | None,
) -> NDArray[np.float64]:
    """Give how far the latents lie from the older bundle's, before any work is lost."""
    if names_from.codebook.centres is None:
        raise CalibrationError(
            f"the old codebook ({names_from.codebook.method}) has no centres to compare with",
            fix="Names carry over between kmeans, spherical and gmm codebooks; use "
            "--names-from none.",
        )
    shift = encoder_shift(EncoderSession(encoder_of(names_from), threads=threads), session, frames)
    if not centre and shift.any():
        raise CalibrationError(
            "the latents of the two bundles are centred differently, so that centres are not "
            "comparable",
            fix="Export both from the checkpoint: aeseg export NAME.train --names-from OLD.aeseg.",
        )
    return shift


def settings_of(manifest: Manifest) -> dict[str, Any]:
    """Give how a bundle's codebook was fitted, as far as it can be fitted that way again.

    Args:
        manifest: Of any bundle; one that labels were used for says nothing here.

    Returns:
        ``clusters``, and ``clustering``, ``covariance``, ``balance`` and ``int8_exclude`` where
        known, for ``FitSettings``.
    """
    told: dict[str, Any] = {"clusters": manifest.clusters}
    recorded = manifest.training.get("calibration", {})
    excluded = recorded.get(RECORD)
    if isinstance(excluded, Mapping):
        asked = excluded.get("asked", ())
        told["int8_exclude"] = asked if asked == "auto" else tuple(str(name) for name in asked)
        if asked == "auto" and isinstance(excluded.get("target"), float):
            told["int8_target"] = excluded["target"]
    if recorded.get("balance") in BALANCES:
        told["balance"] = recorded["balance"]
    for method in (manifest.method, recorded.get("method")):
        name, _, covariance = str(method).partition("-")
        if name in METHODS:
            told["clustering"] = name
            if covariance:
                told["covariance"] = covariance
            break
    return told


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
    note = _NOTES.get(entry.key, "")
    if entry.precision == "int8" and (floats := excluded_of(manifest.training, entry.backend)):
        kept = f"not in int8: {', '.join(floats)}"
        note = f"{kept}; {note}" if note else kept
    if entry.key in below:
        reason = f"agrees with fp32 on {100 * found.labels_equal:.1f} % of labels, gate {minimum}"
        note = f"{reason}; {note}" if note else reason
    return replace(entry, agreement=found.to_json(), recommended=entry.key not in below, note=note)
