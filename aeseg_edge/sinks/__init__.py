"""Where results go, written as URIs or as people type them.

``out.mp4`` (or .avi, .mkv), ``out/%06d.png``, ``out/%06d.png?view=labels`` (raw class ids),
``window``, ``null://``, ``json:FILE``, ``unix:PATH``, ``gst://appsrc ! PIPELINE``,
``http://127.0.0.1:8080`` (the live page). docs/sinks.md has the options of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import NullSink, Routed, Sink
from aeseg_edge.sinks.images import ImageSink
from aeseg_edge.sinks.targets import DATA, IMAGE_TYPES, file_parts
from aeseg_edge.sinks.video import DEFAULT_FPS, VIDEO_CODECS, VideoSink
from aeseg_edge.view.draw import DECODED_VIEWS, VIEWS

if TYPE_CHECKING:
    from aeseg_edge.page.sink import Live

_WANTED = (
    "Give a video (out.mp4), an image pattern (out/%06d.png), window, json:FILE, unix:PATH, "
    "gst://appsrc ! PIPELINE, null:// or http://127.0.0.1:8080."
)


def open_sink(
    uri: str,
    *,
    fps: float | None = None,
    view: str = "overlay",
    alpha: float = 0.5,
    legend: bool = True,
    live: Live | None = None,
    title: str = "aeseg",
) -> Sink:
    """Open a sink.

    Args:
        uri: See the module's text; ``?view=...`` overrides ``view`` for this sink.
        fps: Rate of video files; 25 when None.
        view: ``overlay``, ``mask`` or ``both``; ``decoded`` or ``error`` where results come
            from a segmenter with a decoder; for image patterns also ``labels``.
        alpha: Strength of the colours, 0..1.
        legend: Draw the classes' names.
        live: What the live page is given besides results; without it, it only shows.
        title: Of a window.

    Raises:
        SinkError: If it cannot be opened.
    """
    if uri.startswith("http://"):
        from aeseg_edge.page.sink import WebSink

        return WebSink(uri, live)
    if uri.startswith("gst://"):
        # A pipeline may have question marks of its own.
        from aeseg_edge.sinks.gstreamer import GstSink

        return GstSink(uri[6:], fps=fps or DEFAULT_FPS, view=view, alpha=alpha, legend=legend)
    if uri.startswith(DATA):
        return _open_data(uri, view)
    target, _, query = uri.partition("?")
    options = dict(parse_qsl(query))
    view = options.pop("view", view)
    if options:
        raise SinkError(f"{uri} has unknown options {sorted(options)}", fix="Use ?view=mask.")
    suffix = Path(target).suffix.lower()
    views = VIEWS + DECODED_VIEWS
    if view not in views and not (view == "labels" and suffix in IMAGE_TYPES):
        raise SinkError(
            f"the view {view!r} is unknown for {target}",
            fix=f"Use one of {', '.join(views)}; labels for PNG files.",
        )
    if target == "null://":
        return NullSink()
    if target == "window":
        from aeseg_edge.sinks.window import WindowSink

        return WindowSink(view=view, alpha=alpha, legend=legend, title=title)
    target = target.removeprefix("file://")
    if "://" in target:
        raise SinkError(f"{uri} has an unknown scheme", fix=_WANTED)
    if suffix in VIDEO_CODECS:
        return VideoSink(
            Path(target), fps=fps or DEFAULT_FPS, view=view, alpha=alpha, legend=legend
        )
    if suffix in IMAGE_TYPES:
        return ImageSink(target, view=view, alpha=alpha, legend=legend)
    raise SinkError(f"{uri} is no sink: {suffix or 'no suffix'} is not known", fix=_WANTED)


def _open_data(uri: str, view: str) -> Sink:
    """Open what takes figures or label maps, and no pictures."""
    kind, _, rest = uri.partition(":")
    target, _, query = rest.partition("?")
    options = dict(parse_qsl(query))
    append = options.pop("append", "0") if kind == "json" else "0"
    if options or append not in ("0", "1"):
        raise SinkError(f"{uri} has unknown options", fix="json:FILE?append=1 is the only one.")
    # json:///data/x is how a URI would have it.
    path = Path(target.removeprefix("//"))
    if not target or path.is_dir():
        raise SinkError(f"{uri} names no file", fix=f"Write {kind}:FILE.")
    if kind == "json":
        from aeseg_edge.sinks.json import JsonSink

        return JsonSink(path, append=append == "1", error=view == "error")
    from aeseg_edge.sinks.unix import UnixSink

    return UnixSink(path)


def open_sinks(
    uri: str,
    sources: Sequence[tuple[str, float | None]],
    *,
    view: str = "overlay",
    alpha: float = 0.5,
    legend: bool = True,
    live: Live | None = None,
) -> list[Sink | Routed]:
    """Open what one URI means for one or several sources.

    With ``{source}`` in the URI, or a window, there is one sink a source. Else all results go
    into one sink, which names the source of each: json, unix, null and the live page. A video,
    a pattern of images or a pipeline holds one source only.

    Args:
        uri: See ``open_sink``.
        sources: Name and rate of each; names are unlike each other.
        view: See ``open_sink``.
        alpha: Strength of the colours.
        legend: Draw the classes' names.
        live: See ``open_sink``.

    Raises:
        SinkError: If it cannot be opened, or would mix sources in one picture.
    """
    several = len(sources) > 1
    if several and "{source}" not in uri and uri.partition("?")[0] != "window":
        if not uri.startswith(("null://", "http://", *DATA)):
            raise SinkError(
                f"{uri} would mix the pictures of {len(sources)} sources",
                fix="Put {source} into its name, such as out-{source}.mp4: one for each.",
            )
        return [open_sink(uri, view=view, alpha=alpha, legend=legend, live=live)]
    opened: list[Sink | Routed] = []
    try:
        parts = file_parts([name for name, _ in sources])
        for (name, fps), part in zip(sources, parts, strict=True):
            sink = open_sink(
                uri.replace("{source}", part),
                fps=fps,
                view=view,
                alpha=alpha,
                legend=legend,
                live=live,
                title=f"aeseg: {name}" if several else "aeseg",
            )
            opened.append(Routed(sink, name) if several else sink)
    except BaseException:
        for each in opened:
            (each.sink if isinstance(each, Routed) else each).abort()
        raise
    return opened


def needs_decoder(uri: str, view: str) -> bool:
    """Say whether a sink will draw from decoded latents.

    Args:
        uri: See ``open_sink``.
        view: What applies where the URI has no view of its own.
    """
    own = dict(parse_qsl(uri.partition("?")[2])).get("view")
    return (view if own is None else own) in DECODED_VIEWS
