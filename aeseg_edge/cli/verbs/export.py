"""``aeseg export``: checkpoint to bundle, again."""

from __future__ import annotations

import argparse
from pathlib import Path

from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.cli import options as shared
from aeseg_edge.cli.fields import add_options, given
from aeseg_edge.cli.files import check_output
from aeseg_edge.cli.output import report_fitted
from aeseg_edge.cli.progress import Progress
from aeseg_edge.cli.verbs.calibrate import names_to_keep
from aeseg_edge.cli.verbs.train_labels import export_labelled
from aeseg_edge.errors import UsageError
from aeseg_edge.export.settings import TrainOptions

EXAMPLE = "aeseg export street.train -o small.aeseg --imgsz 320x256 --clusters 16"
_BEFORE = "as trained"
_AGAIN = ("image_size", "output_stride", "max_frames", "reduce_to", "decoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("folder", type=Path, metavar="NAME.train")
    shared.add_footage(parser, "footage; default: the frames kept beside the checkpoint")
    add_options(parser, TrainOptions, only=_AGAIN, before=_BEFORE)
    add_options(parser, FitSettings, before=_BEFORE)
    shared.add_names(parser, "default: none")
    shared.add_roi(parser, f"; goes into the bundle (default: {_BEFORE})")
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    with shared.needing("host", "training needs a package that is not importable"):
        from aeseg_edge.export.pipeline import export_bundle, has_labels, remembered_fit

    both = options.sources or options.modalities is not None
    if options.max_frames is not None and not both:
        raise UsageError(
            "--max-frames does nothing without SOURCE: all frames beside the checkpoint are used",
            fix="Give footage, or leave it out.",
        )
    sources = shared.all_sources(options.sources, options) if both else []
    output = check_output(options.output, ".aeseg")
    settings = shared.fit_settings(options, remembered_fit(options.folder))
    if has_labels(options.folder):
        return export_labelled(options, output, settings)
    names = names_to_keep(options, None)
    with Progress() as progress:
        trained = export_bundle(
            options.folder,
            output,
            sources=sources,
            fit=settings,
            names_from=names,
            region=shared.read_mask(options.roi),
            progress=progress.update,
            **given(options, TrainOptions),
        )
    report_fitted(trained.fitted, output, options, settings.minimum_agreement, trained.dimension)
    return 0
