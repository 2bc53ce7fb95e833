"""Verbs that measure a bundle: eval, flicker."""

from __future__ import annotations

import argparse
from pathlib import Path

from aeseg_edge.cli.options import (
    Verbs,
    add_json,
    add_modalities,
    add_runner,
    add_verb,
    all_sources,
    positive,
    strength,
    write_json,
)
from aeseg_edge.errors import UsageError
from aeseg_edge.support.text import without_password


def add_verbs(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add this module's verbs."""
    evaluate = add_verb(
        verbs,
        common,
        "eval",
        _eval,
        summary="score a bundle on labelled frames",
        example="aeseg eval street.aeseg --images test --masks testannot --classes classes.txt "
        "--ignore 11",
    )
    evaluate.add_argument("bundle", type=Path)
    evaluate.add_argument("--images", type=Path, metavar="DIR", help="frames to score")
    add_modalities(evaluate, stands_for="--images")
    evaluate.add_argument(
        "--masks",
        required=True,
        type=Path,
        metavar="DIR",
        help="8-bit index PNGs, named as the images",
    )
    evaluate.add_argument(
        "--classes", required=True, type=Path, metavar="FILE", help="one class name a line"
    )
    evaluate.add_argument("--ignore", type=int, metavar="ID", help="mask value left out")
    evaluate.add_argument(
        "--fit-images",
        type=Path,
        metavar="DIR",
        help="labelled frames that name the clusters by majority",
    )
    evaluate.add_argument(
        "--fit-masks", type=Path, metavar="DIR", help="their masks, named as the images"
    )
    evaluate.add_argument(
        "--fit-every",
        type=positive,
        default=1,
        metavar="N",
        help="use every N-th of them (default 1)",
    )
    add_runner(evaluate)
    evaluate.add_argument(
        "--graph",
        choices=("onnxruntime", "tensorrt"),
        help="run the graph made for this backend, on ONNX Runtime (slow for tensorrt)",
    )
    add_json(evaluate)

    flicker = add_verb(
        verbs,
        common,
        "flicker",
        _flicker,
        summary="measure how much labels flicker where the picture stands still",
        example="aeseg flicker street.aeseg drive.mp4 --smooth 0.9",
    )
    flicker.add_argument("bundle", type=Path)
    flicker.add_argument("source")
    add_runner(flicker)
    flicker.add_argument(
        "--smooth",
        action="append",
        type=strength,
        metavar="S",
        help="strength to compare with none (repeatable; default: the bundle's own)",
    )
    flicker.add_argument(
        "--frames", type=positive, metavar="N", help="stop after N frames; needed for cameras"
    )
    add_json(flicker)


def _eval(options: argparse.Namespace) -> int:
    from aeseg_edge.calibration.score.evaluation import (
        evaluate,
        find_pairs,
        format_table,
        read_classes,
    )
    from aeseg_edge.cli.progress import Progress
    from aeseg_edge.segment.segmenter import Segmenter

    if (options.fit_images is None) != (options.fit_masks is None):
        raise UsageError("--fit-images and --fit-masks go together", fix="Give both or neither.")
    names = read_classes(options.classes)
    scenes = None
    if options.modalities is None:
        if options.images is None:
            raise UsageError("no frames are given", fix="Give --images DIR or --modalities.")
        pairs = find_pairs(options.images, options.masks)
    else:
        from aeseg_edge.bundle.archive import Bundle
        from aeseg_edge.calibration.footage.scenes import LabelledScenes

        if options.images or options.fit_images:
            raise UsageError(
                "--modalities goes with neither --images nor --fit-images",
                fix="Name the clusters first, where they are to be named: aeseg name.",
            )
        scenes = LabelledScenes(
            all_sources([], options)[0], options.masks, Bundle.open(options.bundle).manifest
        )
        pairs = scenes.pairs
    fit_pairs = find_pairs(options.fit_images, options.fit_masks) if options.fit_images else None
    with (
        Segmenter.load(
            options.bundle,
            precision=options.precision,
            backend=options.backend,
            threads=options.threads,
            graph=options.graph,
            imgsz=options.imgsz,
        ) as segmenter,
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
            fit_every=options.fit_every,
            named=named,
            progress=lambda done, total: progress.update("evaluating", done / total),
            read=None if scenes is None else scenes.read,
        )
    if options.json != "-":
        print(format_table(report))
    write_json(options.json, report.to_json())
    return 0


def _flicker(options: argparse.Namespace) -> int:
    from itertools import islice

    from aeseg_edge.measure.flicker import UNCHANGED, FlickerMeter
    from aeseg_edge.segment.segmenter import Segmenter
    from aeseg_edge.segment.smoothing import default_strength
    from aeseg_edge.sources import open_source
    from aeseg_edge.sources.scene import TestSource

    with Segmenter.load(
        options.bundle,
        precision=options.precision,
        backend=options.backend,
        threads=options.threads,
        imgsz=options.imgsz,
    ) as segmenter:
        strengths = [0.0, *(options.smooth or [default_strength(segmenter.manifest)])]
        meters = [FlickerMeter() for _ in strengths]
        manifest = segmenter.manifest
        with open_source(
            options.source, channels=manifest.geometry.channels, modalities=manifest.modalities
        ) as source:
            if options.frames is None and (source.live or isinstance(source, TestSource)):
                raise UsageError(
                    f"{options.source} has no end", fix="Give a recording, or --frames N."
                )
            recording = None
            for frame in islice(source, options.frames):
                if frame.recording != recording:
                    recording = frame.recording
                    segmenter.reset()
                    for meter in meters:
                        meter.restart()
                reference = None
                for stream, (smooth, meter) in enumerate(zip(strengths, meters, strict=True)):
                    segmenter.smooth = smooth
                    labels = segmenter(frame.image, stream=stream).labels
                    meter.add(frame.image, labels, reference)
                    reference = labels if reference is None else reference
    results = [(smooth, meter.result()) for smooth, meter in zip(strengths, meters, strict=True)]
    if options.json != "-":
        first = results[0][1]
        print(
            f"{first.frames} frames; {100 * first.unchanged:.1f} % of the pixels unchanged from "
            f"one frame to the next (mean of 3x3, by at most {UNCHANGED:g} of 255)"
        )
        print("smooth   label changes there   labels elsewhere as without smoothing")
        for smooth, found in results:
            print(f"{smooth:<9.2f}{_percent(found.flicker):>15}{_percent(found.agreement):>28}")
    write_json(
        options.json,
        {
            "source": without_password(options.source),
            "threshold": UNCHANGED,
            "strengths": [{"smooth": smooth, **found.to_json()} for smooth, found in results],
        },
    )
    return 0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
