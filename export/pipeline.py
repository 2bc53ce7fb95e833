"""Footage to bundle: the whole path, and the way back in from a checkpoint."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge import __version__
from aeseg_edge.backends.base import GraphSpec
from aeseg_edge.bundle import Bundle
from aeseg_edge.calibration.decoding import attach_decoder
from aeseg_edge.calibration.fit import REFERENCE, FitSettings, Fitted, fit_bundle
from aeseg_edge.calibration.sensitivity import check_names
from aeseg_edge.errors import AesegError, CalibrationError, FootageError
from aeseg_edge.geometry import Geometry, import_cv2
from aeseg_edge.io.modalities import describe
from aeseg_edge.manifest import Modality
from aeseg_edge.segmenter import Segmenter

from .autoencoder import ARCHITECTURES, Autoencoder, AutoencoderConfig, build_autoencoder
from .checkpoint import FRAMES, load_frames, load_model, save_frames, save_model
from .decoder_graph import export_decoder, folded_mean
from .dimension import TRAINED as TRAINED
from .dimension import DimensionChoice, Wanted, reduce_latents
from .efficientnet import ORIGIN
from .footage import Footage, gather
from .graph import export_encoder
from .history import EpochRecord, TrainProgress, TrainResult
from .invariance import even_latents
from .losses import Objective, Taught
from .pairs import find_modalities
from .region import frame_region, load_region, save_region
from .settings import TrainSettings
from .sizes import check_output_stride, resize_frames, round_size
from .teacher import EfficientNetTeacher, Targets, make_targets, open_teacher
from .team import ALONE, Team
from .train import train

_log = logging.getLogger(__name__)

Progress = Callable[[str, float, str], None]
"""(stage, fraction of that stage, short note)."""

KEPT_FRAMES = 256
"""Frames that stay beside the checkpoint: enough for ranges, agreement and K up to 1024."""

REMEMBERED = (
    *("clusters", "cluster_range", "clustering", "covariance", "balance"),
    *("int8_exclude", "int8_target"),
)
"""What a later export takes over from the training where it is told nothing else."""


@dataclass(frozen=True)
class TrainOptions:
    """What ``aeseg train`` can be told.

    Attributes:
        model: Architecture, latent dimension, channels.
        image_size: Width and height; the architecture's own when None. Rounded to
            multiples of the deepest stride.
        resize: ``stretch`` or ``letterbox``.
        output_stride: Label stride s; half the encoder's stride when None.
        training: Loss, optimiser, length.
        fit: Clusters and ranges.
        reduce_to: Latent channels to keep after training, or ``auto``; None for all.
        max_frames: Budget of footage frames.
        keep_frames: Keep a sample of the frames beside the checkpoint.
        fresh: Start again although a checkpoint is there.
        region: Region of interest, uint8 [h, w], or None; goes into the bundle.
        decoder: Put the decoder into the bundle.
        provenance: What is known of origin and licence of the footage.
    """

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    image_size: tuple[int, int] | None = None
    resize: str = "stretch"
    output_stride: int | None = None
    training: TrainSettings = field(default_factory=TrainSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    reduce_to: Wanted | None = None
    max_frames: int = 600
    keep_frames: bool = True
    fresh: bool = False
    region: NDArray[np.uint8] | None = None
    decoder: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A finished bundle, and what led to it.

    Attributes:
        fitted: Bundle, clustering, agreement.
        autoencoder: In evaluation mode.
        footage: The frames used; None for an export from a checkpoint.
        history: One record an epoch; empty for an export from a checkpoint.
        folder: The checkpoint.
        dimension: How latent channels were reduced; None where they were not.
    """

    fitted: Fitted
    autoencoder: Autoencoder
    footage: Footage | None
    history: Sequence[EpochRecord]
    folder: Path
    dimension: DimensionChoice | None = None


