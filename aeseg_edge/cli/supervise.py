"""The part of ``aeseg train`` and ``aeseg export`` that has labels: --masks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aeseg_edge.cli.agreement import agreement_json, print_below
from aeseg_edge.cli.options import entries_table, read_mask, write_json
from aeseg_edge.errors import UsageError

if TYPE_CHECKING:
    from aeseg_edge.calibration.assemble import Assembled
    from aeseg_edge.calibration.fit import FitSettings
    from aeseg_edge.export.training.settings import TrainSettings

# What the label-free training takes where nothing is said. The parser's own defaults are
# None, so that what was said can be told from what was not.
_DEFAULTS: dict[str, Any] = {"arch": "edge", "channels": 3, "resize": "stretch"}
LATENT_DIM = 32
_ONLY_LABELLED = ("classes", "ignore", "class_weights", "start", "tune")
_CLUSTERS = ("clusters", "clustering", "covariance", "balance")
_ONLY_LABEL_FREE = (*_CLUSTERS, "loss", "with_decoder", "modalities")
_OPTIONS = {"start": "from"}


def add_supervised(train: argparse.ArgumentParser) -> None:
    """Add ``--masks`` and what belongs to it."""
    group = train.add_argument_group("training with labels")
    group.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="8-bit index PNGs, named as the images of SOURCE (one folder): train a per-pixel "
        "classifier behind the encoder",
    )
    group.add_argument(
        "--classes", type=Path, metavar="FILE", help="one class name a line, for 0, 1, ..."
    )
    group.add_argument("--ignore", type=int, metavar="ID", help="mask value left out")
    group.add_argument(
        "--class-weights",
        choices=("none", "log", "power"),
        help="power: frequency^-0.3; log: 1/ln(1.02 + frequency), for rare classes (default: none)",
    )
    group.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="NAME.train",
        help="start from the encoder of an earlier training: its architecture, size and --resize",
    )
    group.add_argument(
        "--tune",
        choices=("all", "head"),
        help="head: leave the encoder of --from as it is (default: all)",
    )
    train.set_defaults(**dict.fromkeys((*_DEFAULTS, *_CLUSTERS)))


def fill_defaults(options: argparse.Namespace) -> None:
    """Set what a label-free training takes where nothing was said.

    Raises:
        UsageError: For an option that needs ``--masks``.
    """
    for name in _ONLY_LABELLED:
        if getattr(options, name) is not None:
            raise UsageError(
                f"{_option(name)} does nothing without --masks", fix="Give --masks DIR."
            )
    for name, value in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def check_supervised(options: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is read; fill in the architecture.

    Raises:
        UsageError: For options that contradict one another or do nothing.
    """
    if options.classes is None:
        raise UsageError("--masks needs the names of the classes", fix="Give --classes FILE.")
    for name in _ONLY_LABEL_FREE:
        if getattr(options, name):
            raise UsageError(f"{_option(name)} does nothing with --masks", fix="Leave it out.")
    if len(options.sources) != 1 or not Path(options.sources[0]).is_dir():
        raise UsageError(
            f"--masks goes with one folder of images, not {' '.join(options.sources)}",
            fix="Give the folder whose images the masks are named as.",
        )
    if options.latent_dim == "auto":
        raise UsageError("--latent-dim auto is for training without labels", fix="Give a number.")
    if options.start is None:
        options.arch = options.arch or _DEFAULTS["arch"]
        return
    for name in ("arch", "latent_dim", "channels"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"{_option(name)} is that of {options.start}, which training starts from",
                fix="Leave it out.",
            )
    if options.teacher not in (None, "none"):
        raise UsageError("--teacher does nothing with --from", fix="Leave it out.")


