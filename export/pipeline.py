"""Footage to checkpoint to bundle: the one path of every training, and of an export again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.bundle.geometry import RESIZE_MODES, Geometry
from aeseg_edge.bundle.manifest import Modality
from aeseg_edge.calibration.assemble import Assembled, Material, assemble_labelled
from aeseg_edge.calibration.fit import Fitted, fit_bundle
from aeseg_edge.calibration.footage.gather import Footage, gather
from aeseg_edge.calibration.graphs.exclude import check_names
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.errors import FootageError, UsageError
from aeseg_edge.export.checkpoint import load_model, read_model, save_model
from aeseg_edge.export.kept_frames import (
    Kept,
    check_foreign,
    fingerprint,
    frame_region,
    keep_frames,
    load_kept,
    load_region,
    resize_frames,
    save_region,
)
from aeseg_edge.export.lock import reading_of, training_in
from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.network.catalogue import ARCHITECTURES
from aeseg_edge.export.network.reduce import TRAINED as TRAINED
from aeseg_edge.export.network.reduce import DimensionChoice, Wanted
from aeseg_edge.export.onnx.decoder import export_decoder, folded_mean
from aeseg_edge.export.onnx.encoder import export_encoder
from aeseg_edge.export.settings import TrainOptions
from aeseg_edge.export.sizes import check_output_stride, round_size
from aeseg_edge.export.tasks import LabelFree, Labelled, Progress, Task, reduced, told
from aeseg_edge.export.training.history import EpochRecord, TrainProgress, TrainResult
from aeseg_edge.export.training.loop import train
from aeseg_edge.export.training.supervised import head_codebook
from aeseg_edge.export.training.team import ALONE, Team
from aeseg_edge.sources.paths import with_range
from aeseg_edge.sources.registry import files_of
from aeseg_edge.version import __version__


@dataclass(frozen=True)
class Trained:
    """A finished bundle, and what led to it.

    Attributes:
        made: Bundle and agreement.
        autoencoder: In evaluation mode.
        footage: The frames used; None for an export from a checkpoint.
        history: One record an epoch; empty for an export from a checkpoint.
        folder: The checkpoint.
        dimension: How latent channels were reduced; None where they were not.
    """

    made: Assembled
    autoencoder: Autoencoder
    footage: Footage | None
    history: Sequence[EpochRecord]
    folder: Path
    dimension: DimensionChoice | None = None

    @property
    def fitted(self) -> Fitted:
        """The bundle with its clustering: of a training without labels."""
        assert isinstance(self.made, Fitted)
        return self.made


@dataclass(frozen=True)
class _Model:
    """A trained network and what it was trained on."""

    task: Task
    autoencoder: Autoencoder
    footage: Footage
    frames: NDArray[np.uint8]
    geometry: Geometry
    output_stride: int
    folder: Path
    result: TrainResult


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
            the number of channels. With labels one folder of images.
        output: ``NAME.aeseg``; ``NAME.train`` is made beside it.
        options: See ``TrainOptions``.
        progress: Called with a stage, its fraction and a note.
        team: Where several processes train together: this is the first of them, and the
            others call ``join_training``.

    Raises:
        FootageError: If the footage has too few usable frames, or no label.
        EvaluationError: Images, masks and classes do not fit together.
        UsageError: Options do not fit together.
        TrainingError: If training cannot go on; the last good epoch is kept.
        CalibrationError: If the footage cannot support what is asked.
        BundleError: If the bundle cannot be written.
    """
    tell = progress or (lambda stage, fraction, note: None)
    with training_in(output.with_suffix(".train")):
        model = _train(sources, output, options, tell, team)
        task, footage, frames, folder = model.task, model.footage, model.frames, model.folder
        autoencoder = task.finish(model.autoencoder, frames)
        summary = {
            "arch": autoencoder.config.arch,
            "latent_dim": autoencoder.config.latent_dim,
            **task.about,
            "settings": task.told_settings(),
            **({} if team.size == 1 else {"processes": team.size}),
            "frames": len(footage.frames),
            "held_out": len(footage.held_out),
            **model.result.to_json(),
            **task.after,
            "trained_with": f"aeseg_edge {__version__}",
        }
        provenance = {
            **task.weights,
            "footage": task.footage_names(footage),
            "footage_licence": "not stated",
            **options.provenance,
        }
        meta = {
            "geometry": asdict(model.geometry),
            "output_stride": model.output_stride,
            "training": summary,
            "provenance": provenance,
            **task.meta,
        }
        # What belongs to the network is replaced when it is there, and what says so comes last.
        keep_frames(folder, frames, sizes=footage.sizes, wanted=options.keep_frames)
        save_region(folder, options.region)
        save_model(folder, autoencoder, meta, frames=fingerprint(folder))
        made = _make_bundle(
            output,
            autoencoder,
            meta,
            frames,
            options.fit,
            tell,
            options.region,
            sizes=footage.sizes,
            decoder=options.decoder,
            preview=options.keep_frames,
        )
        return Trained(made, autoencoder, footage, model.result.history, folder, task.dimension)


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


