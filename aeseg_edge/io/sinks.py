"""Where results go, written as URIs or as people type them.

``out.mp4`` (or .avi, .mkv), ``out/%06d.png``, ``out/%06d.png?view=labels`` (raw class ids),
``window``, ``null://``, ``json:FILE``, ``unix:PATH``, ``gst://appsrc ! PIPELINE``,
``http://127.0.0.1:8080`` (the live page). docs/sinks.md has the options of each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from aeseg_edge.draw import DECODED_VIEWS, VIEWS, even, fit, render
from aeseg_edge.errors import SinkError
from aeseg_edge.geometry import import_cv2
from aeseg_edge.io.atomic import move_into_place, temporary_beside, write_bytes, write_error
from aeseg_edge.io.frame import Frame
from aeseg_edge.io.images import video_backend
from aeseg_edge.io.names import check_name
from aeseg_edge.io.sink import Closing, Sink, WatchesLoop
from aeseg_edge.io.targets import DATA, IMAGE_TYPES, NUMBER, file_parts

if TYPE_CHECKING:
    from aeseg_edge.delivery import Routed
    from aeseg_edge.io.web.sink import Live
    from aeseg_edge.segmenter import Segmentation

_log = logging.getLogger(__name__)

VIDEO_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
DEFAULT_FPS = 25.0
_WANTED = (
    "Give a video (out.mp4), an image pattern (out/%06d.png), window, json:FILE, unix:PATH, "
    "gst://appsrc ! PIPELINE, null:// or http://127.0.0.1:8080."
)

__all__ = ["Sink", "WatchesLoop", "open_sink", "open_sinks"]


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
        from aeseg_edge.io.web.sink import WebSink

        return WebSink(uri, live)
    if uri.startswith("gst://"):
        # A pipeline may have question marks of its own.
        from aeseg_edge.io.gst_sink import GstSink

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
        from aeseg_edge.io.window import WindowSink

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
        from aeseg_edge.io.json_sink import JsonSink

        return JsonSink(path, append=append == "1", error=view == "error")
    from aeseg_edge.io.unix_sink import UnixSink

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
    from aeseg_edge.delivery import Routed

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


class NullSink(Closing):
    """Takes results and drops them: for timing and for counting."""

    name = "null://"

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Do nothing."""