def train_folder(output: Path) -> Path:
    """Give the checkpoint folder that belongs to a bundle: ``NAME.train``."""
    return output.with_suffix(".train")


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
    geometry = Geometry(size[0], size[1], options.model.channels, options.resize)
    output_stride = check_output_stride(options.output_stride, autoencoder.stride)
    folder = train_folder(output)
    check_excluded(autoencoder, geometry, options.fit)

    footage = gather(
        sources,
        size=size,
        channels=options.model.channels,
        resize=_resize(options.resize),
        max_frames=options.max_frames,
        seed=options.training.seed,
        modalities=modalities,
        progress=lambda done, total, source: tell("footage", done / max(1, total), str(source)),
    )
    tell("footage", 1.0, "")
    _log.info("footage: %s", footage.report.summary())
    frames = _all_frames(footage)
    _check_clusters(options.fit.fewest_clusters, frames, autoencoder.stride)
    if options.keep_frames and team.first:
        save_frames(folder, evenly(frames, KEPT_FRAMES))
    elif team.first:
        # An earlier run may have kept some.
        shutil.rmtree(folder / FRAMES, ignore_errors=True)

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
    autoencoder, dimension = _reduced(model.autoencoder, frames, options.reduce_to, options.fit)
    summary = {
        "arch": options.model.arch,
        "latent_dim": autoencoder.config.latent_dim,
        "settings": asdict(options.training),
        **({} if team.size == 1 else {"processes": team.size}),
        "frames": len(footage.frames),
        "held_out": len(footage.held_out),
        **result.to_json(),
        **({"evened": "over views of the same places"} if model.evened else {}),
        **_told(dimension),
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
            "fit": {name: getattr(options.fit, name) for name in REMEMBERED},
            "modalities": [asdict(each) for each in modalities],
        },
    )
    save_region(folder, options.region)
    fitted = _finish(
        autoencoder,
        frames,
        geometry,
        output_stride,
        options.fit,
        summary,
        provenance,
        options.region,
        tell,
        decoder=options.decoder,
        modalities=modalities,
    )
    fitted = replace(
        fitted, bundle=with_preview(fitted.bundle, frames if options.keep_frames else None)
    )
    fitted.bundle.write(output)
    return Trained(fitted, autoencoder, footage, result.history, folder, dimension)


