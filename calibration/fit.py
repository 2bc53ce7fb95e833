"""From an encoder and frames to a bundle: codebook, four graphs, agreement.

Torch is not needed: both the trainer (``export.pipeline``) and ``aeseg calibrate`` end here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.bundle.drift import spread_of
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.manifest import Manifest
from aeseg_edge.calibration.clusters.clustering import Clustering, reordered
from aeseg_edge.calibration.clusters.count import Choice
from aeseg_edge.calibration.clusters.latents import (
    EncoderSession,
    boxes_of,
    cells_seen,
    draw_samples,
)
from aeseg_edge.calibration.clusters.match import (
    Matched,
    encoder_of,
    encoder_shift,
    match_codebooks,
)
from aeseg_edge.calibration.clusters.methods import listed, measure_of
from aeseg_edge.calibration.clusters.stability import Stability
from aeseg_edge.calibration.entries import (
    Progress,
    chosen_exclusions,
    deployed_graphs,
    fresh_entries,
    named_exclusions,
    smoothing_gate,
    with_agreement,
)
from aeseg_edge.calibration.frames import split_for_agreement
from aeseg_edge.calibration.graphs.assemble import centre_latents
from aeseg_edge.calibration.score.agreement import Agreement
from aeseg_edge.calibration.score.sensitivity import check_names
from aeseg_edge.calibration.search import find_codebook
from aeseg_edge.calibration.settings import FitSettings as FitSettings
from aeseg_edge.errors import CalibrationError

_log = logging.getLogger(__name__)


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
    sizes: NDArray[np.int64] | None = None,
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
        sizes: int64 [N, 2], rows and columns of each frame before it was brought to the graph's
            size: latents in the bars of ``letterbox`` do not count. None where not known.
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
    boxes = boxes_of(geometry, sizes)
    samples = draw_samples(
        session,
        frames,
        count=settings.samples,
        seed=settings.seed,
        region=region,
        boxes=boxes,
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
        session, frames, samples, settings, mean=mean, region=region, boxes=boxes, progress=tell
    )
    clustering, codebook, matched = found.clustering, found.codebook, None
    if names_from is not None:
        matched = match_codebooks(names_from.codebook, codebook)
        clustering, codebook = reordered(clustering, matched.order), matched.codebook
        _log.info("%d of %d clusters keep their names", matched.count, codebook.clusters)

    def seen(index: int) -> NDArray[np.float32]:
        """Latents of one frame that count when it is segmented, float32 [D, ...]."""
        latents: NDArray[np.float32] = session(frames[index]) - offset
        inside = cells_seen(index, frames[index].shape, latents.shape[1:], region, boxes)
        return latents if inside is None else latents[:, inside]

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
            samples.latents, codebook, map(seen, ranges_on), measure=measure_of(codebook.method)
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
            fix=f"Names carry over between {listed()} codebooks; use --names-from none.",
        )
    shift = encoder_shift(EncoderSession(encoder_of(names_from), threads=threads), session, frames)
    if not centre and shift.any():
        raise CalibrationError(
            "the latents of the two bundles are centred differently, so that centres are not "
            "comparable",
            fix="Export both from the checkpoint: aeseg export NAME.train --names-from OLD.aeseg.",
        )
    return shift
