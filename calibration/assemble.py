"""From an encoder, frames and a codebook to a bundle: graphs, agreement, decoder and picture.

Every bundle ends here, label-free, labelled or recalibrated. One draft is made to be measured,
and the bundle itself is built once, when all is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import DecoderParts, GraphSpec
from aeseg_edge.bundle.drift import Spread
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.manifest import Entry, Manifest, Modality
from aeseg_edge.bundle.precisions import BACKENDS, INT8, REFERENCE, VARIANTS, variant
from aeseg_edge.calibration.clusters.latents import (
    Boxes,
    EncoderSession,
    boxes_of,
    cells_inside,
    sample_latents,
)
from aeseg_edge.calibration.clusters.methods import measure_of
from aeseg_edge.calibration.footage.varied import split_for_agreement
from aeseg_edge.calibration.graphs.deployed import attach_head
from aeseg_edge.calibration.graphs.exclude import RECORD, check_names, excluded_of
from aeseg_edge.calibration.score.agreement import (
    Agreement,
    compare_entries,
    gate,
    open_graph,
)
from aeseg_edge.calibration.score.sensitivity import exclude_layers
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.errors import AesegError
from aeseg_edge.segment.decoder import Decoder, Decoding
from aeseg_edge.support.evenly import evenly
from aeseg_edge.support.progress import Progress
from aeseg_edge.support.require import import_cv2

_log = logging.getLogger(__name__)

Agreements = Mapping[tuple[str, str], Agreement]
"""By (precision, backend), against fp32."""

GATE = 0.25
"""Chosen with the default strength on a driving and a fixed camera: docs/reliability.md."""

GATE_LATENTS = 10_000
"""Latents that the smoothing gate is measured on where none are clustered."""

DECODED = 64
"""Frames that a decoder is measured on: 169,000 latents at 480x352 and stride 8."""


@dataclass(frozen=True)
class Material:
    """What a bundle is made of, however its codebook is found.

    Attributes:
        encoder: float32 encoder, ``frame`` -> ``encoded``.
        frames: uint8 [H, W, C] each, at the graph's size.
        spec: Sizes of the deployed graph.
        geometry: How frames of other sizes are brought to it.
        multiple: Deepest stride of the encoder.
        region: uint8 [H, W], region of interest; latents outside do not count. None for all.
        sizes: int64 [N, 2], rows and columns of each frame before it was brought to the graph's
            size: latents in the bars of ``letterbox`` do not count. None where not known.
        modalities: Of the channels, where they are of several cameras.
        decoder: Gives the decoder's ONNX for the encoder as it is deployed, with its latents
            centred; None for a bundle without one.
        preview: Put a small picture of a frame and its labels into the bundle; not for private
            footage.
        training: For the manifest.
        provenance: For the manifest.
    """

    encoder: onnx.ModelProto
    frames: Sequence[NDArray[np.uint8]]
    spec: GraphSpec
    geometry: Geometry
    multiple: int
    region: NDArray[np.uint8] | None = None
    sizes: NDArray[np.int64] | None = None
    modalities: tuple[Modality, ...] = ()
    decoder: Callable[[onnx.ModelProto], bytes] | None = None
    preview: bool = False
    training: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None

    @property
    def boxes(self) -> Boxes | None:
        """Where the picture of each frame lies between its bars; None where there are none."""
        return boxes_of(self.geometry, self.sizes)

    def split(self, settings: FitSettings) -> tuple[list[int], list[int]]:
        """Share the frames between int8 ranges and agreement; refuse unknown exclusions."""
        check_names(self.encoder, settings.excluded)
        return split_for_agreement(
            self.frames, settings.calibration_frames, settings.agreement_frames
        )


@dataclass(frozen=True)
class Assembled:
    """A finished bundle.

    Attributes:
        bundle: Verified, in memory.
        agreements: By (precision, backend), against fp32.
        below: Those under the gate.
    """

    bundle: Bundle
    agreements: Agreements
    below: Agreements


def assemble(
    material: Material,
    codebook: Codebook,
    latents: NDArray[np.float32],
    settings: FitSettings,
    *,
    split: tuple[list[int], list[int]],
    notes: Mapping[str, Any],
    spread: Spread | None = None,
    progress: Progress | None = None,
) -> Assembled:
    """Make every graph, measure agreement, and build the bundle.

    ``latents``, float32 [n, D], are a sample that counts: the smoothing gate is as wide as they
    vary. ``split`` is that of ``material.split``, ``notes`` tell the manifest how the codebook was
    found, ``spread`` how far latents are from centres. CalibrationError if a range is not usable,
    or all labels are void.
    """
    tell = progress or (lambda stage, fraction: None)
    frames, region = material.frames, material.region
    ranges_on, check_on = ([frames[i] for i in part] for part in split)
    spec = replace(material.spec, squares=codebook.squares)
    width = smoothing_gate(latents)
    graphs = _deployed_graphs(material.encoder, ranges_on, spec, settings, width, tell)
    calibration = {
        **notes,
        "frames": len(frames),
        "range_frames": len(ranges_on),
        "ranges": settings.ranges,
        **_named_exclusions(settings),
    }
    manifest = Manifest(
        geometry=material.geometry,
        stride=spec.stride,
        output_stride=spec.output_stride,
        multiple=material.multiple,
        latent_dim=spec.latent_dim,
        clusters=codebook.clusters,
        classes=(),
        method=codebook.method,
        entries=tuple(
            Entry(precision=row.precision, backend=row.backend, graph=row.graph, note=row.note)
            for row in VARIANTS
        ),
        modalities=material.modalities,
        gate=width,
        squares=spec.squares,
        spread=spread,
        provenance=dict(material.provenance or {}),
    )
    draft = Bundle.build(manifest, codebook, graphs, region=region)
    if settings.int8_exclude == "auto":
        target = settings.int8_target
        graphs, calibration[RECORD] = exclude_layers(
            draft,
            ranges_on,
            settings.minimum_agreement if target is None else target,
            stated=target,
            threads=settings.threads,
            progress=lambda fraction: tell("int8 layers", fraction),
        )
    manifest = replace(manifest, training={**(material.training or {}), "calibration": calibration})
    agreements = compare_entries(
        draft, check_on, graphs=graphs, threads=settings.threads, progress=progress
    )
    entries, below = _judged(manifest, agreements, settings.minimum_agreement)
    decoder = None
    if material.decoder is not None:
        decoder = decoder_parts(
            draft,
            material.decoder(material.encoder),
            frames,
            threads=settings.threads,
            progress=lambda fraction: tell("decoder", fraction),
        )
    bundle = Bundle.build(
        replace(manifest, entries=entries),
        codebook,
        graphs,
        preview=_preview(draft, frames) if material.preview else None,
        region=region,
        decoder=decoder,
    )
    return Assembled(bundle, agreements, below)


def assemble_labelled(
    material: Material,
    codebook: Codebook,
    settings: FitSettings,
    *,
    progress: Progress | None = None,
) -> Assembled:
    """Assemble with a codebook that was learned from labels; see ``assemble``."""
    split = material.split(settings)
    latents = sample_latents(
        EncoderSession(material.encoder, threads=settings.threads),
        material.frames,
        count=GATE_LATENTS,
        seed=settings.seed,
        region=material.region,
        boxes=material.boxes,
    )
    notes = {"method": codebook.method}
    return assemble(
        material, codebook, latents, settings, split=split, notes=notes, progress=progress
    )


def with_agreement(
    bundle: Bundle,
    frames: Sequence[NDArray[np.uint8]],
    *,
    minimum: float,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Assembled:
    """Measure a bundle's entries again: another codebook agrees to another degree.

    On frames the ranges were not fitted on; an entry below ``minimum``, 0..1, is not recommended.
    """
    agreements = compare_entries(bundle, frames, threads=threads, progress=progress)
    entries, below = _judged(bundle.manifest, agreements, minimum)
    finished = bundle.with_manifest(replace(bundle.manifest, entries=entries))
    return Assembled(finished, agreements, below)


def smoothing_gate(samples: NDArray[np.float32]) -> float:
    """Give ``GATE`` of the latents' standard deviation (root mean square over the channels)."""
    return float(np.float32(GATE * np.sqrt(samples.var(axis=0, dtype=np.float64).mean())))


