"""Where results go, written as URIs or as people type them.

``out.mp4`` (or .avi, .mkv, .mov, .webm), ``out/%06d.png``, ``out/{name}.png?view=labels`` (raw
class ids), ``window``, ``null://``, ``json:FILE`` (``json:-``), ``unix:PATH``,
``gst://appsrc ! PIPELINE``, ``http://127.0.0.1:8080`` (the live page). docs/sinks.md has the
options of each.

A sink of another kind is a module with a ``Sink`` and a function that opens it, and one row of
``SINKS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import Asked, Routed, Sink
from aeseg_edge.sinks.names import NAME, file_parts
from aeseg_edge.support.lazy import load
from aeseg_edge.support.text import without_password
from aeseg_edge.view.draw import DECODED_VIEWS, VIEWS


@dataclass(frozen=True)
class Kind:
    """One kind of sink, found by the beginning or by the suffix of what is written.

    ``opens`` is the ``module:name`` of what makes an open ``Sink`` from an ``Asked``, ``form``
    how it is written, for help and errors. With ``whole``, nothing but options may follow its
    beginning; ``options`` is None where the sink reads them itself. ``sources``: ``one`` only,
    ``all``, whose results then name theirs, or ``each``, where one sink is opened a source.
    ``file``: it names a file; ``numbered``: with a number in its name, one file a frame.
    """

    opens: str
    form: str
    begins: str = ""
    suffixes: tuple[str, ...] = ()
    whole: bool = False
    options: tuple[str, ...] | None = ()
    sources: str = "one"
    file: bool = False
    numbered: bool = False

    def fits(self, uri: str, suffix: str) -> bool:
        """Say whether a sink is of this kind."""
        if self.whole:
            return uri.partition("?")[0] == self.begins
        return suffix in self.suffixes or (self.begins != "" and uri.startswith(self.begins))

    def split(self, uri: str) -> tuple[str, dict[str, str]]:
        """Part what is written into target and options."""
        rest = uri.removeprefix(self.begins or "file://")
        if self.options is None:
            return rest, {}
        target, _, query = rest.partition("?")
        # json:///data/x is how a URI would have it.
        options = dict(parse_qsl(query, keep_blank_values=True))
        return target.removeprefix("//") if self.begins else target, options


_HERE, _VIEW = "aeseg_edge.sinks", ("view",)
_VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_PATTERN, _PAGE = "an image pattern (out/%06d.png)", "http://127.0.0.1:8080 (live page)"
SINKS = (
    Kind(f"{_HERE}.video:VideoSink", "a video (out.mp4)", "", _VIDEOS, options=_VIEW, file=True),
    Kind(f"{_HERE}.images:ImageSink", _PATTERN, "", _IMAGES, False, _VIEW, "one", True, True),
    Kind(f"{_HERE}.window:WindowSink", "window", "window", (), True, _VIEW, "each"),
    Kind(f"{_HERE}.json:open_json", "json:FILE", "json:", (), False, ("append",), "all", True),
    Kind(f"{_HERE}.unix:open_unix", "unix:PATH", "unix:", sources="all", file=True),
    # A pipeline may have question marks of its own.
    Kind(f"{_HERE}.gstreamer:GstSink", "'gst://appsrc ! PIPELINE'", "gst://", options=None),
    Kind(f"{_HERE}.base:open_null", "null://", "null://", whole=True, options=_VIEW, sources="all"),
    Kind("aeseg_edge.page.sink:open_page", _PAGE, "http://", options=None, sources="all"),
)
FORMS = ", ".join(kind.form for kind in SINKS)
"""Every way to write a sink, for help and errors."""


def kind_of(uri: str) -> Kind | None:
    """Find the row of a sink; None where there is none."""
    path = uri.partition("?")[0].removeprefix("file://")
    suffix = "://" if "://" in path else Path(path).suffix.lower()
    fitting = sorted((kind for kind in SINKS if kind.fits(uri, suffix)), key=lambda k: not k.begins)
    return fitting[0] if fitting else None


def open_sink(
    uri: str,
    *,
    fps: float | None = None,
    view: str = "overlay",
    alpha: float = 0.5,
    legend: bool = True,
    live: object = None,
    title: str = "aeseg",
) -> Sink:
    """Open a sink.

    Args:
        uri: See the module's text; ``?view=...`` overrides ``view`` for this sink.
        fps: Rate of video files; when None, 30 for cameras and 25 for pictures.
        view: ``overlay``, ``mask``, ``both`` or ``frame``; ``decoded`` or ``error`` where results
            come from a segmenter with a decoder; for image patterns also ``labels``.
        alpha: Strength of the colours, 0..1.
        legend: Draw the classes' names.
        live: What the live page is given besides results, ``aeseg_edge.page.sink.Live``; without
            it, it only shows.
        title: Of a window.

    Raises:
        SinkError: If it cannot be opened.
    """
    kind, shown = kind_of(uri), without_password(uri)
    if kind is None:
        path = Path(uri.partition("?")[0].removeprefix("file://"))
        problem = (
            "has an unknown scheme"
            if "://" in uri.removeprefix("file://").partition("?")[0]
            else f"is no sink: {path.suffix.lower() or 'no suffix'} is not known"
        )
        raise SinkError(f"{shown} {problem}", fix=f"Give {FORMS}.")
    target, options = kind.split(uri)
    if unknown := sorted(set(options) - set(kind.options or ())):
        known = " and ".join(f"?{name}=" for name in kind.options or ()) or "none"
        raise SinkError(f"{shown} has unknown options {unknown}", fix=f"It has {known}.")
    if NAME in target and kind.file and not kind.numbered:
        raise SinkError(
            f"{shown} is no pattern of pictures, and {NAME} stands for a picture's file",
            fix="Write {source}: one for each source.",
        )
    view = options.get("view", view)
    views = VIEWS + DECODED_VIEWS
    fits = view in views or (view == "labels" and kind.numbered)
    if "view" in (kind.options or ()) and not fits:
        raise SinkError(
            f"the view {view!r} is unknown for {target or uri}",
            fix=f"Use one of {', '.join(views)}; labels for PNG files.",
        )
    asked = Asked(uri, target, options, fps, view, alpha, legend, title, live)
    sink: Sink = load(kind.opens)(asked)
    return sink


def open_sinks(
    uri: str, sources: Sequence[tuple[str, float | None]], **asked: Any
) -> list[Sink | Routed]:
    """Open what one URI means for one or several sources.

    With ``{source}`` in the URI, or a window, there is one sink a source. Else all results go
    into one sink, which names the source of each: json, unix, null and the live page. A video,
    a pattern of images or a pipeline holds one source only.

    Args:
        uri: See ``open_sink``.
        sources: Name and rate of each; names are unlike each other.
        **asked: ``view``, ``alpha``, ``legend`` and ``live`` of ``open_sink``.

    Raises:
        SinkError: If it cannot be opened, or would mix sources in one picture.
    """
    several, kind = len(sources) > 1, kind_of(uri)
    if several and "{source}" not in uri and (kind is None or kind.sources != "each"):
        if kind is not None and kind.sources == "one":
            raise SinkError(
                f"{without_password(uri)} would mix the pictures of {len(sources)} sources",
                fix="Put {source} into its name, such as out-{source}.mp4: one for each.",
            )
        return [open_sink(uri, **asked)]
    opened: list[Sink | Routed] = []
    try:
        parts = file_parts([name for name, _ in sources])
        for (name, fps), part in zip(sources, parts, strict=True):
            title = f"aeseg: {name}" if several else "aeseg"
            sink = open_sink(uri.replace("{source}", part), fps=fps, title=title, **asked)
            opened.append(Routed(sink, name) if several else sink)
    except BaseException:
        for each in opened:
            (each.sink if isinstance(each, Routed) else each).abort()
        raise
    return opened


def needs_decoder(uri: str, view: str) -> bool:
    """Say whether a sink will draw from decoded latents; ``view`` is for URIs without their own."""
    kind = kind_of(uri)
    own = {} if kind is None else kind.split(uri)[1]
    return own.get("view", view) in DECODED_VIEWS
