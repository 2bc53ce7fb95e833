"""The verb bench: latency in a closed or an open loop, a table of all, or beside other models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.cli.options import (
    Verbs,
    add_json,
    add_runner,
    add_verb,
    check_output,
    natural,
    positive,
    seconds,
    write_json,
)
from aeseg_edge.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from aeseg_edge.bundle.archive import Bundle
    from aeseg_edge.measure.against import Candidate


def add_verbs(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add this module's verb."""
    bench = add_verb(
        verbs,
        common,
        "bench",
        _bench,
        summary="time a bundle, stage by stage",
        example="aeseg bench street.aeseg drive.mp4 --threads 1 --precision int8",
    )
    bench.add_argument("bundle", type=Path)
    bench.add_argument("source", nargs="?", help="synthetic frames without one")
    add_runner(bench)
    bench.add_argument(
        "--frames",
        type=positive,
        default=300,
        metavar="N",
        help="frames to time (default 300); side by side: of each, over all rounds",
    )
    bench.add_argument(
        "--warmup",
        type=_warmup,
        default=2.0,
        metavar="SECONDS",
        help="run for so long before timing (default 2)",
    )
    bench.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where engines are kept (default: ~/.cache/aeseg_edge)",
    )
    bench.add_argument(
        "--rate",
        type=_rate,
        metavar="FPS",
        help="open loop: frames arrive at this rate whether or not the last is done, and a "
        "newer one replaces one that waits; gives frame age and drops",
    )
    bench.add_argument(
        "--sweep",
        action="store_true",
        help="a table over precisions, backends and thread counts; what cannot run here is a "
        "row with its reason",
    )
    bench.add_argument(
        "--sweep-threads",
        type=_counts,
        metavar="N,N",
        help="thread counts of --sweep (default: 1 and all cores)",
    )
    bench.add_argument(
        "--out",
        type=Path,
        metavar="PREFIX",
        help="with --sweep: write PREFIX.md, PREFIX.json and PREFIX.png (distributions)",
    )
    bench.add_argument(
        "--against",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="MODEL.onnx",
        help="time the bundle and these models (or bundles) in turn, A B A B, on ONNX Runtime "
        "with equal threads (1 unless --threads says otherwise)",
    )
    bench.add_argument(
        "--split",
        action="store_true",
        help="as --against, with the path that one graph replaces: the encoder alone, "
        "scikit-learn's KMeans.predict, OpenCV's resize",
    )
    bench.add_argument(
        "--rounds",
        type=positive,
        default=15,
        metavar="N",
        help="side by side: rounds that --frames are spread over (default 15)",
    )
    bench.add_argument(
        "--nodes",
        action="store_true",
        help="where the time goes, by node of the graph, on ONNX Runtime",
    )
    add_json(bench)


def _bench(options: argparse.Namespace) -> int:
    modes = {
        "--rate": options.rate is not None,
        "--sweep": options.sweep,
        "--against or --split": bool(options.against) or options.split,
        "--nodes": options.nodes,
    }
    chosen = [name for name, wanted in modes.items() if wanted]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} do not go together", fix="Choose one of them.")
    if not options.sweep and (options.out is not None or options.sweep_threads is not None):
        raise UsageError("--out and --sweep-threads go with --sweep", fix="Add --sweep.")
    if options.sweep:
        return _sweep(options)
    if options.nodes:
        return _nodes(options)
    return _side_by_side(options) if "--against or --split" in chosen else _loop(options)


def _loop(options: argparse.Namespace) -> int:
    from aeseg_edge.measure import bench, openloop
    from aeseg_edge.segment.segmenter import Segmenter

    with Segmenter.load(
        options.bundle,
        precision=options.precision,
        backend=options.backend,
        threads=options.threads,
        imgsz=options.imgsz,
        cache_dir=options.cache_dir,
    ) as segmenter:
        given: Mapping[str, Any] = {
            "source_frames": _frames(segmenter.bundle, options.source),
            "source": options.source,
            "frames": options.frames,
            "warmup_seconds": options.warmup,
            "settings": {"threads": options.threads},
        }
        if options.rate is None:
            closed = bench.bench(segmenter, **given)
            table, data = bench.format_table(closed), closed.to_json()
        else:
            opened = openloop.open_loop(segmenter, options.rate, **given)
            table, data = openloop.format_table(opened), opened.to_json()
    _show(options, table, data)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from aeseg_edge.bundle.manifest import BACKENDS, PRECISIONS
    from aeseg_edge.measure.sweep import sweep

    if options.threads is not None:
        raise UsageError("--threads does not go with --sweep", fix="Use --sweep-threads 1,2.")
    for suffix in (".md", ".json", ".png") if options.out is not None else ():
        check_output(options.out.with_name(options.out.name + suffix))
    bundle = _open(options)
    found = sweep(
        bundle,
        threads=options.sweep_threads or _default_threads(),
        precisions=PRECISIONS if options.precision == "auto" else (options.precision,),
        backends=BACKENDS if options.backend == "auto" else (options.backend,),
        source_frames=_frames(bundle, options.source),
        source=options.source,
        frames=options.frames,
        warmup_seconds=options.warmup,
        cache_dir=options.cache_dir,
        tell=lambda row: print(row, file=sys.stderr),
    )
    _show(options, found.to_markdown().rstrip(), found.to_json())
    if options.out is not None:
        for path in found.write(options.out):
            print(f"wrote {path}", file=sys.stderr)
    return 0


