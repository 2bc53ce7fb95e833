"""``aeseg flicker``: how much labels change where the picture stands still."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from aeseg_edge.cli.fields import add_options
from aeseg_edge.cli.options import add_json, open_for, open_segmenter
from aeseg_edge.cli.output import write_json
from aeseg_edge.errors import UsageError
from aeseg_edge.measure.flicker import UNCHANGED, FlickerMeter
from aeseg_edge.segment.settings import RunnerSettings
from aeseg_edge.segment.smoothing import default_strength
from aeseg_edge.sources.scene import TestSource
from aeseg_edge.support.options import positive, strength
from aeseg_edge.support.text import without_password

EXAMPLE = "aeseg flicker street.aeseg drive.mp4 --smooth 0.9"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source")
    add_options(parser, RunnerSettings)
    parser.add_argument(
        "--smooth",
        action="append",
        type=strength,
        metavar="S",
        help="strength to compare with none (repeatable; default: the bundle's own)",
    )
    parser.add_argument(
        "--frames", type=positive, metavar="N", help="stop after N frames; needed for cameras"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    with open_segmenter(options.bundle, options) as segmenter:
        strengths = [0.0, *(options.smooth or [default_strength(segmenter.manifest)])]
        meters = [FlickerMeter() for _ in strengths]
        with open_for(segmenter.manifest, options.source) as source:
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
        options,
        {
            "source": without_password(options.source),
            "threshold": UNCHANGED,
            "strengths": [{"smooth": smooth, **found.to_json()} for smooth, found in results],
        },
    )
    return 0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
