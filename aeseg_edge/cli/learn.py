"""Verbs that make a bundle: train, export, calibrate."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    share,
    size,
    write_json,
)
from aeseg_edge.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from aeseg_edge.calibration.fit import FitSettings, Fitted

_log = logging.getLogger(__name__)

ARCHS = ("edge", "shallow", "deep")
DEFAULT_CLUSTERS = 27
DEFAULT_CLUSTERING = "spherical"


def add_verbs(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add this module's verbs."""
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
    train.add_argument("--arch", choices=ARCHS, default="edge")
    train.add_argument(
        "--imgsz",
        type=size,
        metavar="WxH",
        help="default: 480x360 (edge), 224x224 (shallow), 256x256 (deep)",
    )
    train.add_argument(
        "--latent-dim",
        type=positive,
        default=32,
        metavar="D",
        help="latent channels: how fine the segmentation can be (default 32)",
    )
    train.add_argument(
        "--channels",
        type=int,
        choices=(1, 3, 4),
        help="of the pictures (default 3, or those of --modalities)",
    )
    train.add_argument("--resize", choices=("stretch", "letterbox"), default="stretch")
    train.add_argument("--loss", choices=("mse", "bce", "l1"), help="default: the architecture's")
    train.add_argument("--optimizer", choices=("sgd", "adam", "adamw"))
    train.add_argument(
        "--learning-rate", "--lr", type=float, metavar="RATE", help="peak learning rate"
    )
    train.add_argument("--batch", type=positive)
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
    _add_fit(train)
    _add_graph(train)
    _add_decoder(train)
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
    export.add_argument("--imgsz", type=size, metavar="WxH")
    export.add_argument("--max-frames", type=positive, default=600, metavar="N")
    _add_fit(export, as_before="as trained")
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
    calibrate.add_argument("sources", nargs="*", metavar="SOURCE")
    add_modalities(calibrate)
    calibrate.add_argument("-o", "--output", required=True, type=Path, metavar="NAME.aeseg")
    calibrate.add_argument("--max-frames", type=positive, default=600, metavar="N")
    _add_fit(calibrate, as_before="as in the bundle")
    add_json(calibrate)


def _add_fit(parser: argparse.ArgumentParser, *, as_before: str = "") -> None:
    parser.add_argument(
        "--clusters",
        type=positive,
        default=None if as_before else DEFAULT_CLUSTERS,
        metavar="K",
        help=f"2..1024 (default {as_before or DEFAULT_CLUSTERS})",
    )
    parser.add_argument(
        "--clustering",
        choices=("kmeans", "spherical"),
        default=None if as_before else DEFAULT_CLUSTERING,
        help="by nearest centre, or by nearest direction whatever the contrast "
        f"(default {as_before or DEFAULT_CLUSTERING})",
    )
    parser.add_argument("--restarts", type=positive, default=4, help="K-means starts (default 4)")
    parser.add_argument(
        "--ranges",
        choices=("minmax", "percentile", "entropy"),
        default="minmax",
        help="how int8 ranges are found",
    )
    parser.add_argument(
        "--min-agreement",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="gate on agreement with fp32 (default 0.95)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=positive)


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
        help="put the decoder into the bundle: aeseg run --view decoded and --view error",
    )


def _fit_settings(options: argparse.Namespace, **changes: Any) -> FitSettings:
    try:
        from aeseg_edge.calibration.fit import FitSettings
    except ImportError as error:
        raise MissingDependency(
            f"calibration needs a package that is not importable ({error})",
            fix="Install it: pip install 'aeseg_edge[calibrate]'.",
        ) from error
    values = {
        "clusters": options.clusters,
        "clustering": options.clustering,
        "restarts": options.restarts,
        "seed": options.seed,
        "ranges": options.ranges,
        "minimum_agreement": options.min_agreement,
        "threads": options.threads,
    }
    return FitSettings(**values | changes)


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
    from aeseg_edge.export.autoencoder import AutoencoderConfig
    from aeseg_edge.export.settings import TrainSettings

    sources = all_sources(options.sources, options)
    if options.channels is not None and options.modalities is not None:
        raise UsageError(
            "--channels and --modalities exclude each other",
            fix="Leave --channels out; state a modality's as thermal:1=DIR.",
        )
    output = check_output(options.output, ".aeseg")
    training = TrainSettings.for_arch(
        options.arch,
        loss=options.loss,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        batch=options.batch,
        epochs=options.epochs,
        minutes=options.minutes,
        augment=not options.no_augment,
        seed=options.seed,
        threads=options.threads,
    )
    provenance = {}
    if options.footage_licence:
        provenance["footage_licence"] = options.footage_licence
    settings = pipeline.TrainOptions(
        model=AutoencoderConfig(options.arch, options.latent_dim, options.channels or 3),
        image_size=options.imgsz,
        resize=options.resize,
        output_stride=options.output_stride,
        training=training,
        fit=_fit_settings(options),
        max_frames=options.max_frames,
        keep_frames=not options.no_keep_frames,
        fresh=options.fresh,
        region=read_mask(options.roi),
        decoder=options.with_decoder,
        provenance=provenance,
    )
    with Progress() as progress:
        trained = pipeline.train_bundle(sources, output, settings, progress=progress.update)
    _report(trained.fitted, output, options)
    return 0


