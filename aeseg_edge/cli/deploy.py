"""Verbs that use a bundle: run, info."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from aeseg_edge.cli.options import (
    Verbs,
    add_json,
    add_runner,
    add_verb,
    entries_table,
    positive,
    read_mask,
    share,
    write_json,
)
from aeseg_edge.errors import BackendError

if TYPE_CHECKING:
    from aeseg_edge.bundle import Bundle


def add_verbs(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add this module's verbs."""
    run = add_verb(
        verbs,
        common,
        "run",
        _run,
        summary="segment every frame of a source",
        example="aeseg run drive.mp4 -b street.aeseg -o drive_labels.mp4 --view both",
    )
    run.add_argument("source", help="video, image, folder, glob, camera number or URI")
    run.add_argument("-b", "--bundle", required=True, type=Path, help="the .aeseg file")
    run.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="SINK",
        help="video file, image pattern (out/%%06d.png), window, null:// (repeatable)",
    )
    add_runner(run)
    run.add_argument("--view", choices=("overlay", "mask", "both"), default="overlay")
    run.add_argument("--alpha", type=share, default=0.5, help="strength of the colours, 0..1")
    run.add_argument("--no-legend", action="store_true", help="leave the legend out")
    run.add_argument("--roi", metavar="MASK", help="picture whose white part is segmented")
    run.add_argument(
        "--smooth",
        type=share,
        default=0.0,
        help="share of the last frame's latents in each frame's (default 0)",
    )
    run.add_argument("--frames", type=positive, metavar="N", help="stop after N frames")
    run.add_argument("--cache-dir", type=Path, metavar="DIR", help="where engines are kept")
    run.add_argument("--stats", metavar="FILE", help="write the summary as JSON, - for stdout")

    info = add_verb(
        verbs,
        common,
        "info",
        _info,
        summary="say what is in a bundle",
        example="aeseg info street.aeseg",
    )
    info.add_argument("bundle", type=Path)
    add_json(info)


def _run(options: argparse.Namespace) -> int:
    from aeseg_edge.bundle import Bundle
    from aeseg_edge.io.sinks import open_sink
    from aeseg_edge.io.sources import open_source
    from aeseg_edge.loop import run_loop
    from aeseg_edge.segmenter import Segmenter
    from aeseg_edge.signals import stop_on_signals

    roi = read_mask(options.roi)
    bundle = Bundle.open(options.bundle)
    if options.backend != "onnxruntime":
        _build_if_missing(bundle, options)
    with Segmenter.load(
        bundle,
        precision=options.precision,
        backend=options.backend,
        threads=options.threads,
        roi=roi,
        smooth=options.smooth,
        cache_dir=options.cache_dir,
    ) as segmenter:
        channels = segmenter.manifest.geometry.channels
        with stop_on_signals() as stop, open_source(options.source, channels=channels) as source:
            sinks = []
            try:
                for uri in options.output or ["null://"]:
                    sinks.append(
                        open_sink(
                            uri,
                            fps=source.fps,
                            view=options.view,
                            alpha=options.alpha,
                            legend=not options.no_legend,
                        )
                    )
            except BaseException:
                for sink in sinks:
                    sink.abort()
                raise
            totals = run_loop(
                segmenter,
                source,
                sinks,
                frames=options.frames,
                stop=stop,
                on_line=lambda line: print(line, file=sys.stderr),
            )
        entry = segmenter.entry
    latency = totals.latency
    spread = f", p50 {latency.p50:.1f} ms, p95 {latency.p95:.1f} ms" if latency else ""
    print(
        f"{totals.frames} frames in {totals.seconds:.1f} s: {totals.fps:.1f} fps{spread} "
        f"({entry.precision} on {segmenter.backend.name})",
        file=sys.stderr,
    )
    write_json(
        options.stats,
        {
            **totals.to_json(),
            "source": options.source,
            "precision": entry.precision,
            "backend": segmenter.backend.name,
            "stopped_by_signal": stop.is_set(),
        },
    )
    return 0


def _build_if_missing(bundle: Bundle, options: argparse.Namespace) -> None:
    """Build the engine that a run needs, the first time; nothing where there is no TensorRT."""
    from aeseg_edge.cli.device import build_engines
    from aeseg_edge.errors import EngineNotBuilt
    from aeseg_edge.segmenter import choose_entry, has_tensorrt

    if options.backend == "auto" and not has_tensorrt():
        return
    from aeseg_edge.backends.tensorrt import open_backend

    entry = choose_entry(bundle.manifest, options.precision, "tensorrt")
    try:
        open_backend(bundle, entry, cache_dir=options.cache_dir).close()
    except EngineNotBuilt as missing:
        print(f"{missing.problem}: building it now, once", file=sys.stderr)
        build_engines(bundle, (entry.precision,), cache_dir=options.cache_dir)
    except BackendError:
        if options.backend == "tensorrt":
            raise


def _info(options: argparse.Namespace) -> int:
    from aeseg_edge.bundle import Bundle

    bundle = Bundle.open(options.bundle)
    manifest = bundle.manifest
    if options.json != "-":
        geometry = manifest.geometry
        print(
            f"{options.bundle}  ({options.bundle.stat().st_size / 1e6:.2f} MB, "
            f"schema {manifest.schema_version}, {manifest.created_with})"
        )
        print(
            f"input    {geometry.width}x{geometry.height}, {geometry.channels} channels, "
            f"{geometry.resize}; labels at 1/{manifest.output_stride}"
        )
        print(f"latents  {manifest.latent_dim} channels at 1/{manifest.stride}")
        print(
            f"codebook {manifest.clusters} clusters ({manifest.method}), "
            f"{len(manifest.classes)} classes"
        )
        print("graphs")
        for line in entries_table(manifest):
            print(f"  {line}")
        for entry in manifest.entries:
            if entry.note:
                print(f"  {entry.precision} for {entry.backend}: {entry.note}")
        print("classes")
        for item in manifest.classes:
            print(
                f"  {item.id:3d}  #{item.color[0]:02x}{item.color[1]:02x}{item.color[2]:02x}"
                f"  {item.name}"
            )
        print("training " + json.dumps(manifest.training, ensure_ascii=False))
        print("provenance " + json.dumps(manifest.provenance, ensure_ascii=False))
    write_json(options.json, asdict(manifest))
    return 0
