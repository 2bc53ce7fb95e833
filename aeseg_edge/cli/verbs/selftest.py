"""``aeseg selftest``: engines built here, their labels compared with ONNX Runtime's."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from aeseg_edge.cli.options import add_cache, add_json, open_bundle, open_for
from aeseg_edge.cli.output import write_json
from aeseg_edge.cli.progress import Progress
from aeseg_edge.cli.verbs.build import build_engines
from aeseg_edge.measure.selftest import run_selftest
from aeseg_edge.support.options import positive, share

EXAMPLE = "aeseg selftest street.aeseg --source drive.mp4"
FRAMES = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument(
        "bundle", type=Path, nargs="?", help="default: the pretrained street bundle"
    )
    parser.add_argument(
        "--source", default="test://640x480@30", help="frames; default: a drawn scene"
    )
    parser.add_argument(
        "--frames", type=positive, default=1000, help="frames to run for memory (default 1000)"
    )
    parser.add_argument(
        "--min-agreement",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="of labels with those of ONNX Runtime (default 0.95)",
    )
    add_cache(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    bundle = open_bundle(options)
    with open_for(bundle.manifest, options.source) as source:
        frames = [frame.image for frame in islice(source, FRAMES)]

    def build(precision: str) -> float | None:
        return build_engines(bundle, (precision,), cache_dir=options.cache_dir)[0].seconds

    with Progress(plain=True) as progress:
        result = run_selftest(
            bundle,
            frames,
            build,
            cache_dir=options.cache_dir,
            soak=options.frames,
            min_agreement=options.min_agreement,
            progress=progress.update,
        )
    if options.json != "-":
        print(result.report())
    write_json(options, asdict(result))
    return 0 if result.passed else 1