def export_bundle(
    folder: Path,
    output: Path,
    *,
    sources: Sequence[str | Path] = (),
    image_size: tuple[int, int] | None = None,
    output_stride: int | None = None,
    fit: FitSettings | None = None,
    reduce_to: Wanted | None = None,
    max_frames: int = 600,
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
        max_frames: Budget, with ``sources``.
        region: Region of interest, uint8 [h, w]; as trained when None.
        names_from: An earlier bundle of this checkpoint, whose names, colours, merges and void
            go to the clusters near its own; None for fresh names.
        decoder: Put the decoder into the bundle.
        progress: Called with a stage, its fraction and a note.

    Raises:
        TrainingError: If the checkpoint is missing or damaged.
        FootageError: If there are no kept frames and no sources.
        BundleError: If the bundle cannot be written.
    """
    tell = progress or (lambda stage, fraction, note: None)
    autoencoder, meta = load_model(folder)
    trained = Geometry(**meta["geometry"])
    size = (
        (trained.width, trained.height)
        if image_size is None
        else round_size(image_size, autoencoder.multiple, autoencoder.config.arch)
    )
    geometry = replace(trained, width=size[0], height=size[1])
    stride = check_output_stride(
        meta["output_stride"] if output_stride is None else output_stride, autoencoder.stride
    )
    provenance = dict(meta["provenance"])
    modalities = tuple(Modality(**each) for each in meta.get("modalities", ()))
    kept = True
    if sources:
        footage = gather(
            sources,
            size=size,
            channels=geometry.channels,
            resize=_resize(geometry.resize),
            max_frames=max_frames,
            modalities=modalities,
            progress=lambda done, total, source: tell("footage", done / max(1, total), str(source)),
        )
        tell("footage", 1.0, "")
        frames = _all_frames(footage)
        provenance["calibration_footage"] = [s.source for s in footage.report.sources]
        kept = False
    else:
        frames = resize_frames(load_frames(folder), size)
    fit = fit or FitSettings(**remembered_fit(folder))
    autoencoder, dimension = _reduced(autoencoder, frames, reduce_to, fit)
    fitted = _finish(
        autoencoder,
        frames,
        geometry,
        stride,
        fit,
        {**meta["training"], **_told(dimension)},
        provenance,
        load_region(folder) if region is None else region,
        tell,
        names_from=names_from,
        decoder=decoder,
        modalities=modalities,
    )
    fitted = replace(fitted, bundle=with_preview(fitted.bundle, frames if kept else None))
    fitted.bundle.write(output)
    return Trained(fitted, autoencoder, None, (), folder, dimension)


def remembered_fit(folder: Path) -> dict[str, Any]:
    """Give what a training was told about clusters.

    Args:
        folder: ``NAME.train``.

    Returns:
        The settings of ``REMEMBERED``, for ``FitSettings``; fewer from older trainings.

    Raises:
        TrainingError: If the checkpoint is missing or damaged.
    """
    told = dict(load_model(folder)[1].get("fit", {}))
    if told.get("cluster_range") is not None:
        told["cluster_range"] = tuple(told["cluster_range"])
    if isinstance(told.get("int8_exclude"), list):
        told["int8_exclude"] = tuple(told["int8_exclude"])
    return told


def check_excluded(autoencoder: Autoencoder, geometry: Geometry, fit: FitSettings) -> None:
    """Refuse, before training, convolutions to leave out of int8 that there will not be.

    Raises:
        UsageError: If one of the names is not in the exported encoder.
    """
    if fit.excluded:
        encoder = export_encoder(autoencoder.eval(), height=geometry.height, width=geometry.width)
        check_names(encoder, fit.excluded)


def _finish(
    autoencoder: Autoencoder,
    frames: NDArray[np.uint8],
    geometry: Geometry,
    output_stride: int,
    fit: FitSettings,
    training: Mapping[str, Any],
    provenance: Mapping[str, Any],
    region: NDArray[np.uint8] | None,
    tell: Progress,
    *,
    names_from: Bundle | None = None,
    decoder: bool,
    modalities: tuple[Modality, ...],
) -> Fitted:
    autoencoder.eval()
    tell("exporting", 0.0, "")
    encoder = export_encoder(autoencoder, height=geometry.height, width=geometry.width)
    tell("exporting", 1.0, "")
    inside = None if region is None else frame_region(region, geometry)
    fitted = fit_bundle(
        encoder,
        list(frames),
        spec=GraphSpec(
            height=geometry.height,
            width=geometry.width,
            channels=geometry.channels,
            latent_dim=autoencoder.config.latent_dim,
            stride=autoencoder.stride,
            output_stride=output_stride,
        ),
        geometry=geometry,
        multiple=autoencoder.multiple,
        settings=fit,
        training=training,
        provenance=provenance,
        region=inside,
        names_from=names_from,
        progress=lambda stage, fraction: tell(stage, fraction, ""),
    )
    if modalities:
        fitted = replace(fitted, bundle=fitted.bundle.with_modalities(modalities))
    if not decoder:
        return fitted
    deployed = onnx.load_from_string(fitted.bundle.graph(*REFERENCE))
    drawing = export_decoder(autoencoder, folded_mean(encoder, deployed))
    bundle = attach_decoder(
        fitted.bundle,
        drawing.SerializeToString(),
        list(frames),
        threads=fit.threads,
        progress=lambda fraction: tell("decoder", fraction, ""),
    )
    return replace(fitted, bundle=bundle)


def _reduced(
    autoencoder: Autoencoder, frames: NDArray[np.uint8], to: Wanted | None, fit: FitSettings
) -> tuple[Autoencoder, DimensionChoice | None]:
    return (autoencoder, None) if to is None else reduce_latents(autoencoder, frames, to, fit)


def _told(dimension: DimensionChoice | None) -> dict[str, Any]:
    """Give what the manifest says of the latent channels, where they were reduced."""
    if dimension is None:
        return {}
    return {"latent_dim": dimension.chosen, "reduced_from": dimension.trained}


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


def with_preview(bundle: Bundle, frames: NDArray[np.uint8] | None) -> Bundle:
    """Add a small picture of one frame and its labels; none for private footage.

    Args:
        bundle: Left as it is.
        frames: uint8 [N, H, W, C], or None for private footage.

    Returns:
        The bundle with its picture.
    """
    if frames is None or frames.shape[3] < 3:
        return bundle
    cv2 = import_cv2()
    frame = frames[len(frames) // 2]
    with Segmenter.load(bundle, precision="fp32", backend="onnxruntime") as segmenter:
        result = segmenter(frame)
    picture = np.concatenate([frame[..., :3], result.palette[result.labels]], axis=1)
    scale = min(1.0, 640 / picture.shape[1])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise AesegError(
            "OpenCV cannot write a JPEG preview", fix="Use an OpenCV build with JPEG support."
        )
    return bundle.with_preview(data.tobytes())


def training_note(at: TrainProgress) -> str:
    """Give a few words on where a training stands."""
    of = f"/{at.epochs}" if at.epochs else ""
    return f"epoch {at.epoch}{of}, loss {at.loss:.4f}"


def _all_frames(footage: Footage) -> NDArray[np.uint8]:
    parts = [part for part in (footage.frames, footage.held_out) if len(part)]
    if not parts:
        raise FootageError("the footage has no frames", fix="Give some.")
    return np.concatenate(parts)


def evenly(frames: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Choose frames that lie evenly over all, at most ``count``."""
    if len(frames) <= count:
        return frames
    chosen: NDArray[np.uint8] = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    return chosen


def _resize(mode: str) -> Any:
    return mode