def train_with_labels(
    options: argparse.Namespace,
    output: Path,
    training: TrainSettings,
    fit: FitSettings,
) -> int:
    """Run ``aeseg train --masks``.

    Args:
        options: Of ``aeseg train``, checked.
        output: NAME.aeseg.
        training: How to train.
        fit: Ranges and gate.
    """
    from aeseg_edge.calibration.footage.masks import read_classes
    from aeseg_edge.export.training.team import started_together

    if started_together():
        raise UsageError(
            "training with labels runs in one process",
            fix="Start it without torchrun; --threads uses all cores.",
        )
    from aeseg_edge.cli.progress import Progress
    from aeseg_edge.export.network.autoencoder import AutoencoderConfig
    from aeseg_edge.export.pipeline import Labels, TrainOptions, train_bundle

    model = AutoencoderConfig(
        options.arch or _DEFAULTS["arch"],
        options.latent_dim or LATENT_DIM,
        options.channels or _DEFAULTS["channels"],
    )
    provenance: dict[str, Any] = {}
    if options.footage_licence:
        provenance["footage_licence"] = options.footage_licence
    settings = TrainOptions(
        labels=Labels(
            options.masks,
            class_names=read_classes(options.classes),
            ignore=options.ignore,
            class_weights=options.class_weights or "none",
            start=options.start,
            tune=options.tune or "all",
        ),
        model=model,
        image_size=options.imgsz,
        resize=options.resize,
        output_stride=options.output_stride,
        training=training,
        fit=fit,
        max_frames=options.max_frames,
        keep_frames=not options.no_keep_frames,
        fresh=options.fresh,
        region=read_mask(options.roi),
        provenance=provenance,
    )
    with Progress() as progress:
        trained = train_bundle(options.sources, output, settings, progress=progress.update)
    _report(trained.made, output, options)
    return 0


def export_with_labels(options: argparse.Namespace, output: Path, fit: FitSettings) -> int:
    """Run ``aeseg export`` on the checkpoint of a training with labels.

    Raises:
        UsageError: For options that are for label-free checkpoints.
    """
    from aeseg_edge.cli.progress import Progress
    from aeseg_edge.export.pipeline import export_bundle

    for name in (
        *(*_CLUSTERS, "names_from", "latent_dim", "with_decoder", "modalities", "sources"),
    ):
        if getattr(options, name):
            raise UsageError(
                f"{options.folder} was trained with labels: {_option(name)} does nothing",
                fix="Leave it out.",
            )
    with Progress() as progress:
        exported = export_bundle(
            options.folder,
            output,
            image_size=options.imgsz,
            output_stride=options.output_stride,
            fit=fit,
            region=read_mask(options.roi),
            progress=progress.update,
        )
    _report(exported.made, output, options)
    return 0


def check_label_free(method: str, options: argparse.Namespace) -> None:
    """Refuse to put clusters in the place of what was learned from labels, unless told to.

    Args:
        method: Of the bundle's codebook.
        options: Of ``aeseg calibrate``.

    Raises:
        UsageError: If that would happen unasked.
    """
    if method in ("linear", "supervised") and options.clustering is None:
        raise UsageError(
            f"the codebook of {options.bundle} ({method}) was learned from labels, and new "
            "centres would take its place",
            fix="Pass --clustering spherical to have clusters instead.",
        )


def _report(made: Assembled, output: Path, options: argparse.Namespace) -> None:
    manifest = made.bundle.manifest
    training = dict(manifest.training)
    if options.json != "-":
        size = output.stat().st_size / 1e6
        print(f"{output}  ({size:.2f} MB): {manifest.clusters} classes, trained with labels")
        if training.get("validation_miou") is not None:
            print(f"  mIoU on held-out frames: {100 * training['validation_miou']:.1f} %")
        for line in entries_table(manifest):
            print(f"  {line}")
        print_below(made.below, options.min_agreement)
    write_json(
        options.json,
        {
            "bundle": str(output),
            "classes": [item.name for item in manifest.classes],
            **agreement_json(made.agreements, made.below),
            "training": training,
        },
    )


def _option(name: str) -> str:
    return "--" + _OPTIONS.get(name, name).replace("_", "-") if name != "sources" else "SOURCE"
