"""``aeseg report``: all precisions of a bundle on real frames, as one HTML page."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

from aeseg_edge.cli import options as shared
from aeseg_edge.cli.files import check_output
from aeseg_edge.cli.output import write_json
from aeseg_edge.cli.progress import Progress
from aeseg_edge.errors import SinkError
from aeseg_edge.measure.machine import environment
from aeseg_edge.support.files import write_bytes
from aeseg_edge.support.options import positive
from aeseg_edge.support.text import as_text, without_password

EXAMPLE = "aeseg report street.aeseg drive.mp4 -o report.html"
FRAMES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", nargs="?", help="video, folder, glob, camera")
    shared.add_modalities(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE.html")
    parser.add_argument(
        "--frames",
        type=positive,
        default=FRAMES,
        metavar="N",
        help=f"look at N frames, evenly over a recording whose length is known (default {FRAMES})",
    )
    parser.add_argument(
        "--no-layers", action="store_true", help="leave the int8 layers out: faster"
    )
    parser.add_argument("--threads", type=positive, help="threads for ONNX Runtime")
    shared.add_imgsz(parser, "at another size (default: the bundle's own)")
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    with shared.needing("calibrate", "the report is made with a package that is not importable"):
        from aeseg_edge.calibration.report.page import render_page
        from aeseg_edge.calibration.score.by_precision import compare_precisions

    uri = shared.one_source(options)
    output = check_output(options.output, ".html")
    bundle = shared.open_bundle(options)
    with shared.open_for(bundle.manifest, uri) as source, Progress() as progress:
        step = 1 if source.live or not source.total else max(1, source.total // options.frames)
        chosen = islice(source, 0, options.frames * step, step)
        known = options.frames if source.live else source.total and -(-source.total // step)
        found = compare_precisions(
            bundle,
            (frame.image for frame in chosen),
            source=without_password(uri),
            total=None if not known else min(known, options.frames),
            layers=not options.no_layers,
            threads=options.threads,
            progress=progress.update,
        )
    cpu = (environment().get("cpu") or {}).get("model") or "unknown processor"
    threads = f"{options.threads or 'all'} thread{'' if options.threads == 1 else 's'}"
    page = render_page(
        found,
        title=options.bundle.name,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        machine=f"{cpu}, {threads}",
    )
    write_bytes(output, as_text(page).encode(), error=SinkError)
    if options.json != "-":
        print(f"{output}  ({output.stat().st_size / 1e6:.2f} MB), {found.frames} frames")
        for each in found.figures:
            if each.agreement is not None:
                print(
                    f"  {each.title:<32} labels equal {100 * each.agreement.labels_equal:6.2f} %  "
                    f"worst frame {100 * each.agreement.worst_labels_equal:6.2f} %"
                )
    write_json(options, {"report": str(output), **found.to_json()})
    return 0
