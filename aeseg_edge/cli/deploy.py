"""Verbs that use a bundle: run, info."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aeseg_edge.cli.options import (
    DEFAULT_SMOOTH,
    Verbs,
    add_json,
    add_modalities,
    add_runner,
    add_verb,
    all_sources,
    bundle_or_pretrained,
    entries_table,
    given_files,
    natural,
    positive,
    read_mask,
    seconds,
    share,
    smooth_for,
    strength,
    write_json,
)
from aeseg_edge.errors import BackendError
from aeseg_edge.sinks import FORMS as SINK_FORMS
from aeseg_edge.sources import FORMS as SOURCE_FORMS
from aeseg_edge.sources.pairs import describe
from aeseg_edge.support.text import without_password

if TYPE_CHECKING:
    from aeseg_edge.bundle.archive import Bundle
    from aeseg_edge.bundle.manifest import Manifest
    from aeseg_edge.loop.feed import Input
    from aeseg_edge.page.sink import Live
    from aeseg_edge.segment.segmenter import Segmenter
    from aeseg_edge.sinks.base import Sink
    from aeseg_edge.sinks.counters import LoopCounters


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
    run.add_argument(
        "source",
        nargs="*",
        help=f"{SOURCE_FORMS}; several share one engine",
    )
    add_modalities(run)
    run.add_argument(
        "-b",
        "--bundle",
        type=Path,
        help="the .aeseg file (default: the pretrained street bundle, not for commercial use)",
    )
    run.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="SINK",
        help=SINK_FORMS.replace("%", "%%") + " (repeatable; {source} makes one for each source)",
    )
    add_runner(run)
    run.add_argument(
        "--view",
        choices=("overlay", "mask", "both", "decoded", "error"),
        default="overlay",
        help="overlay: colours over the frame (default); mask: colours alone; both: side by side; "
        "decoded: each latent replaced by its cluster's mean and drawn by the decoder; "
        "error: reconstruction error as a heat map, also a figure a line in json:FILE (both "
        "need a bundle made with --with-decoder, and run on ONNX Runtime)",
    )
    run.add_argument(
        "--alpha", type=share, default=0.5, help="strength of the colours, 0..1 (default 0.5)"
    )
    run.add_argument("--no-legend", action="store_true", help="leave the legend out")
    run.add_argument("--roi", metavar="MASK", help="picture whose white part is segmented")
    run.add_argument(
        "--smooth",
        nargs="?",
        const=DEFAULT_SMOOTH,
        type=strength,
        default=0.0,
        metavar="S",
        help="hold labels still where the picture does; S from 0 (off) to below 1 "
        "(0.9 without a value; 0.5 for older bundles, which have no gate for what moves)",
    )
    run.add_argument("--frames", type=positive, metavar="N", help="stop after N frames")
    run.add_argument("--duration", type=seconds, metavar="S", help="stop after S seconds")
    run.add_argument(
        "--drop",
        choices=("auto", "latest", "none"),
        default="auto",
        help="latest: always the newest frame, as cameras want it; none: every frame, as "
        "recordings want it (default: by the sources)",
    )
    run.add_argument("--realtime", action="store_true", help="play recordings at their own rate")
    run.add_argument(
        "--stall",
        type=seconds,
        default=5.0,
        metavar="S",
        help="seconds without a frame after which a camera is opened again (default 5)",
    )
    run.add_argument(
        "--restarts",
        type=positive,
        metavar="N",
        help="give a camera up after N reconnects in ten minutes (default: never)",
    )
    run.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where engines are kept (default: ~/.cache/aeseg_edge)",
    )
    run.add_argument(
        "--drift-every",
        type=natural,
        default=10,
        metavar="N",
        help="look every N frames how unlike the footage a camera's scene is (default 10; 0 never)",
    )
    run.add_argument("--token", help="what the live page asks for; made and shown if left out")
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
    from aeseg_edge.bundle.archive import Bundle
    from aeseg_edge.loop.camera import CameraLoop
    from aeseg_edge.loop.watchdog import Patience
    from aeseg_edge.segment.segmenter import Segmenter
    from aeseg_edge.sinks import needs_decoder, open_sinks
    from aeseg_edge.sinks.base import Routed
    from aeseg_edge.support.signals import stop_on_signals

    sources = all_sources(options.source, options)
    roi = read_mask(options.roi)
    patience = Patience(stall=options.stall, restarts=options.restarts)
    bundle = Bundle.open(bundle_or_pretrained(options.bundle))
    if options.imgsz is not None:
        bundle = bundle.with_size(*options.imgsz)
    if options.backend != "onnxruntime":
        _build_if_missing(bundle, options)
    with (
        Segmenter.load(
            bundle,
            precision=options.precision,
            backend=options.backend,
            threads=options.threads,
            roi=roi,
            smooth=smooth_for(bundle.manifest, options.smooth),
            decoder=any(needs_decoder(uri, options.view) for uri in options.output),
            cache_dir=options.cache_dir,
        ) as segmenter,
        stop_on_signals() as stop,
        ExitStack() as undo,
    ):
        inputs = _open_inputs(sources, segmenter.manifest, undo, realtime=options.realtime)
        rates = [(each.name, each.source.fps) for each in inputs]
        _check_sinks(options, [each.name for each in inputs])
        live = _live(segmenter, options)
        sinks: list[Sink | Routed] = []
        for uri in options.output or ["null://"]:
            opened = open_sinks(
                uri,
                rates,
                view=options.view,
                alpha=options.alpha,
                legend=not options.no_legend,
                live=live,
            )
            for each in opened:
                # The loop closes them first; what is closed cannot be aborted any more.
                undo.callback((each.sink if isinstance(each, Routed) else each).abort)
            sinks += opened
        # A recording at its own rate stands for a camera.
        drop = "latest" if options.realtime and options.drop == "auto" else options.drop
        loop = CameraLoop(
            segmenter,
            inputs,
            sinks,
            drop=drop,
            frames=options.frames,
            duration=options.duration,
            patience=patience,
            drift_every=options.drift_every,
        )
        undo.pop_all()
        try:
            totals = loop.run(stop=stop, on_line=lambda line: print(line, file=sys.stderr))
        finally:
            counters = loop.counters()
            _print_summary(counters)
        entry = segmenter.entry
    latency = totals.latency
    spread = f", p50 {latency.p50:.1f} ms, p95 {latency.p95:.1f} ms" if latency else ""
    print(
        f"{totals.frames} frames in {totals.seconds:.1f} s: {totals.fps:.1f} fps{spread} "
        f"({entry.precision} on {segmenter.backend.name})",
        file=sys.stderr,
    )
    shown = [without_password(uri) for uri in sources]
    write_json(
        options.stats,
        {
            **totals.to_json(),
            **counters.to_json(),
            "source": shown[0] if len(shown) == 1 else shown,
            "precision": entry.precision,
            "backend": segmenter.backend.name,
            "stopped_by_signal": stop.is_set(),
        },
    )
    return 0


def _words(value: object) -> str:
    """One value of the manifest as a person would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(_words(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _live(segmenter: Segmenter, options: argparse.Namespace) -> Live:
    """What a live page among the sinks may see and change."""
    from aeseg_edge.page.classes import LiveClasses
    from aeseg_edge.page.sink import Live

    return Live(
        editor=LiveClasses(segmenter),
        token=options.token,
        announce=lambda address: print(f"live page: {address}", file=sys.stderr),
    )


def _open_inputs(
    sources: Sequence[str], manifest: Manifest, undo: ExitStack, *, realtime: bool
) -> list[Input]:
    """Open every source, under names unlike each other."""
    from aeseg_edge.loop.feed import Input
    from aeseg_edge.sources import open_source

    inputs: list[Input] = []
    for uri in sources:
        reopen = partial(
            open_source,
            uri,
            channels=manifest.geometry.channels,
            realtime=realtime,
            modalities=manifest.modalities,
        )
        source = reopen()
        undo.callback(source.close)
        name, count = source.name, 2
        while name in {each.name for each in inputs}:
            name, count = f"{source.name} ({count})", count + 1
        inputs.append(Input(source, name, reopen if source.live else None))
    return inputs


def _check_sinks(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse sinks that would write over an input, or two of them one file, before any is open."""
    from aeseg_edge.sinks.names import name_each
    from aeseg_edge.sinks.targets import refuse_inputs, refuse_shared, target_of

    uris = [each for uri in options.output for each in name_each(uri, names)]
    targets = [target for uri in uris if (target := target_of(uri)) is not None]
    refuse_inputs(targets, given_files(options))
    refuse_shared(uris if options.stats in (None, "-") else [*uris, f"json:{options.stats}"])


def _print_summary(counters: LoopCounters) -> None:
    """Say what became of every camera's frames; recordings lose none."""
    for each in counters.sources:
        lost = sum(each.dropped.values())
        if not (lost or each.stalls or each.reconnects or len(counters.sources) > 1):
            continue
        age = ""
        if each.age is not None:
            age = f", age p50 {each.age.p50:.0f} p95 {each.age.p95:.0f} p99 {each.age.p99:.0f} ms"
        print(
            f"{each.name}: {each.frames_in} frames in, {each.segmented} segmented, {lost} dropped, "
            f"{each.stalls} stalls, {each.reconnects} reconnects{age}",
            file=sys.stderr,
        )
    for sink in counters.sinks:
        if sink.dropped:
            print(
                f"{sink.name}: {sink.delivered} results, {sink.dropped} dropped: it is slower than "
                "the source",
                file=sys.stderr,
            )


def _build_if_missing(bundle: Bundle, options: argparse.Namespace) -> None:
    """Build the engine that a run needs, the first time; nothing where there is no TensorRT."""
    from aeseg_edge.backends.choose import choose_entry, has_tensorrt
    from aeseg_edge.cli.device import build_engines
    from aeseg_edge.errors import EngineNotBuilt

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
    from aeseg_edge.bundle.archive import Bundle
    from aeseg_edge.segment.smoothing import default_strength

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
        if manifest.modalities:
            print(f"frames   {describe(manifest.modalities)}")
        print(f"latents  {manifest.latent_dim} channels at 1/{manifest.stride}")
        print(
            f"codebook {manifest.clusters} clusters ({manifest.method}), "
            f"{len(manifest.classes)} classes"
        )
        stability = manifest.training.get("calibration", {}).get("stability", {})
        for title, key in (("starts", "restarts"), ("halves of the footage", "halves")):
            if stability.get(key) is not None:
                low = " (low)" if stability[key] < stability.get("low_below", 0) else ""
                print(f"         stability between {title}: ARI {stability[key]:.2f}{low}")
        if (decoder := manifest.decoder) is not None:
            size_mb = manifest.files[decoder.graph].size / 1e6
            print(
                f"decoder  {size_mb:.2f} MB; reconstruction error of {decoder.frames} frames: "
                f"median {decoder.median:.1f}, p99 {decoder.p99:.1f} grey levels"
            )
        gate = "plain" if manifest.gate is None else f"gated at {manifest.gate:.3g}"
        print(f"smooth   {gate}; --smooth alone means {default_strength(manifest):g}")
        spread = manifest.spread
        print(
            "drift    not measured: no distances in this bundle"
            if spread is None or bundle.codebook.centres is None
            else f"drift    by {spread.measure} distance to the centre, usual up to "
            f"{spread.usual:.2f}"
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
        for title, values in (
            ("training", manifest.training),
            ("provenance", manifest.provenance),
        ):
            print(title)
            for key, value in values.items():
                print(f"  {key:<14} {_words(value)}")
    write_json(options.json, asdict(manifest))
    return 0