def export_bundle(
    folder: Path,
    output: Path,
    *,
    sources: Sequence[str | Path] = (),
    image_size: tuple[int, int] | None = None,
    output_stride: int | None = None,
    fit: FitSettings | None = None,
    reduce_to: Wanted | None = None,
    max_frames: int | None = None,
    region: NDArray[np.uint8] | None = None,
    names_from: Bundle | None = None,
    decoder: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Make a bundle from a checkpoint again, at another size or with other clusters.

    Args:
        folder: ``NAME.train``.
        output: ``OTHER.aeseg``.
        sources: Footage; the frames kept beside the checkpoint when empty.
        image_size: Width, height; as trained when None.
        output_stride: Label stride; as trained when None.
        fit: Clusters and ranges; number and kind of clusters as trained when None.
        reduce_to: Latent channels to keep, or ``auto``; all when None. The checkpoint stays.
            Like ``names_from`` and ``decoder`` for trainings without labels.
        max_frames: Budget, with ``sources`` alone; that of ``TrainOptions`` when None.
        region: Region of interest, uint8 [h, w]; as trained when None.
        names_from: An earlier bundle of this checkpoint, whose names, colours, merges and void
            go to the clusters near its own; None for fresh names.
        decoder: Put the decoder into the bundle.
        progress: Called with a stage, its fraction and a note.

    Raises:
        TrainingError: If the checkpoint is missing or damaged.
        FootageError: If there are no kept frames and no sources.
        UsageError: If kept frames are letterboxed, and ``image_size`` has another aspect.
        BundleError: If the bundle cannot be written.
    """
    tell = progress or (lambda stage, fraction, note: None)
    kept: Kept | None = None
    with reading_of(folder):
        autoencoder, meta = load_model(folder)
        trained = Geometry(**meta["geometry"])
        if max_frames is not None and not sources:
            raise UsageError(
                f"a budget of {max_frames} frames does nothing without footage",
                fix="Give the footage too, or leave --max-frames out: those kept are used.",
            )
        if autoencoder.config.classes and (reduce_to or names_from or decoder):
            raise UsageError(
                f"{folder} was trained with labels: it has no latents to reduce, no clusters to "
                "name and no decoder",
                fix="Leave reduce_to, names_from and decoder out.",
            )
        if not sources:
            kept = load_kept(folder, trained, read_model(folder).frames)
        region = load_region(folder) if region is None else region
    size = trained.width, trained.height
    if image_size is not None:
        size = round_size(image_size, autoencoder.multiple, autoencoder.config.arch)
    geometry = replace(trained, width=size[0], height=size[1])
    stride = check_output_stride(
        meta["output_stride"] if output_stride is None else output_stride, autoencoder.stride
    )
    if kept is None:
        footage = gather(
            [with_range(str(uri), meta["provenance"]) for uri in sources],
            size=size,
            channels=geometry.channels,
            resize=geometry.resize,
            max_frames=max_frames or TrainOptions.max_frames,
            modalities=_modalities(meta),
            progress=lambda done, total, source: tell("footage", done / max(1, total), str(source)),
        )
        tell("footage", 1.0, "")
        frames, sizes = all_frames(footage), footage.sizes
        names = [source.source for source in footage.report.sources]
        meta["provenance"] = {**meta["provenance"], "calibration_footage": names}
    else:
        fix = f"Give the footage again: aeseg export {folder} SOURCE --imgsz {size[0]}x{size[1]}."
        if autoencoder.config.classes:
            fix = (
                f"Use the aspect of {trained.width}x{trained.height}, or train again at that size."
            )
        frames, sizes = resize_frames(kept.frames, geometry, fix=fix), kept.sizes
    fit = fit or FitSettings(**FitSettings.recalled(meta.get("fit", {})))
    autoencoder, dimension = reduced(autoencoder, frames, reduce_to, fit)
    meta["training"] = {**meta["training"], **told(dimension)}
    made = _make_bundle(
        output,
        autoencoder,
        {**meta, "geometry": asdict(geometry), "output_stride": stride},
        frames,
        fit,
        tell,
        region,
        sizes=sizes,
        names_from=names_from,
        decoder=decoder,
        preview=not sources,
    )
    return Trained(made, autoencoder, None, (), folder, dimension)


def remembered_fit(folder: Path) -> dict[str, Any]:
    """Give what a training was told about clusters, as arguments of ``FitSettings``."""
    return FitSettings.recalled(read_model(folder).meta.get("fit", {}))


def has_labels(folder: Path) -> bool:
    """Say whether NAME.train is of a training with labels."""
    return read_model(folder).config.classes > 0


def arch_of(start: Path) -> str:
    """Name the architecture of a checkpoint."""
    return read_model(start).config.arch


def all_frames(footage: Footage) -> NDArray[np.uint8]:
    """Give the frames of training and those held out, uint8 [N, H, W, C]; FootageError if none."""
    parts = [part for part in (footage.frames, footage.held_out) if len(part)]
    if not parts:
        raise FootageError("the footage has no frames", fix="Give some.")
    return np.concatenate(parts)


def _train(
    sources: Sequence[str | Path],
    output: Path,
    options: TrainOptions,
    tell: Progress,
    team: Team,
) -> _Model:
    folder, labels = output.with_suffix(".train"), options.labels
    _check_apart(sources if labels is None else [*sources, labels.masks], folder, output)
    check_foreign(folder)
    task: Task = LabelFree(sources, options)
    if labels is not None:
        task = Labelled(sources, options, labels)
    autoencoder = task.network(folder)
    config, start = autoencoder.config, task.start
    before = None if start is None else (start.width, start.height)
    size = round_size(
        options.image_size or before or ARCHITECTURES[config.arch].image_size,
        autoencoder.multiple,
        config.arch,
    )
    resize = options.resize or (RESIZE_MODES[0] if start is None else start.resize)
    geometry = Geometry(size[0], size[1], config.channels, resize)
    output_stride = check_output_stride(options.output_stride, autoencoder.stride)
    if options.fit.excluded:
        # Refused before training.
        encoder = export_encoder(autoencoder.eval(), height=geometry.height, width=geometry.width)
        check_names(encoder, options.fit.excluded)
    footage = task.gather(geometry, tell)
    frames = all_frames(footage)
    task.check(frames, autoencoder.stride)
    objective = task.objective(autoencoder, footage, folder, tell, team)
    result = train(
        autoencoder,
        footage,
        task.settings,
        folder,
        resume=not options.fresh,
        objective=objective,
        progress=lambda at: tell("training", at.fraction, _note(at)),
        team=team,
    )
    return _Model(task, autoencoder, footage, frames, geometry, output_stride, folder, result)


def _check_apart(sources: Sequence[str | Path], folder: Path, output: Path) -> None:
    """Refuse footage that what a training writes would replace."""
    bundle, inside = os.path.realpath(output), os.path.realpath(folder) + os.sep
    for source in sources:
        for path in map(os.path.realpath, files_of(str(source))):
            if path == bundle or path.startswith(inside):
                raise UsageError(
                    f"{source} has footage in {output if path == bundle else folder}, which this "
                    "training replaces",
                    fix="Give the bundle another name or folder, or keep the footage elsewhere.",
                )


def _make_bundle(
    output: Path,
    autoencoder: Autoencoder,
    meta: Mapping[str, Any],
    frames: NDArray[np.uint8],
    fit: FitSettings,
    tell: Progress,
    region: NDArray[np.uint8] | None,
    *,
    sizes: NDArray[np.int64] | None,
    names_from: Bundle | None = None,
    decoder: bool,
    preview: bool,
) -> Assembled:
    """Write a bundle of what a checkpoint holds: a head is a codebook, else clusters are found."""
    geometry = Geometry(**meta["geometry"])
    encoder, spec = deployed_encoder(autoencoder, geometry, meta["output_stride"], tell)

    def drawing(centred: onnx.ModelProto) -> bytes:
        drawn = export_decoder(autoencoder, folded_mean(encoder, centred))
        return bytes(drawn.SerializeToString())

    def progress(stage: str, fraction: float) -> None:
        tell(stage, fraction, "")

    material = Material(
        encoder,
        list(frames),
        spec,
        geometry,
        autoencoder.multiple,
        region=None if region is None else frame_region(region, geometry),
        sizes=sizes,
        modalities=_modalities(meta),
        decoder=drawing if decoder else None,
        preview=preview,
        training=meta["training"],
        provenance=meta["provenance"],
    )
    if autoencoder.config.classes:
        codebook = head_codebook(autoencoder, meta["class_names"])
        made = assemble_labelled(material, codebook, fit, progress=progress)
    else:
        made = fit_bundle(material, fit, names_from=names_from, progress=progress)
    made.bundle.write(output)
    return made


def deployed_encoder(
    autoencoder: Autoencoder, geometry: Geometry, output_stride: int, tell: Progress
) -> tuple[onnx.ModelProto, GraphSpec]:
    """Export the encoder, ``frame`` -> ``encoded``, and give the sizes of its deployed graph."""
    autoencoder.eval()
    tell("exporting", 0.0, "")
    encoder = export_encoder(autoencoder, height=geometry.height, width=geometry.width)
    tell("exporting", 1.0, "")
    spec = GraphSpec(
        height=geometry.height,
        width=geometry.width,
        channels=geometry.channels,
        latent_dim=autoencoder.config.encoded_dim,
        stride=autoencoder.stride,
        output_stride=output_stride,
    )
    return encoder, spec


def _modalities(meta: Mapping[str, Any]) -> tuple[Modality, ...]:
    return tuple(Modality(**each) for each in meta.get("modalities", ()))


def _note(at: TrainProgress) -> str:
    """A few words on where a training stands."""
    of = f"/{at.epochs}" if at.epochs else ""
    return f"epoch {at.epoch}{of}, loss {at.loss:.4f}"
