"""Verbs that make a bundle: train, export, calibrate."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aeseg_edge.cli.agreement import agreement_json, print_below
from aeseg_edge.cli.fitting import add_fit, fit_settings, import_calibration
from aeseg_edge.cli.options import (
    Verbs,
    add_json,
    add_modalities,
    add_verb,
    all_sources,
    check_output,
    entries_table,
    positive,
    read_mask,
    size,
    write_json,
)
from aeseg_edge.cli.supervise import (
    add_supervised,
    check_label_free,
    check_supervised,
    export_with_labels,
    fill_defaults,
    train_with_labels,
)
from aeseg_edge.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from aeseg_edge.bundle.archive import Bundle
    from aeseg_edge.calibration.fit import Fitted
    from aeseg_edge.export.network.reduce import DimensionChoice

_log = logging.getLogger(__name__)


def add_verbs(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add this module's verbs."""
    from aeseg_edge.export.network.catalogue import ARCHITECTURES, DEFAULT_ARCHITECTURE

    train = add_verb(
        verbs,
        common,
        "train",
        _train,
        summary="train on unlabelled footage and write a bundle",
        example="aeseg train drive.mp4 photos/ -o street.aeseg --imgsz 480x360 --clusters 27",
    )
    train.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="videos, folders of images, globs, zips of images",
    )
    add_modalities(train)
    train.add_argument("-o", "--output", required=True, type=Path, metavar="NAME.aeseg")
    train.add_argument(
        "--arch",
        choices=tuple(ARCHITECTURES),
        default=DEFAULT_ARCHITECTURE,
        help="edge: small and fast; lite: starts from EfficientNet-Lite0 (extra teacher), better "
        "clusters, slower; shallow, deep: as two articles have them (default edge)",
    )
    train.add_argument(
        "--teacher",
        metavar="NAME",
        help="whose features to learn: none, efficientnet_lite0, timm:NAME or a NAME.train "
        "folder (default: efficientnet_lite0 for lite, else none)",
    )
    train.add_argument(
        "--imgsz",
        type=size,
        metavar="WxH",
        help="default: 480x360 (edge, lite), 224x224 (shallow), 256x256 (deep)",
    )
    train.add_argument(
        "--latent-dim",
        type=_dimension,
        metavar="D|auto",
        help="latent channels: how fine the segmentation can be (default 32, or 64 with a "
        "teacher); auto trains 64 and keeps as many principal components as variance and "
        "clusters need",
    )
    train.add_argument(
        "--channels",
        type=int,
        choices=(1, 3, 4),
        help="of the pictures (default 3, or those of --modalities)",
    )
    train.add_argument(
        "--resize",
        choices=("stretch", "letterbox"),
        default="stretch",
        help="how frames of another aspect are fitted (default stretch, or that of --from)",
    )
    train.add_argument("--loss", choices=("mse", "bce", "l1"), help="default: the architecture's")
    train.add_argument(
        "--optimizer", choices=("sgd", "adam", "adamw"), help="default: the architecture's"
    )
    train.add_argument(
        "--learning-rate", "--lr", type=float, metavar="RATE", help="peak learning rate"
    )
    train.add_argument(
        "--batch",
        type=positive,
        help="images a step; under torchrun, of each process (default: the architecture's)",
    )
    length = train.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive, help="default: about 1200 steps")
    length.add_argument("--minutes", type=float, help="train for so long instead")
    train.add_argument(
        "--no-augment", action="store_true", help="no flips, crops, colour jitter and noise"
    )
    train.add_argument(
        "--max-frames",
        type=positive,
        default=600,
        metavar="N",
        help="frames to learn from, sampled evenly (default 600)",
    )
    train.add_argument(
        "--no-keep-frames",
        action="store_true",
        help="keep no frames beside the checkpoint (private footage)",
    )
    train.add_argument("--fresh", action="store_true", help="do not resume an earlier run")
    train.add_argument("--footage-licence", metavar="TEXT", help="noted in the bundle")
    add_fit(train)
    _add_graph(train)
    _add_decoder(train)
    add_supervised(train)
    add_json(train)

    export = add_verb(
        verbs,
        common,
        "export",
        _export,
        summary="make a bundle from a checkpoint again",
        example="aeseg export street.train -o small.aeseg --imgsz 320x256 --clusters 16",
    )
    export.add_argument("folder", type=Path, metavar="NAME.train")
    export.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="footage; default: the frames kept beside the checkpoint",
    )
    add_modalities(export)
    export.add_argument("-o", "--output", required=True, type=Path, metavar="NAME.aeseg")
    export.add_argument("--imgsz", type=size, metavar="WxH", help="default: as trained")
    export.add_argument(
        "--latent-dim",
        type=_dimension,
        metavar="D|auto",
        help="keep this many principal components of the latents, without training again "
        "(default: all)",
    )
    _add_max_frames(export)
    add_fit(export, as_before="as trained")
    _add_names(export, "default: none")
    _add_graph(export, as_before="as trained")
    _add_decoder(export)
    add_json(export)

    calibrate = add_verb(
        verbs,
        common,
        "calibrate",
        _calibrate,
        summary="fit new centres and int8 ranges on other footage (no torch needed)",
        example="aeseg calibrate street.aeseg night.mp4 --clusters 20 -o night.aeseg",
    )
    calibrate.add_argument("bundle", type=Path)
    calibrate.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="videos, folders of images, globs, zips of images",
    )
    add_modalities(calibrate)
    calibrate.add_argument("-o", "--output", required=True, type=Path, metavar="NAME.aeseg")
    _add_max_frames(calibrate)
    add_fit(calibrate, as_before="as in the bundle")
    _add_names(calibrate, "default: those of the bundle itself; none for fresh names")
    add_json(calibrate)


