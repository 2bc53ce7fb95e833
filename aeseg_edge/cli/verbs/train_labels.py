"""The part of ``aeseg train`` and ``aeseg export`` that has labels: --masks."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.cli.fields import filled
from aeseg_edge.cli.options import read_mask
from aeseg_edge.cli.output import agreement_json, entries_table, print_below, write_json
from aeseg_edge.cli.progress import Progress
from aeseg_edge.errors import UsageError
from aeseg_edge.export.settings import Labels, TrainOptions
from aeseg_edge.sources.depth import split_levels

if TYPE_CHECKING:
    from aeseg_edge.calibration.assemble import Assembled

_ONLY_LABELLED = ("classes", "ignore", "class_weights", "start", "tune")
_CLUSTERS = ("clusters", "clustering", "covariance", "balance")
_ONLY_LABEL_FREE = (*_CLUSTERS, "loss", "decoder", "modalities")
_OPTIONS = {"start": "from", "decoder": "with-decoder", "reduce_to": "latent-dim"}


def check_label_free(options: argparse.Namespace) -> None:
    """Refuse, before anything is read, what goes with labels alone."""
    for name in _ONLY_LABELLED:
        if getattr(options, name) is not None:
            raise UsageError(
                f"{_option(name)} does nothing without --masks", fix="Give --masks DIR."
            )


def check_labelled(options: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is read."""
    if options.classes is None:
        raise UsageError("--masks needs the names of the classes", fix="Give --classes FILE.")
    for name in _ONLY_LABEL_FREE:
        if getattr(options, name):
            raise UsageError(f"{_option(name)} does nothing with --masks", fix="Leave it out.")
    if len(options.sources) != 1 or not Path(split_levels(options.sources[0])[0]).is_dir():
        raise UsageError(
            f"--masks goes with one folder of images, not {' '.join(options.sources)}",
            fix="Give the folder whose images the masks are named as.",
        )
    if options.latent_dim == "auto":
        raise UsageError("--latent-dim auto is for training without labels", fix="Give a number.")
    if options.start is None:
        return
    for name in ("arch", "latent_dim", "channels"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"{_option(name)} is that of {options.start}, which training starts from",
                fix="Leave it out.",
            )
    if options.teacher not in (None, "none"):
        raise UsageError("--teacher does nothing with --from", fix="Leave it out.")


def train_labelled(options: argparse.Namespace, output: Path, settings: TrainOptions) -> int:
    """Run ``aeseg train --masks``; ``settings`` are those of any training."""
    from aeseg_edge.calibration.footage.masks import read_classes
    from aeseg_edge.export.training.team import started_together

    if started_together():
        raise UsageError(
            "training with labels runs in one process",
            fix="Start it without torchrun; --threads uses all cores.",
        )
    from aeseg_edge.export.pipeline import train_bundle

    names = read_classes(options.classes)
    labels = filled(options, Labels, masks=options.masks, class_names=names, ignore=options.ignore)
    with Progress() as progress:
        trained = train_bundle(
            options.sources, output, replace(settings, labels=labels), progress=progress.update
        )
    _report(trained.made, output, options, settings.fit)
    return 0


def export_labelled(options: argparse.Namespace, output: Path, fit: FitSettings) -> int:
    """Run ``aeseg export`` on the checkpoint of a training with labels."""
    from aeseg_edge.export.pipeline import export_bundle

    for name in (*_CLUSTERS, "names_from", "reduce_to", "decoder", "modalities", "sources"):
        if getattr(options, name):
            raise UsageError(
                f"{options.folder} was trained with labels: {_option(name)} does nothing",
                fix="Leave it out.",
            )
    with Progress() as progress:
        exported = export_bundle(
            options.folder,
            output,
            image_size=options.image_size,
            output_stride=options.output_stride,
            fit=fit,
            region=read_mask(options.roi),
            progress=progress.update,
        )
    _report(exported.made, output, options, fit)
    return 0


def _report(made: Assembled, output: Path, options: argparse.Namespace, fit: FitSettings) -> None:
    manifest = made.bundle.manifest
    training = dict(manifest.training)
    if options.json != "-":
        size = output.stat().st_size / 1e6
        print(f"{output}  ({size:.2f} MB): {manifest.clusters} classes, trained with labels")
        if training.get("validation_miou") is not None:
            print(f"  mIoU on held-out frames: {100 * training['validation_miou']:.1f} %")
        for line in entries_table(manifest):
            print(f"  {line}")
        print_below(made.below, fit.minimum_agreement)
    write_json(
        options,
        {
            "bundle": str(output),
            "classes": [item.name for item in manifest.classes],
            **agreement_json(made.agreements, made.below),
            "training": training,
        },
    )


def _option(name: str) -> str:
    return "--" + _OPTIONS.get(name, name).replace("_", "-") if name != "sources" else "SOURCE"
