"""``aeseg run``: segment every frame of sources.

Its options are fields of ``loop.settings``, ``segment.settings`` and ``view.settings``.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from aeseg_edge.backends.choose import choose_entry, has_tensorrt
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.manifest import Manifest
from aeseg_edge.cli import options as shared
from aeseg_edge.cli.fields import add_options, filled
from aeseg_edge.cli.files import refuse_reads
from aeseg_edge.cli.output import own_stdout, tell, write_json
from aeseg_edge.cli.verbs.build import build_engines
from aeseg_edge.errors import BackendError, EngineNotBuilt
from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import Input
from aeseg_edge.loop.inputs import open_inputs
from aeseg_edge.loop.settings import LoopSettings
from aeseg_edge.loop.watchdog import Patience
from aeseg_edge.page.classes import LiveClasses
from aeseg_edge.page.sink import Live
from aeseg_edge.segment.settings import RunnerSettings
from aeseg_edge.segment.smoothing import default_strength
from aeseg_edge.sinks.base import Routed, Sink
from aeseg_edge.sinks.counters import LoopCounters
from aeseg_edge.sinks.names import name_each
from aeseg_edge.sinks.overwrites import refuse_shared, target_of
from aeseg_edge.sinks.registry import FORMS as SINK_FORMS
from aeseg_edge.sinks.registry import kind_of, needs_decoder, open_sinks
from aeseg_edge.sources.base import Source
from aeseg_edge.sources.registry import FORMS as SOURCE_FORMS
from aeseg_edge.support.options import strength
from aeseg_edge.support.signals import stop_on_signals
from aeseg_edge.support.text import without_password
from aeseg_edge.view.settings import DrawSettings

_log = logging.getLogger(__name__)

EXAMPLE = "aeseg run drive.mp4 -b street.aeseg -o drive_labels.mp4 --view both"
_LOCATION = re.compile(r"""(?:sink\s[^!]*?)\blocation\s*=\s*["']?([^\s"'!]+)""")
"""The file of a filesink, multifilesink or splitmuxsink in a pipeline."""
_DEFAULT_SMOOTH = -1.0
"""``--smooth`` without a value: the bundle's own default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("source", nargs="*", help=f"{SOURCE_FORMS}; several share one engine")
    shared.add_modalities(parser)
    parser.add_argument(
        "-b",
        "--bundle",
        type=Path,
        help="the .aeseg file (default: the pretrained street bundle, not for commercial use)",
    )
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="SINK",
        help=SINK_FORMS.replace("%", "%%")
        + " (repeatable; {source} makes one for each source, {name} one for each file)",
    )
    add_options(parser, RunnerSettings)
    add_options(parser, DrawSettings)
    shared.add_roi(parser)
    parser.add_argument(
        "--smooth",
        nargs="?",
        const=_DEFAULT_SMOOTH,
        type=strength,
        default=0.0,
        metavar="S",
        help="hold labels still where the picture does; S from 0 (off) to below 1 "
        "(0.9 without a value; 0.5 for older bundles, which have no gate for what moves)",
    )
    add_options(parser, LoopSettings)
    parser.add_argument("--realtime", action="store_true", help="play recordings at their own rate")
    add_options(parser, Patience)
    shared.add_cache(parser)
    parser.add_argument("--token", help="what the live page asks for; made and shown if left out")
    parser.add_argument("--stats", metavar="FILE", help="write the summary as JSON, - for stdout")


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    sources = shared.all_sources(options.source, options)
    roi = shared.read_mask(options.roi)
    patience, wanted = filled(options, Patience), filled(options, LoopSettings)
    drawn, runner = filled(options, DrawSettings), filled(options, RunnerSettings)
    bundle = shared.open_bundle(options)
    if options.smooth == _DEFAULT_SMOOTH:
        options.smooth = default_strength(bundle.manifest)
    if runner.backend != "onnxruntime":
        _build_if_missing(bundle, runner, options.cache_dir)
    with (
        shared.open_segmenter(
            bundle,
            options,
            imgsz=None,
            roi=roi,
            smooth=options.smooth,
            decoder=any(needs_decoder(uri, drawn.view) for uri in options.output),
            cache_dir=options.cache_dir,
        ) as segmenter,
        stop_on_signals() as stop,
        ExitStack() as undo,
    ):
        opens = _opener(segmenter.manifest, realtime=options.realtime)
        inputs = open_inputs(sources, opens, stop=stop, duration=wanted.duration)
        for given in inputs:
            undo.callback(given.source.close)
        rates = [(each.name, each.source.fps) for each in inputs]
        _check_sinks(options, [each.name for each in inputs])
        _say_ignored(options, inputs)
        live = Live(
            editor=LiveClasses(segmenter),
            token=options.token,
            announce=lambda address: tell(f"live page: {address}", always=True),
        )
        sinks: list[Sink | Routed] = []
        for uri in options.output or ["null://"]:
            opened = open_sinks(uri, rates, **asdict(drawn), live=live)
            for each in opened:
                # The loop closes them first; what is closed cannot be aborted any more.
                undo.callback((each.sink if isinstance(each, Routed) else each).abort)
            sinks += opened
        # A recording at its own rate stands for a camera.
        if options.realtime and wanted.drop == "auto":
            wanted = replace(wanted, drop="latest")
        # A journal keeps every line for ever.
        period = 1.0 if sys.stderr is not None and sys.stderr.isatty() else 60.0
        loop = CameraLoop(
            segmenter, inputs, sinks, **asdict(wanted), patience=patience, line_every=period
        )
        undo.pop_all()
        try:
            with own_stdout(options, sinks_open=True):
                totals = loop.run(stop=stop, on_line=tell)
        finally:
            counters = loop.counters()
            _print_summary(counters)
        entry = segmenter.entry
    latency = totals.latency
    spread = f", p50 {latency.p50:.1f} ms, p95 {latency.p95:.1f} ms" if latency else ""
    tell(
        f"{totals.frames} frames in {totals.seconds:.1f} s: {totals.fps:.1f} fps{spread} "
        f"({entry.precision} on {segmenter.backend.name})"
    )
    shown = [without_password(uri) for uri in sources]
    write_json(
        options,
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


def _opener(manifest: Manifest, *, realtime: bool) -> Callable[[str], Source]:
    """Give what opens a source for a bundle."""
    from aeseg_edge.sources.paths import with_range
    from aeseg_edge.sources.registry import open_source

    return lambda uri: open_source(
        with_range(uri, manifest.provenance),
        channels=manifest.geometry.channels,
        realtime=realtime,
        modalities=manifest.modalities,
    )


def _say_ignored(options: argparse.Namespace, inputs: Sequence[Input]) -> None:
    """Say which options do nothing with these sources and sinks."""
    kinds = [kind for uri in options.output if (kind := kind_of(uri)) is not None]
    # Sinks that read their options themselves draw what they are told: pipelines and the page.
    draws = any(kind.options is None or "view" in kind.options for kind in kinds)
    paged = any(uri.startswith("http://") for uri in options.output)
    live = any(each.source.live for each in inputs)
    recorded = any(not each.source.live for each in inputs)
    drawing = {"--view": options.view, "--alpha": options.alpha, "--no-legend": options.legend}
    watching = {"--stall": options.stall, "--restarts": options.restarts}
    for given_ones, useful, why in (
        (drawing, draws, "no output shows a picture"),
        ({"--token": options.token}, paged, "no output is a live page"),
        ({"--realtime": options.realtime or None}, recorded, "no source is a recording"),
        (watching, live or options.realtime, "no source is live"),
    ):
        names = [name for name, value in given_ones.items() if value is not None]
        if names and not useful:
            do = "does" if len(names) == 1 else "do"
            _log.warning("%s %s nothing here: %s", " and ".join(names), do, why)


def _check_sinks(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse sinks that would write over an input, or two of them one file, before any is open."""
    uris = [each for uri in options.output for each in name_each(uri, names)]
    targets = [target for uri in uris if (target := target_of(uri)) is not None]
    pipelines = " ".join(uri for uri in uris if uri.startswith("gst://"))
    targets += [Path(place) for place in _LOCATION.findall(pipelines)]
    refuse_reads(targets, options)
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
        tell(
            f"{each.name}: {each.frames_in} frames in, {each.segmented} segmented, {lost} dropped, "
            f"{each.stalls} stalls, {each.reconnects} reconnects{age}"
        )
    for sink in counters.sinks:
        if sink.dropped:
            tell(
                f"{sink.name}: {sink.delivered} results, {sink.dropped} dropped: it is slower than "
                "the source"
            )


def _build_if_missing(bundle: Bundle, runner: RunnerSettings, cache_dir: Path | None) -> None:
    """Build the engine that a run needs, the first time; nothing where there is no TensorRT."""
    from aeseg_edge.errors import AesegError, MissingDependency

    if runner.backend == "auto" and not has_tensorrt():
        return
    from aeseg_edge.backends.tensorrt import open_backend

    entry = choose_entry(bundle.manifest, runner.precision, "tensorrt")
    spared: tuple[type[AesegError], ...]
    spared = (BackendError, MissingDependency) if runner.backend == "auto" else ()
    try:
        open_backend(bundle, entry, cache_dir=cache_dir).close()
    except EngineNotBuilt as missing:
        tell(f"{missing.problem}: building it now, once")
        try:
            build_engines(bundle, (entry.precision,), cache_dir=cache_dir)
        except spared as error:
            tell(f"it was not built: {error}", always=True)
    except spared:
        pass  # opening the bundle says why, and runs on ONNX Runtime
