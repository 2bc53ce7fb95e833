"""``aeseg train``: footage to bundle."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.cli import options as shared
from aeseg_edge.cli.fields import add_options, filled, given
from aeseg_edge.cli.files import check_output
from aeseg_edge.cli.output import report_fitted
from aeseg_edge.cli.progress import Progress
from aeseg_edge.cli.verbs.train_labels import check_label_free, check_labelled, train_labelled
from aeseg_edge.errors import UsageError
from aeseg_edge.export.network.config import AutoencoderConfig
from aeseg_edge.export.settings import Labels, TrainOptions
from aeseg_edge.export.training.settings import TrainSettings

_log = logging.getLogger(__name__)

EXAMPLE = "aeseg train drive.mp4 photos/ -o street.aeseg --imgsz 480x360 --clusters 27"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    shared.add_footage(parser, "videos, folders of images, globs, zips of images")
    add_options(parser, AutoencoderConfig)
    add_options(parser, TrainOptions, leave=("reduce_to",))
    add_options(parser, TrainSettings)
    parser.add_argument("--footage-licence", metavar="TEXT", help="noted in the bundle")
    add_options(parser, FitSettings)
    shared.add_roi(parser, "; goes into the bundle")
    group = parser.add_argument_group("training with labels")
    group.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="8-bit index PNGs, named as the images of SOURCE (one folder): train a per-pixel "
        "classifier behind the encoder",
    )
    shared.add_classes(group)
    add_options(group, Labels)
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    with shared.needing("host", "training needs a package that is not importable"):
        from aeseg_edge.export import pipeline
    from aeseg_edge.export.network.catalogue import ARCHITECTURES, DEFAULT_ARCHITECTURE, NO_TEACHER
    from aeseg_edge.export.training.team import join_team

    sources = shared.all_sources(options.sources, options)
    if options.channels is not None and options.modalities is not None:
        raise UsageError(
            "--channels and --modalities exclude each other",
            fix="Leave --channels out; state a modality's as thermal:1=DIR.",
        )
    output = check_output(options.output, ".aeseg")
    labelled = options.masks is not None
    (check_labelled if labelled else check_label_free)(options)
    arch = DEFAULT_ARCHITECTURE if options.start is None else pipeline.arch_of(options.start)
    arch = options.arch or arch
    usual = ARCHITECTURES[arch]
    teacher = options.teacher or usual.teacher
    if labelled and teacher not in (NO_TEACHER, usual.teacher):
        raise UsageError(
            f"--teacher {teacher} does nothing with --masks",
            fix="Leave it out; lite starts from the weights of its own teacher.",
        )
    fit = shared.fit_settings(options)
    said = given(options, TrainSettings) | {"teacher": teacher}
    network = given(options, AutoencoderConfig)
    automatic = options.latent_dim == "auto"
    if automatic:
        network["latent_dim"] = pipeline.TRAINED
    taught = teacher != NO_TEACHER and not labelled
    network.setdefault("latent_dim", usual.taught_dim if taught else usual.latent_dim)
    licence = options.footage_licence
    settings = filled(
        options,
        TrainOptions,
        model=AutoencoderConfig(**network),
        training=TrainSettings.for_arch(arch, seed=fit.seed, threads=fit.threads, **said),
        fit=fit,
        reduce_to="auto" if automatic else None,
        region=shared.read_mask(options.roi),
        provenance={"footage_licence": licence} if licence else {},
    )
    if labelled:
        return train_labelled(options, output, settings)
    with join_team() as team:
        if not team.first:
            logging.getLogger("aeseg_edge").setLevel(logging.ERROR)
            pipeline.join_training(sources, output, settings, team)
            return 0
        if team.size > 1:
            _log.info(
                "%d processes train together, %d images a step each",
                team.size,
                settings.training.batch,
            )
        with Progress() as progress:
            trained = pipeline.train_bundle(
                sources, output, settings, progress=progress.update, team=team
            )
    report_fitted(trained.fitted, output, options, fit.minimum_agreement, trained.dimension)
    return 0