def _add_max_frames(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-frames",
        type=positive,
        default=600,
        metavar="N",
        help="of SOURCE, sampled evenly (default 600)",
    )


def _add_names(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--names-from",
        metavar="OLD.aeseg",
        help="names, colours, merges and void of an earlier bundle of the same encoder go to the "
        f"clusters near its own ({default})",
    )


def _add_graph(parser: argparse.ArgumentParser, *, as_before: str = "") -> None:
    parser.add_argument(
        "--output-stride",
        type=positive,
        metavar="S",
        help=f"label stride: 1, 2, 4 or 8 (default: {as_before or 'half that of the encoder'})",
    )
    parser.add_argument(
        "--roi",
        metavar="MASK",
        help="picture whose white part is segmented; goes into the bundle"
        + (f" (default: {as_before})" if as_before else ""),
    )


def _add_decoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with-decoder",
        action="store_true",
        help="put the decoder into the bundle: aeseg run --view decoded and --view error (an "
        "export does not take it over from the training)",
    )


def _dimension(text: str) -> int | str:
    """Parse a number of latent channels, or ``auto``."""
    return text if text == "auto" else positive(text)


def _import_pipeline() -> Any:
    try:
        from aeseg_edge.export import pipeline
    except ImportError as error:
        raise MissingDependency(
            f"training needs a package that is not importable ({error})",
            fix="Install it: pip install 'aeseg_edge[host]'.",
        ) from error
    return pipeline


def _train(options: argparse.Namespace) -> int:
    pipeline = _import_pipeline()
    from aeseg_edge.cli.progress import Progress
    from aeseg_edge.export.network.autoencoder import AutoencoderConfig
    from aeseg_edge.export.network.catalogue import ARCHITECTURES
    from aeseg_edge.export.training.settings import TrainSettings

    sources = all_sources(options.sources, options)
    if options.channels is not None and options.modalities is not None:
        raise UsageError(
            "--channels and --modalities exclude each other",
            fix="Leave --channels out; state a modality's as thermal:1=DIR.",
        )
    output = check_output(options.output, ".aeseg")
    if options.masks is None:
        fill_defaults(options)
    else:
        check_supervised(options)
    arch = options.arch or pipeline.arch_of(options.start)
    default_teacher = ARCHITECTURES[arch].teacher
    teacher = options.teacher or default_teacher
    training = TrainSettings.for_arch(
        arch,
        loss=options.loss,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        batch=options.batch,
        epochs=options.epochs,
        minutes=options.minutes,
        augment=not options.no_augment,
        seed=options.seed,
        threads=options.threads,
        teacher=teacher,
    )
    if options.masks is not None:
        if teacher not in ("none", default_teacher):
            raise UsageError(
                f"--teacher {teacher} does nothing with --masks",
                fix="Leave it out; lite starts from the weights of its own teacher.",
            )
        return train_with_labels(options, output, training, fit_settings(options))
    provenance = {}
    if options.footage_licence:
        provenance["footage_licence"] = options.footage_licence
    automatic = options.latent_dim == "auto"
    dim = (
        pipeline.TRAINED
        if automatic
        else options.latent_dim
        or (ARCHITECTURES[arch].latent_dim if teacher == "none" else ARCHITECTURES[arch].taught_dim)
    )
    settings = pipeline.TrainOptions(
        model=AutoencoderConfig(options.arch, dim, options.channels or 3),
        reduce_to="auto" if automatic else None,
        image_size=options.imgsz,
        resize=options.resize,
        output_stride=options.output_stride,
        training=training,
        fit=fit_settings(options),
        max_frames=options.max_frames,
        keep_frames=not options.no_keep_frames,
        fresh=options.fresh,
        region=read_mask(options.roi),
        decoder=options.with_decoder,
        provenance=provenance,
    )
    from aeseg_edge.export.training.team import join_team

    with join_team() as team:
        if not team.first:
            logging.getLogger().setLevel(logging.ERROR)
            pipeline.join_training(sources, output, settings, team)
            return 0
        if team.size > 1:
            _log.info(
                "%d processes train together, %d images a step each", team.size, training.batch
            )
        with Progress() as progress:
            trained = pipeline.train_bundle(
                sources, output, settings, progress=progress.update, team=team
            )
    _report(trained.fitted, output, options, trained.dimension)
    return 0


