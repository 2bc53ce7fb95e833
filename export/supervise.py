"""Images and masks to bundle: supervised training, and the way back in from its checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.manifest import Manifest
from aeseg_edge.calibration.clusters.latents import EncoderSession, boxes_of, sample_latents
from aeseg_edge.calibration.entries import (
    chosen_exclusions,
    deployed_graphs,
    fresh_entries,
    named_exclusions,
    smoothing_gate,
    with_agreement,
)
from aeseg_edge.calibration.frames import split_for_agreement
from aeseg_edge.calibration.score.agreement import Agreement
from aeseg_edge.calibration.score.sensitivity import check_names
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.errors import UsageError
from aeseg_edge.export.checkpoint import MODEL, load_frames, load_model, load_sizes, save_model
from aeseg_edge.export.network.autoencoder import Autoencoder, add_class_head, build_autoencoder
from aeseg_edge.export.network.catalogue import ARCHITECTURES, NO_TEACHER, starts_pretrained
from aeseg_edge.export.network.efficientnet import ORIGIN
from aeseg_edge.export.region import frame_region, load_region, save_region
from aeseg_edge.export.settings import Labels, TrainOptions
from aeseg_edge.export.sizes import check_output_stride, resize_frames, round_size
from aeseg_edge.export.steps import (
    Progress,
    check_excluded,
    deployed_encoder,
    keep_frames,
    train_folder,
    training_note,
    with_preview,
)
from aeseg_edge.export.training.history import EpochRecord
from aeseg_edge.export.training.labels import (
    HEAD_CHANNELS,
    CrossEntropy,
    freeze_encoder,
    gather_labelled,
    head_codebook,
)
from aeseg_edge.export.training.loop import train
from aeseg_edge.version import __version__

_log = logging.getLogger(__name__)

GATE_LATENTS = 10_000
"""Latents that the smoothing gate is measured on."""


@dataclass(frozen=True)
class Supervised:
    """A finished bundle, and what led to it.

    Attributes:
        bundle: Verified, in memory; written too.
        agreements: By (precision, backend), against fp32.
        below: Those under the gate.
        history: One record an epoch; empty for an export from a checkpoint.
        folder: The checkpoint.
    """

    bundle: Bundle
    agreements: Mapping[tuple[str, str], Agreement]
    below: Mapping[tuple[str, str], Agreement]
    history: Sequence[EpochRecord]
    folder: Path


def is_supervised(folder: Path) -> bool:
    """Say whether NAME.train is of a training with labels.

    Raises:
        TrainingError: If the checkpoint is missing or damaged.
    """
    return load_model(folder)[0].config.classes > 0


def arch_of(start: Path) -> str:
    """Name the architecture of a checkpoint.

    Raises:
        TrainingError: If it is missing or damaged.
    """
    return load_model(start)[0].config.arch


def train_supervised(
    images: Path,
    output: Path,
    options: TrainOptions,
    *,
    progress: Progress | None = None,
) -> Supervised:
    """Train with labels, calibrate, and write a bundle.

    Args:
        images: Folder of images.
        output: ``NAME.aeseg``; ``NAME.train`` is made beside it.
        options: See ``TrainOptions``; has ``labels``.
        progress: Called with a stage, its fraction and a note.

    Raises:
        EvaluationError: Images, masks and classes do not fit together.
        FootageError: There are too few frames, or no label.
        UsageError: Options do not fit together.
        TrainingError: If training cannot go on; the last good epoch is kept.
        BundleError: If the bundle cannot be written.
    """
    tell = progress or (lambda stage, fraction, note: None)
    labels = _labels(options)
    folder = train_folder(output)
    autoencoder, trained, start = _network(options, folder)
    config = autoencoder.config
    before = None if trained is None else (trained.width, trained.height)
    size = round_size(
        options.image_size or before or ARCHITECTURES[config.arch].image_size,
        autoencoder.multiple,
        config.arch,
    )
    resize = options.resize or ("stretch" if trained is None else trained.resize)
    geometry = Geometry(size[0], size[1], config.channels, resize)
    output_stride = check_output_stride(options.output_stride, autoencoder.stride)
    check_excluded(autoencoder, geometry, options.fit)
    labelled = gather_labelled(
        images,
        labels.masks,
        labels.class_names,
        ignore=labels.ignore,
        geometry=geometry,
        max_frames=options.max_frames,
        seed=options.training.seed,
        progress=lambda done, total, source: tell("labelled frames", done / total, source),
    )
    absent = [
        name for name, count in zip(labels.class_names, labelled.pixels(), strict=True) if not count
    ]
    if absent:
        _log.warning("no training frame shows %s: it cannot be learned", ", ".join(absent))
    footage = labelled.footage
    frames = np.concatenate([footage.frames, footage.held_out])
    keep_frames(folder, frames, sizes=footage.sizes, wanted=options.keep_frames)
    if labels.tune == "head":
        freeze_encoder(autoencoder)
    objective = CrossEntropy(
        labelled, weighting=labels.class_weights, tune=labels.tune, start=start
    )
    result = train(
        autoencoder,
        footage,
        replace(options.training, teacher=NO_TEACHER),
        folder,
        resume=not options.fresh,
        objective=objective,
        progress=lambda at: tell("training", at.fraction, training_note(at)),
    )
    settings = asdict(options.training)
    del settings["loss"], settings["teacher"]
    summary = {
        "arch": config.arch,
        "latent_dim": config.latent_dim,
        "head_channels": config.head,
        "labels": {
            "method": "supervised",
            "classes": list(labels.class_names),
            "frames": len(footage.frames),
            "images": str(images),
            "class_weights": labels.class_weights,
            "tune": labels.tune,
        },
        "settings": settings,
        "frames": len(footage.frames),
        "held_out": len(footage.held_out),
        **result.to_json(),
        "trained_with": f"aeseg_edge {__version__}",
    }
    provenance = {
        **_weights_from(options),
        "footage": [str(images)],
        "footage_licence": "not stated",
        **options.provenance,
    }
    meta = {
        "geometry": asdict(geometry),
        "output_stride": output_stride,
        "training": summary,
        "provenance": provenance,
        "class_names": list(labels.class_names),
    }
    save_model(folder, autoencoder, meta)
    save_region(folder, options.region)
    bundle, agreements, below = _finish(
        autoencoder,
        frames,
        footage.sizes,
        geometry,
        output_stride,
        meta,
        options.fit,
        options.region,
        tell,
    )
    bundle = with_preview(bundle, frames if options.keep_frames else None)
    bundle.write(output)
    return Supervised(bundle, agreements, below, result.history, folder)


def export_supervised(
    folder: Path,
    output: Path,
    *,
    image_size: tuple[int, int] | None = None,
    output_stride: int | None = None,
    fit: FitSettings | None = None,
    region: NDArray[np.uint8] | None = None,
    progress: Progress | None = None,
) -> Supervised:
    """Make a bundle from the checkpoint of a supervised training again.

    Args:
        folder: ``NAME.train``; the frames kept in it are calibrated on.
        output: ``OTHER.aeseg``.
        image_size: Width, height; as trained when None.
        output_stride: Label stride; as trained when None.
        fit: Ranges, gate and threads.
        region: Region of interest, uint8 [h, w]; as trained when None.
        progress: Called with a stage, its fraction and a note.

    Raises:
        TrainingError: If the checkpoint is missing or damaged, or keeps no frames.
        UsageError: If kept frames are letterboxed, and ``image_size`` has another aspect.
        BundleError: If the bundle cannot be written.
    """
    tell = progress or (lambda stage, fraction, note: None)
    autoencoder, meta = load_model(folder)
    trained = Geometry(**meta["geometry"])
    size = (trained.width, trained.height)
    if image_size is not None:
        size = round_size(image_size, autoencoder.multiple, autoencoder.config.arch)
    stride = check_output_stride(
        meta["output_stride"] if output_stride is None else output_stride, autoencoder.stride
    )
    geometry = replace(trained, width=size[0], height=size[1])
    frames = resize_frames(
        load_frames(folder),
        geometry,
        fix=f"Use the aspect of {trained.width}x{trained.height}, or train again at that size.",
    )
    bundle, agreements, below = _finish(
        autoencoder,
        frames,
        load_sizes(folder) if geometry.resize == "letterbox" else None,
        geometry,
        stride,
        meta,
        fit or FitSettings(),
        load_region(folder) if region is None else region,
        tell,
    )
    bundle = with_preview(bundle, frames)
    bundle.write(output)
    return Supervised(bundle, agreements, below, (), folder)


def _labels(options: TrainOptions) -> Labels:
    """Give what masks show, or refuse a training without them."""
    if options.labels is None:
        raise UsageError("there are no labels to train with", fix="Give --masks DIR.")
    return options.labels


def _network(options: TrainOptions, folder: Path) -> tuple[Autoencoder, Geometry | None, str]:
    """Give the network, how its start was trained, and which weights those are."""
    labels = _labels(options)
    classes = len(labels.class_names)
    if labels.start is None:
        if labels.tune == "head":
            raise UsageError(
                "--tune head leaves the encoder as it is, and there is none to start from",
                fix="Give --from NAME.train, or tune all.",
            )
        config = replace(options.model, classes=classes, head=HEAD_CHANNELS)
        seed = options.training.seed
        pretrained = starts_pretrained(config.arch, options.training.teacher)
        fresh = build_autoencoder(config, seed=seed, pretrained=pretrained)
        return fresh, None, "imagenet" if pretrained else ""
    if labels.start.resolve() == folder.resolve():
        raise UsageError(
            f"{labels.start} would be trained over", fix="Give the bundle another name."
        )
    source, meta = load_model(labels.start)
    source.hold_back_trunk()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.training.seed)
        network = add_class_head(source, classes, HEAD_CHANNELS)
    weights = json.loads((labels.start / MODEL).read_text())["weights_sha256"]
    return network.train(), Geometry(**meta["geometry"]), str(weights)


def _weights_from(options: TrainOptions) -> dict[str, Any]:
    labels = _labels(options)
    how = "trained with labels on the footage"
    if labels.start is not None:
        before = load_model(labels.start)[1].get("provenance", {})
        return {"weights": f"{how}, starting from {labels.start.name}", "started_from": before}
    if starts_pretrained(options.model.arch, options.training.teacher):
        return {"weights": f"{how}, starting from EfficientNet-Lite0", "started_from": ORIGIN}
    return {"weights": f"{how}, from scratch"}


def _finish(
    autoencoder: Autoencoder,
    frames: NDArray[np.uint8],
    sizes: NDArray[np.int64] | None,
    geometry: Geometry,
    output_stride: int,
    meta: Mapping[str, Any],
    fit: FitSettings,
    region: NDArray[np.uint8] | None,
    tell: Progress,
) -> tuple[Bundle, Mapping[tuple[str, str], Agreement], Mapping[tuple[str, str], Agreement]]:
    encoder, spec = deployed_encoder(autoencoder, geometry, output_stride, tell)
    codebook = head_codebook(autoencoder, meta["class_names"])
    check_names(encoder, fit.excluded)
    spec = replace(spec, squares=codebook.squares)
    ranges_on, check_on = split_for_agreement(
        list(frames), fit.calibration_frames, fit.agreement_frames
    )
    session = EncoderSession(encoder, threads=fit.threads)
    inside = None if region is None else frame_region(region, geometry)
    latents = sample_latents(
        session,
        list(frames),
        count=GATE_LATENTS,
        seed=fit.seed,
        region=inside,
        boxes=boxes_of(geometry, sizes),
    )
    width = smoothing_gate(latents)
    graphs = deployed_graphs(
        encoder,
        [frames[i] for i in ranges_on],
        spec,
        ranges=fit.ranges,
        gate=width,
        exclude=fit.excluded,
        progress=lambda stage, fraction: tell(stage, fraction, ""),
    )
    manifest = Manifest(
        geometry=geometry,
        stride=spec.stride,
        output_stride=spec.output_stride,
        multiple=autoencoder.multiple,
        latent_dim=spec.latent_dim,
        clusters=codebook.clusters,
        classes=(),
        method=codebook.method,
        entries=fresh_entries(),
        gate=width,
        squares=spec.squares,
        training={
            **meta["training"],
            "calibration": {
                "method": codebook.method,
                "frames": len(frames),
                "range_frames": len(ranges_on),
                "ranges": fit.ranges,
                **named_exclusions(fit),
            },
        },
        provenance=dict(meta["provenance"]),
    )
    draft = chosen_exclusions(
        Bundle.build(manifest, codebook, graphs, region=inside),
        [frames[i] for i in ranges_on],
        fit,
        progress=lambda stage, fraction: tell(stage, fraction, ""),
    )
    return with_agreement(
        draft,
        [frames[i] for i in check_on],
        minimum=fit.minimum_agreement,
        threads=fit.threads,
        progress=lambda stage, fraction: tell(stage, fraction, ""),
    )