class ImageSink(Closing):
    """One image file a frame; each is whole or not there.

    Args:
        pattern: Path with one ``%d`` or ``%06d``; without one, a single frame is taken.
        view: See ``open_sink``; ``labels`` writes class ids, 255 for void.
        alpha: Strength of the colours.
        legend: Draw the legend.

    Raises:
        SinkError: If the folder cannot be made, or the pattern has two numbers.
    """

    backlog = 16

    def __init__(self, pattern: str, *, view: str, alpha: float, legend: bool) -> None:
        numbers = NUMBER.findall(pattern)
        # One that only makes sense in the folder's name would need a folder a frame.
        if len(numbers) > 1 or "%" in str(Path(pattern).parent) + NUMBER.sub("", pattern):
            raise SinkError(
                f"{pattern} is not a file name with one number", fix="Use out/%06d.png."
            )
        if view == "labels" and Path(pattern).suffix.lower() != ".png":
            raise SinkError(f"{pattern} would lose class ids", fix="Write labels as .png.")
        self.name = pattern
        self._numbered = bool(numbers)
        self._written = 0
        self._options = {"view": view, "alpha": alpha, "legend": legend}
        folder = Path(pattern).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise write_error(folder, problem, error=SinkError) from problem

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Write one image."""
        if self._written and not self._numbered:
            raise SinkError(
                f"{self.name} is one image, and the source has more frames",
                fix="Write out/%06d.png, or stop with --frames 1.",
            )
        path = Path(self.name % frame.index if self._numbered else self.name)
        if self._options["view"] == "labels":
            picture = result.labels
        else:
            picture = render(frame.image, result, **self._options)  # type: ignore[arg-type]
        cv2 = import_cv2()
        try:
            done, data = cv2.imencode(path.suffix, picture)
        except cv2.error:
            # OpenCV 4 raises where OpenCV 5 says False; its text is about its own source code.
            done = False
        if not done:
            raise SinkError(
                f"{path} cannot be encoded at {picture.shape[1]}x{picture.shape[0]}",
                fix="Write .png.",
            )
        write_bytes(path, data.tobytes(), error=SinkError)
        self._written += 1


class VideoSink(Closing):
    """A video file, written beside its target and renamed when it is whole.

    Args:
        path: Target; .mp4, .mkv, .mov (MPEG-4) or .avi (MJPEG).
        fps: Frames a second.
        view: See ``open_sink``.
        alpha: Strength of the colours.
        legend: Draw the legend.

    Raises:
        SinkError: If the folder does not exist or cannot be written.
    """

    backlog = 16

    def __init__(self, path: Path, *, fps: float, view: str, alpha: float, legend: bool) -> None:
        self.name = str(path)
        self._path = path
        self._fps = fps
        self._options = {"view": view, "alpha": alpha, "legend": legend}
        self._writer: Any = None
        self._first: tuple[int, int] | None = None
        self._drawn = (0, 0)
        self._resized = False
        self._frames = 0
        # What OpenCV is given is the file beside the one that a link points to.
        check_name(os.path.realpath(path), error=SinkError)
        self._temporary: Path | None = temporary_beside(path)

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Add one frame; the first decides the size of all."""
        if self._temporary is None:
            raise SinkError(f"{self.name} is closed", fix="Open it again.")
        height, width = frame.image.shape[:2]
        if self._first is None:
            self._first = height, width
        if self._first != (height, width) and not self._resized:
            self._resized = True
            _log.warning(
                "%s: frame %d is %dx%d, the first was %dx%d: such frames are fitted into it",
                self.name,
                frame.index,
                width,
                height,
                *self._first[::-1],
            )
        picture = even(render(frame.image, result, size=self._first, **self._options))  # type: ignore[arg-type]
        if self._writer is None:
            self._writer = self._open(picture.shape[1], picture.shape[0])
            self._drawn = picture.shape[:2]
        # A class renamed during the run makes the legend wider, and OpenCV's writer leaves
        # out, without a word, what is not of its size.
        picture = fit(picture, *self._drawn)
        self._writer.write(picture)
        self._frames += 1
        if self._frames % 64 == 0:
            self._check_room()

    def close(self) -> None:
        """Finish the file, check that it is whole, and give it its name."""
        if self._temporary is None:
            return
        if self._writer is None:
            self.abort()
            _log.warning("%s is not written: there were no frames", self.name)
            return
        try:
            self._writer.release()
            found = _count_frames(self._temporary)
            if found < self._frames:
                raise SinkError(
                    f"{self.name} cannot be written whole: {found} of {self._frames} frames are "
                    "on the disk",
                    fix="The disk is probably full: free some space, or write to another disk.",
                )
            move_into_place(self._temporary, self._path)
        finally:
            # Nothing is left to remove where the file has got its name.
            self.abort()

    def abort(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _open(self, width: int, height: int) -> Any:
        cv2 = import_cv2()
        codec = VIDEO_CODECS[self._path.suffix.lower()]
        writer = cv2.VideoWriter(
            str(self._temporary),
            cv2.VideoWriter_fourcc(*codec),
            _mpeg4_rate(self._fps) if codec == "mp4v" else self._fps,
            (width, height),
        )
        if not writer.isOpened():
            self._check_room()
            raise SinkError(
                f"OpenCV cannot write {self.name} with the codec {codec} "
                f"at {width}x{height} and {self._fps:g} fps",
                fix="Check that the disk has room; else write an .avi, or an image pattern "
                "(out/%06d.png).",
            )
        return writer

    def _check_room(self) -> None:
        """Notice a full disk during the run: OpenCV's writer does not say so."""
        assert self._temporary is not None
        try:
            stats = os.statvfs(self._temporary.parent)
        except OSError as problem:
            raise write_error(self._path, problem, error=SinkError) from problem
        if stats.f_bavail * stats.f_frsize < 1 << 20:
            raise SinkError(
                f"{self.name} cannot be written: the disk is full",
                fix="Free some space, or write to another disk.",
            )


def _mpeg4_rate(fps: float) -> float:
    """Round a rate to what MPEG-4 has room for.

    OpenCV writes a rate as a fraction over 1, 10, 100 or 1000, whichever comes near enough, and
    MPEG-4 counts time in 16 bits (ISO/IEC 14496-2, vop_time_increment_resolution).

    Args:
        fps: Frames a second.

    Returns:
        The same with as many of three decimals as leave its digits below 65536.
    """
    decimals = next((n for n in (3, 2, 1) if fps * 10**n < 0xFFFF), 0)
    return round(fps, decimals)


def _count_frames(path: Path) -> int:
    """Frames that a player will find, 0 where it cannot open the file.

    MP4 and AVI files that lost their end have no index, or state no frames. Matroska has
    the number in its head and keeps it, so the last frame is looked for.
    """
    cv2 = import_cv2()
    capture = cv2.VideoCapture(str(path), video_backend())
    try:
        stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        if stated <= 0:
            return 0
        capture.set(cv2.CAP_PROP_POS_FRAMES, stated - 1)
        return stated if capture.grab() else stated - 1
    finally:
        capture.release()