def _export(options: argparse.Namespace) -> int:
    pipeline = _import_pipeline()
    from aeseg_edge.cli.progress import Progress

    both = options.sources or options.modalities is not None
    sources = all_sources(options.sources, options) if both else []
    output = check_output(options.output, ".aeseg")
    settings = fit_settings(options, pipeline.remembered_fit(options.folder))
    if pipeline.has_labels(options.folder):
        return export_with_labels(options, output, settings)
    names = _names(options, None)
    with Progress() as progress:
        trained = pipeline.export_bundle(
            options.folder,
            output,
            sources=sources,
            image_size=options.imgsz,
            output_stride=options.output_stride,
            fit=settings,
            reduce_to=options.latent_dim,
            names_from=names,
            max_frames=options.max_frames,
            region=read_mask(options.roi),
            decoder=options.with_decoder,
            progress=progress.update,
        )
    _report(trained.fitted, output, options, trained.dimension)
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from aeseg_edge.bundle.archive import Bundle
    from aeseg_edge.calibration.footage.gather import gather
    from aeseg_edge.cli.progress import Progress

    sources = all_sources(options.sources, options)
    output = check_output(options.output, ".aeseg")
    bundle = Bundle.open(options.bundle)
    manifest = bundle.manifest
    check_label_free(manifest.method, options)
    calibration = import_calibration()
    settings = fit_settings(options, calibration.settings_of(manifest))
    names = _names(options, bundle)

    geometry = manifest.geometry
    with Progress() as progress:
        footage = gather(
            sources,
            size=(geometry.width, geometry.height),
            channels=geometry.channels,
            resize=geometry.resize,
            max_frames=options.max_frames,
            holdout=0.0,
            seed=options.seed,
            modalities=manifest.modalities,
            progress=lambda done, total, source: progress.update(
                "footage", done / max(1, total), str(source)
            ),
        )
        progress.update("footage", 1.0)
        _log.info("footage: %d frames", len(footage.frames))
        fitted = calibration.recalibrate(
            bundle,
            list(footage.frames),
            settings,
            sizes=footage.sizes,
            provenance={"calibration_footage": [each.source for each in footage.report.sources]},
            names_from=names,
            progress=progress.update,
        )
    fitted.bundle.write(output)
    _report(fitted, output, options)
    return 0


def _names(options: argparse.Namespace, own: Bundle | None) -> Bundle | None:
    """Open the bundle whose names are to be kept; None for fresh names."""
    from aeseg_edge.bundle.archive import Bundle

    if options.names_from == "none":
        return None
    if options.names_from is not None:
        return Bundle.open(options.names_from)
    if own is not None and own.codebook.centres is None:
        _log.warning(
            "the codebook of %s (%s) has no centres: clusters get fresh names",
            options.bundle,
            own.codebook.method,
        )
        return None
    return own


def _stability(fitted: Fitted) -> str:
    found = fitted.stability
    parts = [
        f"{title} {value:.2f}"
        for title, value in (
            (f"between {found.tried} starts", found.restarts),
            ("between halves of the footage", found.halves),
        )
        if value is not None
    ]
    low = "  LOW: other footage would give other clusters" if found.low else ""
    return (", ".join(parts) or "not measured, there is too little footage") + low


def _report(
    fitted: Fitted,
    output: Path,
    options: argparse.Namespace,
    dimension: DimensionChoice | None = None,
) -> None:
    """Say what was made; loudly where a precision does not reach the gate."""
    from aeseg_edge.calibration.clusters.curves import write_curve

    manifest = fitted.bundle.manifest
    drawn = [item.curve() for item in (fitted.choice, dimension) if item is not None]
    curves = [path for curve in drawn for path in write_curve(curve, output)]
    if options.json != "-":
        print(f"{output}  ({output.stat().st_size / 1e6:.2f} MB): {manifest.clusters} clusters")
        print(f"  stability (ARI): {_stability(fitted)}")
        if fitted.matched is not None:
            print(f"  {fitted.matched.count} of {manifest.clusters} clusters keep their names")
        for path in curves:
            print(f"  curve: {path}")
        for line in entries_table(manifest):
            print(f"  {line}")
        print_below(fitted.below, options.min_agreement)
    write_json(
        options.json,
        {
            "bundle": str(output),
            "clusters": manifest.clusters,
            "stability_ari": fitted.stability.restarts,
            "stability": fitted.stability.to_json(),
            "names": None if fitted.matched is None else fitted.matched.to_json(),
            "clusters_chosen": None if fitted.choice is None else fitted.choice.to_json(),
            "latents_chosen": None if dimension is None else dimension.to_json(),
            "curves": [str(path) for path in curves],
            "shares": [float(s) for s in fitted.clustering.shares],
            **agreement_json(fitted.agreements, fitted.below),
            "training": dict(manifest.training),
        },
    )
