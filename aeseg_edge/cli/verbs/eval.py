"""``aeseg eval``: how good a bundle's labels are, by labelled frames."""

from __future__ import annotations

import argparse
from pathlib import Path

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.manifest import BACKENDS
from aeseg_edge.cli import options as shared
from aeseg_edge.cli.fields import add_options
from aeseg_edge.cli.output import show
from aeseg_edge.cli.progress import Progress
from aeseg_edge.errors import UsageError
from aeseg_edge.segment.settings import RunnerSettings
from aeseg_edge.support.options import positive

EXAMPLE = (
    "aeseg eval street.aeseg --images test --masks testannot --classes classes.txt --ignore 11"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, metavar="DIR", help="frames to score")
    shared.add_modalities(parser, stands_for="--images")
    parser.add_argument(
        "--masks",
        required=True,
        type=Path,
        metavar="DIR",
        help="8-bit index PNGs, named as the images",
    )
    shared.add_classes(parser, required=True)
    parser.add_argument(
        "--fit-images",
        type=Path,
        metavar="DIR",
        help="labelled frames that name the clusters by majority",
    )
    parser.add_argument(
        "--fit-masks", type=Path, metavar="DIR", help="their masks, named as the images"
    )
    parser.add_argument(
        "--fit-every",
        type=positive,
        metavar="N",
        help="use every N-th of them (default 1)",
    )
    add_options(parser, RunnerSettings)
    parser.add_argument(
        "--graph",
        choices=BACKENDS,
        help="run the graph made for this backend, on ONNX Runtime (slow for tensorrt)",
    )
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    from aeseg_edge.calibration.footage.masks import find_pairs, read_classes, reader_for
    from aeseg_edge.calibration.score.evaluation import evaluate, format_table, outside_region

    if (options.fit_images is None) != (options.fit_masks is None):
        raise UsageError("--fit-images and --fit-masks go together", fix="Give both or neither.")
    names = read_classes(options.classes)
    scenes = None
    if options.modalities is None:
        if options.images is None:
            raise UsageError("no frames are given", fix="Give --images DIR or --modalities.")
        pairs = find_pairs(options.images, options.masks)
    else:
        from aeseg_edge.calibration.footage.scenes import LabelledScenes

        if options.images or options.fit_images:
            raise UsageError(
                "--modalities goes with neither --images nor --fit-images",
                fix="Name the clusters first, where they are to be named: aeseg name.",
            )
        scenes = LabelledScenes(
            shared.all_sources([], options)[0], options.masks, Bundle.open(options.bundle).manifest
        )
        pairs = scenes.pairs
    fit_pairs = find_pairs(options.fit_images, options.fit_masks) if options.fit_images else None
    with (
        shared.open_segmenter(options.bundle, options, graph=options.graph) as segmenter,
        Progress() as progress,
    ):
        codebook = segmenter.codebook
        named = {
            cluster: item.name
            for cluster, class_id in enumerate(codebook.remap.tolist())
            if (item := codebook.class_of(class_id)) is not None
        }
        report = evaluate(
            segmenter.clusters,
            pairs,
            names,
            clusters=codebook.clusters,
            ignore=options.ignore,
            fit_pairs=fit_pairs,
            fit_every=options.fit_every or 1,
            named=named,
            progress=lambda done, total: progress.update("evaluating", done / total),
            read=reader_for(segmenter.manifest) if scenes is None else scenes.read,
            outside=outside_region(segmenter.bundle),
        )
    show(options, format_table(report), report.to_json())
    return 0
