"""``aeseg bench``: latency in a closed or an open loop, a table of all, or beside others."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.geometry import fit_frame
from aeseg_edge.bundle.manifest import BACKENDS, PRECISIONS
from aeseg_edge.cli import options as shared
from aeseg_edge.cli.fields import add_options, filled
from aeseg_edge.cli.files import check_output
from aeseg_edge.cli.output import show, tell
from aeseg_edge.errors import UsageError
from aeseg_edge.measure import against, openloop, profile
from aeseg_edge.measure import bench as closedloop
from aeseg_edge.measure.machine import environment
from aeseg_edge.measure.settings import BenchSettings
from aeseg_edge.measure.sweep import sweep
from aeseg_edge.segment.settings import RunnerSettings
from aeseg_edge.support.options import natural, seconds

_log = logging.getLogger(__name__)

EXAMPLE = "aeseg bench street.aeseg drive.mp4 --threads 1 --precision int8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", nargs="?", help="synthetic frames without one")
    add_options(parser, RunnerSettings)
    add_options(parser, BenchSettings)
    shared.add_cache(parser)
    parser.add_argument(
        "--rate",
        type=_rate,
        metavar="FPS",
        help="open loop: frames arrive at this rate whether or not the last is done, and a "
        "newer one replaces one that waits; gives frame age and drops",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="a table over precisions, backends and thread counts; what cannot run here is a "
        "row with its reason",
    )
    parser.add_argument(
        "--sweep-threads",
        type=_counts,
        metavar="N,N",
        help="thread counts of --sweep (default: 1 and all cores)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PREFIX",
        help="with --sweep: write PREFIX.md, PREFIX.json and PREFIX.png (distributions)",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="MODEL.onnx",
        help="time the bundle and these models (or bundles) in turn, A B A B, on ONNX Runtime "
        "with equal threads (1 unless --threads says otherwise)",
    )
    parser.add_argument(
        "--split",
        action="store_true",
        help="as --against, with the path that one graph replaces: the encoder alone, "
        "scikit-learn's KMeans.predict, OpenCV's resize",
    )
    parser.add_argument(
        "--nodes",
        action="store_true",
        help="where the time goes, by node of the graph, on ONNX Runtime",
    )
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    modes = {
        "--rate": options.rate is not None,
        "--sweep": options.sweep,
        "--against or --split": bool(options.against) or options.split,
        "--nodes": options.nodes,
    }
    chosen = [name for name, wanted in modes.items() if wanted]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} do not go together", fix="Choose one of them.")
    if options.warmup is not None and chosen and chosen[0] in ("--against or --split", "--nodes"):
        _log.warning("--warmup does nothing with %s", chosen[0])
    if not options.sweep and (options.out is not None or options.sweep_threads is not None):
        raise UsageError("--out and --sweep-threads go with --sweep", fix="Add --sweep.")
    kinds = {"--sweep": _sweep, "--nodes": _nodes, "--against or --split": _side_by_side}
    kind = kinds.get(chosen[0], _loop) if chosen else _loop
    runner = filled(options, RunnerSettings)
    if kind in (_side_by_side, _nodes) and runner.backend == "tensorrt":
        runs = "--nodes runs" if options.nodes else "--against and --split run"
        raise UsageError(f"{runs} on ONNX Runtime", fix="Leave --backend tensorrt out.")
    kind(options, filled(options, BenchSettings), runner)
    return 0


def _loop(options: argparse.Namespace, bench: BenchSettings, runner: RunnerSettings) -> None:

    with shared.open_segmenter(options.bundle, options, cache_dir=options.cache_dir) as segmenter:
        given: Mapping[str, Any] = {
            "source_frames": _frames(segmenter.bundle, options.source),
            "source": options.source,
            "frames": bench.frames,
            "warmup_seconds": bench.warmup,
            "settings": {"threads": runner.threads},
        }
        if options.rate is None:
            closed = closedloop.bench(segmenter, **given)
            table, data = closedloop.format_table(closed), closed.to_json()
        else:
            opened = openloop.open_loop(segmenter, options.rate, **given)
            table, data = openloop.format_table(opened), opened.to_json()
    show(options, table, data)


def _sweep(options: argparse.Namespace, bench: BenchSettings, runner: RunnerSettings) -> None:

    if runner.threads is not None:
        raise UsageError("--threads does not go with --sweep", fix="Use --sweep-threads 1,2.")
    for suffix in (".md", ".json", ".png") if options.out is not None else ():
        check_output(options.out.with_name(options.out.name + suffix))
    bundle = shared.open_bundle(options)
    found = sweep(
        bundle,
        threads=options.sweep_threads or _default_threads(),
        precisions=PRECISIONS if runner.precision == "auto" else (runner.precision,),
        backends=BACKENDS if runner.backend == "auto" else (runner.backend,),
        source_frames=_frames(bundle, options.source),
        source=options.source,
        frames=bench.frames,
        warmup_seconds=bench.warmup,
        cache_dir=options.cache_dir,
        tell=tell,
    )
    show(options, found.to_markdown().rstrip(), found.to_json())
    if options.out is not None:
        for path in found.write(options.out):
            tell(f"wrote {path}")


def _side_by_side(
    options: argparse.Namespace, bench: BenchSettings, runner: RunnerSettings
) -> None:

    bundle = shared.open_bundle(options)
    threads = runner.threads or 1
    more: dict[str, against.Candidate] = {}
    if options.split:
        with shared.needing("calibrate", "--split is not available here"):
            from aeseg_edge.calibration.report.stages import split_paths
        more.update(split_paths(bundle, precision=runner.precision, threads=threads))
    found = against.side_by_side(
        bundle,
        options.against,
        more=more,
        precision=runner.precision,
        threads=threads,
        rounds=min(bench.rounds, bench.frames),
        frames=-(-bench.frames // bench.rounds),
        source_frames=_frames(bundle, options.source),
        source=options.source,
    )
    show(options, against.format_table(found), found.to_json())


def _nodes(options: argparse.Namespace, bench: BenchSettings, runner: RunnerSettings) -> None:

    bundle = shared.open_bundle(options)
    geometry = bundle.manifest.geometry
    held, source = closedloop.hold(geometry, _frames(bundle, options.source), options.source)
    machine = environment()
    found = profile.profile_nodes(
        bundle,
        fit_frame(held[0], geometry),
        precision=runner.precision,
        threads=runner.threads or 1,
        frames=bench.frames,
    )
    data = {
        **found.to_json(),
        "source": source,
        "threads": runner.threads or 1,
        "environment": machine,
    }
    show(options, profile.format_table(found), data)


def _frames(bundle: Bundle, source: str | None) -> list[NDArray[np.uint8]] | None:
    """Decode what a benchmark cycles; None without a source."""
    if source is None:
        return None
    with shared.open_for(bundle.manifest, source) as opened:
        return closedloop.hold(bundle.manifest.geometry, (frame.image for frame in opened), source)[
            0
        ]


def _default_threads() -> list[int]:

    cpu = environment()["cpu"]
    return sorted({1, int(cpu["usable"] or cpu["cores"] or 1)})


def _rate(text: str) -> float:
    try:
        return seconds(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate above 0") from error


def _counts(text: str) -> list[int]:
    counts = [natural(part) for part in text.split(",")]
    if 0 in counts:
        raise argparse.ArgumentTypeError(f"{text!r} has a thread count of 0")
    return list(dict.fromkeys(counts))