def _export(options: argparse.Namespace) -> int:
    pipeline = _import_pipeline()
    from aeseg_edge.cli.progress import Progress

    both = options.sources or options.modalities is not None
    sources = all_sources(options.sources, options) if both else []
    output = check_output(options.output, ".aeseg")
    told = pipeline.remembered_fit(options.folder)
    settings = _fit_settings(
        options,
        clusters=options.clusters or told.get("clusters", DEFAULT_CLUSTERS),
        clustering=options.clustering or told.get("clustering", DEFAULT_CLUSTERING),
    )
    with Progress() as progress:
        trained = pipeline.export_bundle(
            options.folder,
            output,
            sources=sources,
            image_size=options.imgsz,
            output_stride=options.output_stride,
            fit=settings,
            max_frames=options.max_frames,
            region=read_mask(options.roi),
            decoder=options.with_decoder,
            progress=progress.update,
        )
    _report(trained.fitted, output, options)
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from aeseg_edge.bundle import Bundle
    from aeseg_edge.cli.progress import Progress
    from aeseg_edge.export.footage import gather

    sources = all_sources(options.sources, options)
    output = check_output(options.output, ".aeseg")
    bundle = Bundle.open(options.bundle)
    manifest = bundle.manifest
    settings = _fit_settings(
        options,
        clusters=options.clusters or manifest.clusters,
        clustering=options.clustering or manifest.method,
    )
    from aeseg_edge.calibration.fit import recalibrate

    geometry = manifest.geometry
    with Progress() as progress:
        footage = gather(
            sources,
            size=(geometry.width, geometry.height),
            channels=geometry.channels,
            resize="letterbox" if geometry.resize == "letterbox" else "stretch",
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
        fitted = recalibrate(
            bundle,
            list(footage.frames),
            settings,
            provenance={"calibration_footage": [each.source for each in footage.report.sources]},
            progress=progress.update,
        )
    fitted.bundle.write(output)
    _report(fitted, output, options)
    return 0


def _report(fitted: Fitted, output: Path, options: argparse.Namespace) -> None:
    """Say what was made; loudly where a precision does not reach the gate."""
    manifest = fitted.bundle.manifest
    if options.json != "-":
        stability = fitted.clustering.stability
        ari = "" if stability is None else f", stability (ARI between restarts) {stability:.2f}"
        print(
            f"{output}  ({output.stat().st_size / 1e6:.2f} MB): {manifest.clusters} clusters{ari}"
        )
        for line in entries_table(manifest):
            print(f"  {line}")
        for key, found in fitted.below.items():
            print(
                f"WARNING: {key[0]} for {key[1]} agrees with fp32 on only "
                f"{100 * found.labels_equal:.1f} % of the labels, below the gate of "
                f"{100 * options.min_agreement:.1f} %. The bundle marks it not recommended."
            )
    write_json(
        options.json,
        {
            "bundle": str(output),
            "clusters": manifest.clusters,
            "stability_ari": fitted.clustering.stability,
            "shares": [float(s) for s in fitted.clustering.shares],
            "agreement": {
                f"{precision}/{backend}": found.to_json()
                for (precision, backend), found in fitted.agreements.items()
            },
            "below_gate": [f"{p}/{b}" for p, b in fitted.below],
            "training": dict(manifest.training),
        },
    )
