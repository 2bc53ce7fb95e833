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
from aeseg_edge.errors import UsageError
from aeseg_edge.geometry import Geometry
from aeseg_edge.manifest import Entry, Manifest
from aeseg_edge.novelty import spread_of
from aeseg_edge.segmenter import Segmenter

from .agreement import Agreement, gate, measure_agreement
from .clustering import MAX_CLUSTERS, METHODS, Clustering, cluster, codebook_from
from .frames import split_for_agreement
from .graph import attach_head, centre_latents, detach_head, to_half
from .latents import EncoderSession, sample_latents
from .ranges import quantize_for_cpu, quantize_for_tensorrt

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

GATE = 0.25
"""Chosen with the default strength on a driving and a fixed camera: docs/reliability.md."""

REFERENCE = ("fp32", "onnxruntime")

_NOTES = {
    ("fp32", "tensorrt"): "the same graph as fp32 for onnxruntime; not run on a GPU here",
    ("fp16", "tensorrt"): "agreement measured with fp16 emulated on a CPU",
    ("int8", "tensorrt"): "agreement measured with int8 and fp16 emulated on a CPU",
}


@dataclass(frozen=True)
class FitSettings:
    """How centres and ranges are fitted.

    Attributes:
        clusters: K.
        clustering: ``kmeans`` or ``spherical``.
        restarts: K-means starts.
        samples: Latents to cluster.
        seed: Makes everything here repeatable.
        calibration_frames: Frames for the INT8 ranges.
        agreement_frames: Other frames for the agreement with fp32.
        minimum_agreement: Gate, 0..1; an entry below it is not recommended.
        ranges: ``minmax``, ``percentile`` or ``entropy``.
        threads: For ONNX Runtime; its own choice when None.
    """

    clusters: int = 27
    clustering: str = "spherical"
    restarts: int = 4
    samples: int = 60_000
    seed: int = 0
    calibration_frames: int = 48
    agreement_frames: int = 24
    minimum_agreement: float = 0.95
    ranges: str = "minmax"
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that make no sense, before any work is done."""
        if not 0.0 <= self.minimum_agreement <= 1.0:
            raise UsageError(
                f"minimum agreement {self.minimum_agreement} is not within 0..1",
                fix="Give a share such as 0.95.",
            )
        if self.clustering not in METHODS:
            raise UsageError(
                f"clustering {self.clustering!r} is unknown",
                fix=f"Use one of {', '.join(METHODS)}.",
            )
        if not 2 <= self.clusters <= MAX_CLUSTERS:
            raise UsageError(
                f"{self.clusters} clusters are not within 2..{MAX_CLUSTERS}", fix="Use 8 to 256."
            )
        for name in ("restarts", "samples", "calibration_frames", "agreement_frames"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", fix="Use 1 or more.")


@dataclass(frozen=True)
class Fitted:
    """A finished bundle and what was measured on the way.

    Attributes:
        bundle: Verified, in memory.
        clustering: The centres and their stability.
        agreements: By (precision, backend), against fp32.
        below: Those under the gate.
    """

    bundle: Bundle
    clustering: Clustering
    agreements: Mapping[tuple[str, str], Agreement]
    below: Mapping[tuple[str, str], Agreement]


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
        progress: Called with a stage and its fraction.

    Raises:
        CalibrationError: If the frames are too few or too alike for what is asked.
    """
    tell = progress or (lambda stage, fraction: None)
    ranges_on, check_on = split_for_agreement(
        frames, settings.calibration_frames, settings.agreement_frames
    )
    session = EncoderSession(encoder, threads=settings.threads)
    samples = sample_latents(
        session,
        frames,
        count=settings.samples,
        seed=settings.seed,
        region=region,
        tick=lambda fraction: tell("latents", fraction),
    )
    offset: NDArray[np.float32] = np.zeros((spec.latent_dim, 1, 1), np.float32)
    if centre:
        mean = samples.mean(axis=0, dtype=np.float64)
        encoder = centre_latents(encoder, mean)
        samples = (samples - mean).astype(np.float32)
        offset = mean.astype(np.float32)[:, None, None]
    tell("clusters", 0.0)
    clustering = cluster(
        samples,
        settings.clusters,
        method=settings.clustering,
        restarts=settings.restarts,
        seed=settings.seed,
    )
    tell("clusters", 1.0)

    chosen = [frames[i] for i in ranges_on]
    encoders = {
        "graphs/fp32.onnx": encoder,
        "graphs/fp16.onnx": to_half(encoder),
        "graphs/int8-cpu.onnx": quantize_for_cpu(
            encoder,
            chosen,
            method=settings.ranges,
            progress=lambda _, f: tell("int8 ranges (cpu)", f),
        ),
        "graphs/int8-tensorrt.onnx": quantize_for_tensorrt(
            encoder,
            chosen,
            method=settings.ranges,
            progress=lambda _, f: tell("int8 ranges (tensorrt)", f),
        ),
    }
    width = smoothing_gate(samples)
    graphs = {
        name: attach_head(model, spec, gate=width).SerializeToString()
        for name, model in encoders.items()
    }
    codebook = codebook_from(clustering)
    manifest = Manifest(
        geometry=geometry,
        stride=spec.stride,
        output_stride=spec.output_stride,
        multiple=multiple,
        latent_dim=spec.latent_dim,
        clusters=settings.clusters,
        classes=(),
        method=settings.clustering,
        entries=tuple(
            Entry(precision=key[0], backend=key[1], graph=path, note=_NOTES.get(key, ""))
            for key, path in GRAPHS.items()
        ),
        gate=width,
        spread=spread_of(samples, codebook, (session(frames[i]) - offset for i in ranges_on)),
        training={
            **(training or {}),
            "calibration": {
                "method": settings.clustering,
                "clusters": settings.clusters,
                "restarts": settings.restarts,
                "seed": settings.seed,
                "latents": len(samples),
                "frames": len(frames),
                "range_frames": len(ranges_on),
                "ranges": settings.ranges,
                "stability_ari": clustering.stability,
                "mean_squared_distance": clustering.inertia,
                "shares": [round(float(share), 5) for share in clustering.shares],
            },
        },
        provenance=dict(provenance or {}),
    )
    draft = Bundle.build(manifest, codebook, graphs, region=region)
    agreements = compare_entries(
        draft, [frames[i] for i in check_on], threads=settings.threads, progress=progress
    )
    below = gate(agreements, settings.minimum_agreement)
    for key, found in below.items():
        _log.warning(
            "%s for %s agrees with fp32 on only %.1f %% of the labels (gate: %.1f %%): "
            "not recommended",
            *key,
            100 * found.labels_equal,
            100 * settings.minimum_agreement,
        )
    entries = tuple(
        _with_agreement(entry, agreements, below, settings.minimum_agreement)
        for entry in manifest.entries
    )
    bundle = Bundle.build(
        replace(draft.manifest, entries=entries), draft.codebook, graphs, region=region
    )
    return Fitted(bundle, clustering, agreements, below)


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
    progress: Progress | None = None,
) -> Fitted:
    """Fit new centres and ranges for a bundle on other footage, without torch.

    Args:
        bundle: Its fp32 graph is the encoder; it stays as it is.
        frames: uint8 [H, W, C] each, at the graph's size.
        settings: See ``FitSettings``.
        provenance: Of the new footage, for the manifest.
        progress: Called with a stage and its fraction.

    Raises:
        CalibrationError: If the frames are too few or too alike.
        ExportError: If the bundle's graph is not one of this project.
    """
    manifest = bundle.manifest
    encoder = detach_head(onnx.load_from_string(bundle.graph(*REFERENCE)))
    return fit_bundle(
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
        progress=progress,
    )


def _with_agreement(
    entry: Entry,
    agreements: Mapping[tuple[str, str], Agreement],
    below: Mapping[tuple[str, str], Agreement],
    minimum: float,
) -> Entry:
    found = agreements.get(entry.key)
    if found is None:
        return entry
    note = entry.note
    if entry.key in below:
        reason = f"agrees with fp32 on {100 * found.labels_equal:.1f} % of labels, gate {minimum}"
        note = f"{reason}; {note}" if note else reason
    return replace(entry, agreement=found.to_json(), recommended=entry.key not in below, note=note)
