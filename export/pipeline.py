"""Footage to bundle: the whole label-free path."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import RESIZE_MODES, Geometry
from aeseg_edge.bundle.manifest import Modality
from aeseg_edge.calibration.footage.gather import Footage, gather
from aeseg_edge.calibration.footage.pairs import find_modalities
from aeseg_edge.errors import CalibrationError
from aeseg_edge.export.checkpoint import save_model
from aeseg_edge.export.finish import Trained, all_frames, finish, reduced, told
from aeseg_edge.export.network.autoencoder import Autoencoder, build_autoencoder
from aeseg_edge.export.network.catalogue import ARCHITECTURES
from aeseg_edge.export.network.efficientnet import ORIGIN
from aeseg_edge.export.network.reduce import TRAINED as TRAINED
from aeseg_edge.export.region import save_region
from aeseg_edge.export.settings import TrainOptions
from aeseg_edge.export.sizes import check_output_stride, round_size
from aeseg_edge.export.steps import (
    Progress,
    check_excluded,
    keep_frames,
    train_folder,
    training_note,
    with_preview,
)
from aeseg_edge.export.training.history import TrainResult
from aeseg_edge.export.training.invariance import even_latents
from aeseg_edge.export.training.loop import train
from aeseg_edge.export.training.losses import Objective, Taught
from aeseg_edge.export.training.teacher import (
    EfficientNetTeacher,
    Targets,
    make_targets,
    open_teacher,
)
from aeseg_edge.export.training.team import ALONE, Team
from aeseg_edge.sources.pairs import describe
from aeseg_edge.version import __version__

_log = logging.getLogger(__name__)


def train_bundle(
    sources: Sequence[str | Path],
    output: Path,
    options: TrainOptions,
    *,
    progress: Progress | None = None,
    team: Team = ALONE,
) -> Trained:
    """Train on footage, calibrate, and write a bundle.

    Args:
        sources: Videos, folders, globs, zips or images; or ``pairs://`` alone, which decides
            the number of channels.
        output: ``NAME.aeseg``; ``NAME.train`` is made beside it.
        options: See ``TrainOptions``.
        progress: Called with a stage, its fraction and a note.
        team: Where several processes train together: this is the first of them, and the
            others call ``join_training``.

    Raises:
        FootageError: If the footage has too few usable frames.
        TrainingError: If training cannot go on; the last good epoch is kept.
        CalibrationError: If the footage cannot support what is asked.
        BundleError: If the bundle cannot be written.
    """
    tell = progress or (lambda stage, fraction, note: None)
    model = _train(sources, output, options, tell, team)
    return _from_model(model, output, options, tell, team)


def join_training(
    sources: Sequence[str | Path],
    output: Path,
    options: TrainOptions,
    team: Team,
    *,
    progress: Progress | None = None,
) -> None:
    """Take part in a training whose first process calls ``train_bundle``; write nothing.

    Args:
        sources: As the first process has them.
        output: Likewise.
        options: Likewise.
        team: The processes; this is not the first.
        progress: Called with a stage, its fraction and a note.

    Raises:
        FootageError: If the footage has too few usable frames.
        TrainingError: If training cannot go on, or another process has ended.
    """
    _train(sources, output, options, progress or (lambda stage, fraction, note: None), team)


@dataclass(frozen=True)
class _Model:
    """A trained network and what it was trained on."""

    autoencoder: Autoencoder
    footage: Footage
    frames: NDArray[np.uint8]
    geometry: Geometry
    output_stride: int
    folder: Path
    modalities: tuple[Modality, ...]
    result: TrainResult
    pretrained: bool
    teacher: Mapping[str, Any] | None
    evened: bool


def _train(
    sources: Sequence[str | Path],
    output: Path,
    options: TrainOptions,
    tell: Progress,
    team: Team,
) -> _Model:
    modalities = find_modalities(sources)
    if modalities:
        channels = sum(each.channels for each in modalities)
        options = replace(options, model=replace(options.model, channels=channels))
        _log.info("frames are %s", describe(modalities))
    defaults = ARCHITECTURES[options.model.arch]
    taught = options.training.teacher != "none"
    # Asked first: a missing package or a misspelt name must not cost a minute of footage.
    teacher = open_teacher(options.training.teacher, options.model.channels) if taught else None
    pretrained = options.model.arch == "lite" and isinstance(teacher, EfficientNetTeacher)
    autoencoder = build_autoencoder(
        options.model, seed=options.training.seed, pretrained=pretrained
    )
    size = round_size(
        options.image_size or defaults.image_size, autoencoder.multiple, options.model.arch
    )
    geometry = Geometry(size[0], size[1], options.model.channels, options.resize or RESIZE_MODES[0])
    output_stride = check_output_stride(options.output_stride, autoencoder.stride)
    folder = train_folder(output)
    check_excluded(autoencoder, geometry, options.fit)

    footage = gather(
        sources,
        size=size,
        channels=options.model.channels,
        resize=geometry.resize,
        max_frames=options.max_frames,
        seed=options.training.seed,
        modalities=modalities,
        progress=lambda done, total, source: tell("footage", done / max(1, total), str(source)),
    )
    tell("footage", 1.0, "")
    _log.info("footage: %s", footage.report.summary())
    frames = all_frames(footage)
    _check_clusters(options.fit.fewest_clusters, frames, autoencoder.stride)
    if team.first:
        keep_frames(folder, frames, sizes=footage.sizes, wanted=options.keep_frames)

    objective: Objective | None = None
    if teacher is not None:
        made = None
        if team.first:
            made = make_targets(
                teacher,
                footage.frames,
                footage.held_out,
                options.model.latent_dim,
                folder=folder,
                tick=lambda done: tell("teacher", done, options.training.teacher),
            )
        objective = Taught(_shared_targets(made, team), options.training.loss)
        objective.check(autoencoder)
    result = train(
        autoencoder,
        footage,
        options.training,
        folder,
        resume=not options.fresh,
        objective=objective,
        progress=lambda at: tell("training", at.fraction, training_note(at)),
        team=team,
    )
    # A teacher's features are evened out before they are learned.
    evens = autoencoder.appearance is not None and teacher is None
    return _Model(
        even_latents(autoencoder, frames) if evens else autoencoder,
        footage,
        frames,
        geometry,
        output_stride,
        folder,
        modalities,
        result,
        pretrained,
        None if teacher is None else teacher.origin,
        evens,
    )


def _shared_targets(targets: Targets | None, team: Team) -> Targets:
    """Give what the teacher saw, in the first process, to all."""
    if targets is not None and team.size == 1:
        return targets
    numbers = None if targets is None else {"grid": targets.grid, "explained": targets.explained}
    told = team.share_record(numbers)
    maps = None if targets is None else {"frames": targets.frames, "held_out": targets.held_out}
    arrays = team.share_arrays(maps)
    return Targets(arrays["frames"], arrays["held_out"], told["grid"], told["explained"])


def _from_model(
    model: _Model, output: Path, options: TrainOptions, tell: Progress, team: Team
) -> Trained:
    frames, footage, folder, result = model.frames, model.footage, model.folder, model.result
    geometry, output_stride, modalities = model.geometry, model.output_stride, model.modalities
    pretrained = model.pretrained
    autoencoder, dimension = reduced(model.autoencoder, frames, options.reduce_to, options.fit)
    summary = {
        "arch": options.model.arch,
        "latent_dim": autoencoder.config.latent_dim,
        "settings": asdict(options.training),
        **({} if team.size == 1 else {"processes": team.size}),
        "frames": len(footage.frames),
        "held_out": len(footage.held_out),
        **result.to_json(),
        **({"evened": "over views of the same places"} if model.evened else {}),
        **told(dimension),
        "trained_with": f"aeseg_edge {__version__}",
    }
    provenance = {
        "weights": "trained on the footage, starting from EfficientNet-Lite0"
        if pretrained
        else "trained on the footage, starting from random weights",
        **({"started_from": ORIGIN} if pretrained else {}),
        **({} if model.teacher is None else {"teacher": model.teacher}),
        "footage": [source.source for source in footage.report.sources],
        "footage_licence": "not stated",
        **options.provenance,
    }
    save_model(
        folder,
        autoencoder,
        {
            "geometry": asdict(geometry),
            "output_stride": output_stride,
            "training": summary,
            "provenance": provenance,
            "fit": options.fit.remembered(),
            "modalities": [asdict(each) for each in modalities],
        },
    )
    save_region(folder, options.region)
    fitted = finish(
        autoencoder,
        frames,
        geometry,
        output_stride,
        options.fit,
        summary,
        provenance,
        options.region,
        tell,
        sizes=footage.sizes,
        decoder=options.decoder,
        modalities=modalities,
    )
    fitted = replace(
        fitted, bundle=with_preview(fitted.bundle, frames if options.keep_frames else None)
    )
    fitted.bundle.write(output)
    return Trained(fitted, autoencoder, footage, result.history, folder, dimension)


def _check_clusters(clusters: int, frames: NDArray[np.uint8], stride: int) -> None:
    """Refuse, before training, a K that the frames cannot support whatever is learned.

    Raises:
        CalibrationError: If K exceeds the number of latents of all frames.
    """
    count, rows, columns = frames.shape[:3]
    latents = count * (rows // stride) * (columns // stride)
    if clusters > latents:
        raise CalibrationError(
            f"{clusters} clusters are more than the {latents} latents of {count} frames",
            fix="Give more footage or larger images, or ask for fewer clusters.",
        )
