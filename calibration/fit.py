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
    if centre:
        mean = samples.mean(axis=0, dtype=np.float64)
        encoder = centre_latents(encoder, mean)
        samples = (samples - mean).astype(np.float32)
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
    graphs = {
        name: attach_head(model, spec).SerializeToString() for name, model in encoders.items()
    }
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
    draft = Bundle.build(manifest, codebook_from(clustering), graphs, region=region)
    bundle, agreements, below = with_agreement(
        draft,
        [frames[i] for i in check_on],
        minimum=settings.minimum_agreement,
        threads=settings.threads,
        progress=progress,
    )
    return Fitted(bundle, clustering, agreements, below)


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
        _with_agreement(entry, agreements, below, minimum) for entry in bundle.manifest.entries
    )
    finished = Bundle.build(
        replace(bundle.manifest, entries=entries),
        bundle.codebook,
        bundle.graphs,
        preview=bundle.preview,
        region=bundle.region,
    )
    return finished, agreements, below


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
    note = _NOTES.get(entry.key, "")
    if entry.key in below:
        reason = f"agrees with fp32 on {100 * found.labels_equal:.1f} % of labels, gate {minimum}"
        note = f"{reason}; {note}" if note else reason
    return replace(entry, agreement=found.to_json(), recommended=entry.key not in below, note=note)
