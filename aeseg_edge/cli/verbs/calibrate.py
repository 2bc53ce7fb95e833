"""``aeseg calibrate``: new centres and int8 ranges for a bundle, without torch."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.cli import options as shared
from aeseg_edge.cli.fields import add_options, given
from aeseg_edge.cli.files import check_output
from aeseg_edge.cli.output import report_fitted
from aeseg_edge.cli.progress import Progress
from aeseg_edge.errors import UsageError
from aeseg_edge.export.settings import TrainOptions

_log = logging.getLogger(__name__)

EXAMPLE = "aeseg calibrate street.aeseg night.mp4 --clusters 20 -o night.aeseg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("bundle", type=Path)
    shared.add_footage(parser, "videos, folders of images, globs, zips of images")
    add_options(parser, TrainOptions, only=("max_frames",))
    add_options(parser, FitSettings, before="as in the bundle")
    shared.add_names(parser, "default: those of the bundle itself; none for fresh names")
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    sources = shared.all_sources(options.sources, options)
    output = check_output(options.output, ".aeseg")
    bundle = shared.open_bundle(options)
    manifest = bundle.manifest
    _check_label_free(manifest.method, options)
    calibration = shared.import_calibration()
    from aeseg_edge.calibration.footage.gather import gather
    from aeseg_edge.sources.paths import with_range

    settings = shared.fit_settings(options, calibration.settings_of(manifest))
    names = names_to_keep(options, bundle)

    geometry = manifest.geometry
    with Progress() as progress:
        footage = gather(
            [with_range(uri, manifest.provenance) for uri in sources],
            size=(geometry.width, geometry.height),
            channels=geometry.channels,
            resize=geometry.resize,
            holdout=0.0,
            seed=settings.seed,
            modalities=manifest.modalities,
            progress=lambda done, total, source: progress.update(
                "footage", done / max(1, total), str(source)
            ),
            **given(options, TrainOptions),
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
    report_fitted(fitted, output, options, settings.minimum_agreement)
    return 0


def names_to_keep(options: argparse.Namespace, own: Bundle | None) -> Bundle | None:
    """Open the bundle whose names are to be kept; None for fresh names."""
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


def _check_label_free(method: str, options: argparse.Namespace) -> None:
    """Refuse to put clusters in the place of what was learned from labels, unless told to."""
    if method in ("linear", "supervised") and options.clustering is None:
        raise UsageError(
            f"the codebook of {options.bundle} ({method}) was learned from labels, and new "
            "centres would take its place",
            fix=f"Pass --clustering {FitSettings.clustering} to have clusters instead.",
        )