def _side_by_side(options: argparse.Namespace) -> int:
    from aeseg_edge.measure.against import format_table, side_by_side

    if options.backend == "tensorrt":
        raise UsageError(
            "--against and --split run on ONNX Runtime", fix="Leave --backend tensorrt out."
        )
    bundle = _open(options)
    threads = options.threads or 1
    more: dict[str, Candidate] = {}
    if options.split:
        try:
            from aeseg_edge.calibration.report.split import split_paths
        except ImportError as error:
            raise MissingDependency(
                f"--split is not available here ({error})",
                fix="Install it: pip install 'aeseg_edge[calibrate]'.",
            ) from error
        more.update(split_paths(bundle, precision=options.precision, threads=threads))
    found = side_by_side(
        bundle,
        options.against,
        more=more,
        precision=options.precision,
        threads=threads,
        rounds=min(options.rounds, options.frames),
        frames=-(-options.frames // options.rounds),
        source_frames=_frames(bundle, options.source),
        source=options.source,
    )
    _show(options, format_table(found), found.to_json())
    return 0


def _nodes(options: argparse.Namespace) -> int:
    from aeseg_edge.bundle.geometry import fit_frame
    from aeseg_edge.measure.bench import hold
    from aeseg_edge.measure.machine import environment
    from aeseg_edge.measure.profile import format_table, profile_nodes

    if options.backend == "tensorrt":
        raise UsageError("--nodes runs on ONNX Runtime", fix="Leave --backend tensorrt out.")
    bundle = _open(options)
    geometry = bundle.manifest.geometry
    held, source = hold(geometry, _frames(bundle, options.source), options.source)
    machine = environment()
    found = profile_nodes(
        bundle,
        fit_frame(held[0], geometry),
        precision=options.precision,
        threads=options.threads or 1,
        frames=options.frames,
    )
    data = {
        **found.to_json(),
        "source": source,
        "threads": options.threads or 1,
        "environment": machine,
    }
    _show(options, format_table(found), data)
    return 0


def _open(options: argparse.Namespace) -> Bundle:
    from aeseg_edge.bundle.archive import Bundle

    bundle = Bundle.open(options.bundle)
    return bundle if options.imgsz is None else bundle.with_size(*options.imgsz)


def _frames(bundle: Bundle, source: str | None) -> list[NDArray[np.uint8]] | None:
    """Decode what a benchmark cycles; None without a source."""
    from aeseg_edge.measure.bench import hold
    from aeseg_edge.sources import open_source

    if source is None:
        return None
    manifest = bundle.manifest
    with open_source(
        source, channels=manifest.geometry.channels, modalities=manifest.modalities
    ) as opened:
        return hold(manifest.geometry, (frame.image for frame in opened), source)[0]


def _show(options: argparse.Namespace, table: str, data: Any) -> None:
    if options.json != "-":
        print(table)
    write_json(options.json, data)


def _default_threads() -> list[int]:
    from aeseg_edge.measure.machine import environment

    cpu = environment()["cpu"]
    return sorted({1, int(cpu["usable"] or cpu["cores"] or 1)})


def _rate(text: str) -> float:
    try:
        return seconds(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate above 0") from error


def _warmup(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else seconds(text)


def _counts(text: str) -> list[int]:
    counts = [natural(part) for part in text.split(",")]
    if 0 in counts:
        raise argparse.ArgumentTypeError(f"{text!r} has a thread count of 0")
    return list(dict.fromkeys(counts))