def decoder_parts(
    bundle: Bundle,
    graph: bytes,
    frames: Sequence[NDArray[np.uint8]],
    *,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> DecoderParts:
    """Find what a decoder needs of calibration frames: mean latents, and how large errors are.

    Article 1 decodes K-means centres. Centres are not always latents (those of spherical K-means
    are directions, a linear codebook has none), so each cluster is drawn from the mean of the
    latents assigned to it, which is the same thing for K-means. Of the frames at most 64, evenly
    spread, are used.
    """
    chosen = [frames[i] for i in evenly(len(frames), DECODED, rounded=False)]
    codebook, manifest = bundle.codebook, bundle.manifest
    parts = DecoderParts(graph, None, 0.0, 0.0, len(chosen))
    decoder = Decoder(parts, manifest.spec, manifest.geometry, codebook, threads=threads)
    sums = np.zeros((codebook.clusters, codebook.latent_dim))
    counts = np.zeros(codebook.clusters, np.int64)
    errors: list[NDArray[np.float32]] = []
    norm = 0.0
    inside: NDArray[np.bool_] | slice = slice(None)
    if bundle.region is not None:
        inside = cells_inside(bundle.region, *manifest.spec.latent_shape[1:]).ravel()
    with open_graph(bundle, REFERENCE, threads=threads) as run:
        for index, frame in enumerate(chosen):
            result = run(frame, want=frozenset({"latents"}))
            assert result.latents is not None
            measured = Decoding(decoder, result.latents, codebook, result.labels).errors(frame)
            errors.append(measured[~np.isnan(measured)])
            flat = result.latents.reshape(codebook.latent_dim, -1).T[inside]
            clusters = codebook.assign(flat)
            counts += np.bincount(clusters, minlength=codebook.clusters)
            np.add.at(sums, clusters, flat)
            norm += float(np.linalg.norm(flat, axis=1).sum())
            if progress is not None:
                progress((index + 1) / len(chosen))
    means = sums / np.maximum(counts, 1)[:, None]
    lost = counts == 0
    means[lost] = _stand_in(codebook, norm / max(1, counts.sum()))[lost]
    pooled = np.concatenate(errors)
    median, p99 = np.percentile(pooled, [50, 99]) if pooled.size else (0.0, 0.0)
    return replace(
        parts,
        latents=means.astype(np.float32),
        median=round(float(median), 4),
        p99=round(float(p99), 4),
    )


def _stand_in(codebook: Codebook, norm: float) -> NDArray[np.float64]:
    """What clusters that no latent was assigned to are drawn from: float64 [K, D]."""
    if codebook.centres is None:
        return np.zeros((codebook.clusters, codebook.latent_dim))
    centres = codebook.centres.astype(np.float64)
    # Unit centres are directions: they get the length that latents have.
    return centres * norm if measure_of(codebook.method) == "cosine" else centres


def _preview(bundle: Bundle, frames: Sequence[NDArray[np.uint8]]) -> bytes | None:
    """A small JPEG of one frame and its labels; None for frames without colours."""
    frame = frames[len(frames) // 2]
    if frame.shape[2] < 3:
        return None
    cv2 = import_cv2()
    with open_graph(bundle, REFERENCE) as segmenter:
        result = segmenter(frame)
    picture = np.concatenate([frame[..., :3], result.palette[result.labels]], axis=1)
    scale = min(1.0, 640 / picture.shape[1])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise AesegError(
            "OpenCV cannot write a JPEG preview", fix="Use an OpenCV build with JPEG support."
        )
    return bytes(data)


def _deployed_graphs(
    encoder: onnx.ModelProto,
    frames: Sequence[NDArray[np.uint8]],
    spec: GraphSpec,
    settings: FitSettings,
    gate: float,
    tell: Progress,
) -> dict[str, bytes]:
    """Every graph of ``VARIANTS`` from one encoder, by member path; ranges are the frames'."""
    made: dict[str, bytes] = {}
    for row in VARIANTS:
        if row.graph not in made:
            stage = f"{row.precision} ranges ({row.layout})"
            model = row.make(
                encoder,
                frames,
                method=settings.ranges,
                exclude=settings.excluded,
                progress=lambda _, done, stage=stage: tell(stage, done),
            )
            graph = attach_head(model, spec, gate=gate, layout=row.layout)
            made[row.graph] = graph.SerializeToString()
    return made


def _named_exclusions(settings: FitSettings) -> dict[str, Any]:
    """What the manifest's record says of convolutions that were named to stay in float."""
    if not settings.excluded:
        return {}
    named = {"names": list(settings.excluded), "why": "named by the user"}
    return {RECORD: {"asked": list(settings.excluded), **dict.fromkeys(BACKENDS, named)}}


def _judged(
    manifest: Manifest, agreements: Agreements, minimum: float
) -> tuple[tuple[Entry, ...], Agreements]:
    """Entries with their figures and notes, and the agreements below the gate."""
    below = gate(agreements, minimum)
    for key, found in below.items():
        _log.warning(
            "%s for %s agrees with fp32 on only %.1f %% of the labels (gate: %.1f %%): "
            "not recommended",
            *key,
            100 * found.labels_equal,
            100 * minimum,
        )
    entries = []
    for entry in manifest.entries:
        if (mine := agreements.get(entry.key)) is not None:
            notes = [variant(*entry.key).note]
            floats = excluded_of(manifest.training, entry.backend)
            if entry.precision == INT8 and floats:
                notes.insert(0, f"not in int8: {', '.join(floats)}")
            if entry.key in below:
                share = 100 * mine.labels_equal
                notes.insert(0, f"agrees with fp32 on {share:.1f} % of labels, gate {minimum}")
            entry = replace(
                entry,
                agreement=mine.to_json(),
                recommended=entry.key not in below,
                note="; ".join(filter(None, notes)),
            )
        entries.append(entry)
    return tuple(entries), below
