"""Where frames come from, written as URIs or as people type them.

``drive.mp4``, ``file:///data/drive.mp4``, ``photo.jpg``, ``photos/``, ``photos.zip``,
``clips/*.mp4``, ``-`` or a pipe (a video from another program), ``0``, ``/dev/video0`` or
``v4l2:///dev/video0?size=1280x720&fps=30`` (a camera), ``csi://0`` (a Jetson's camera),
``rtsp://host/path``, ``http://host/stream.mjpg``,
``gst://PIPELINE ! appsink``, ``test://640x480@30`` (a moving drawn scene),
``pairs://visible=DIR,thermal=DIR`` (folders paired by name: one frame of several modalities).
docs/sources.md has the options of each.

A source of another kind is a module with a ``Source`` and a function that opens it, and one row
of ``SCHEMES``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aeseg_edge.bundle.manifest import Modality
from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Source
from aeseg_edge.sources.pairs import SCHEME, describe
from aeseg_edge.support.lazy import load
from aeseg_edge.support.text import check_name, without_password


@dataclass(frozen=True)
class Scheme:
    """One way to write a source.

    Attributes:
        opens: ``module:function`` that takes the URI, the channels, and ``modalities`` where the
            source has several; it gives an open ``Source``.
        form: How it is written, for help and errors.
        modalities: ``one``, ``several``, or ``any`` where it goes with every bundle.
        files: ``module:function`` that lists the files which a URI reads, without opening any.
        live: It is a camera or a stream, which may not be there yet.
    """

    opens: str
    form: str
    modalities: str = "one"
    files: str = ""
    live: bool = False


_HERE = "aeseg_edge.sources"
_RECORDED = "a video, an image, a folder, a zip of images, a glob of any of these"
_CAMERA = "a camera number or /dev/video0, v4l2:///dev/video0?size=1280x720&fps=30"
SCHEMES = {
    "file": Scheme(
        f"{_HERE}.recorded:open_recording", _RECORDED, files=f"{_HERE}.paths:list_files"
    ),
    "v4l2": Scheme(f"{_HERE}.capture:open_camera", _CAMERA, live=True),
    "csi": Scheme(f"{_HERE}.gstreamer:open_csi", "csi://0", live=True),
    "rtsp": Scheme(f"{_HERE}.gstreamer:open_rtsp", "rtsp://...", live=True),
    "http": Scheme(f"{_HERE}.mjpeg:open_http", "http://... (Motion JPEG)", live=True),
    "https": Scheme(f"{_HERE}.mjpeg:open_http", "", live=True),
    "gst": Scheme(f"{_HERE}.gstreamer:open_gst", "'gst://... ! appsink'", live=True),
    "test": Scheme(f"{_HERE}.scene:open_scene", "test://640x480@30", modalities="any"),
    "pairs": Scheme(f"{_HERE}.pairs:open_scenes", "", "several", f"{_HERE}.pairs:list_files"),
}
FORMS = ", ".join(each.form for each in SCHEMES.values() if each.form)
"""Every way to write a source, for help and errors."""
_WANTED = f"Give {FORMS}."


def open_source(
    uri: str | int | Path,
    *,
    channels: int = 3,
    realtime: bool = False,
    modalities: Sequence[Modality] = (),
) -> Source:
    """Open a source.

    Args:
        uri: See the module's text; the number of a camera may be an int.
        channels: C of the frames: 1, 3 or 4 (four-channel images only).
        realtime: Give recorded frames at their own rate; live sources do so anyway.
        modalities: What the channels are, where a bundle was trained on several pictures of a
            scene; then the source is ``pairs://`` or the test scene.

    Returns:
        An open source; a video or camera has given its first frame already, so that what
        cannot be read is refused here.

    Raises:
        SourceError: If there is no such thing, or nothing in it can be read.
    """
    uri = str(uri)
    check_modalities(uri, modalities)
    scheme = scheme_of(uri)
    more = {"modalities": modalities} if scheme.modalities == "several" else {}
    source: Source = load(scheme.opens)(uri, channels, **more)
    if not realtime or source.live:
        return source
    from aeseg_edge.sources.recorded import RealTime

    return RealTime(source)


def scheme_of(uri: str) -> Scheme:
    """Find the row of a source; no address is other than UTF-8, which is all that OpenCV takes."""
    scheme, separator, rest = uri.partition("://")
    if not uri.strip():
        # As a path it would be the current folder.
        raise SourceError("the source is empty", fix=_WANTED)
    if not separator:
        return SCHEMES["v4l2" if _is_camera(uri.partition("?")[0]) else "file"]
    if scheme not in SCHEMES or not rest:
        raise SourceError(f"{without_password(uri)} has an unknown scheme", fix=_WANTED)
    if not SCHEMES[scheme].files:
        check_name(without_password(uri), error=SourceError)
    return SCHEMES[scheme]


def is_live(uri: str) -> bool:
    """Say whether a source is a camera or a stream by the way it is written."""
    return scheme_of(uri).live


def name_of(uri: str) -> str:
    """Give the name that a source has once it is open, as far as its address tells."""
    scheme = scheme_of(uri)
    if scheme is SCHEMES["v4l2"]:
        return f"camera {uri.removeprefix('v4l2://').partition('?')[0]}"
    if scheme is SCHEMES["csi"]:
        return uri.partition("?")[0]
    name = without_password(uri)
    return name.partition("!")[0].strip() if scheme is SCHEMES["gst"] else name


def _is_camera(path: str) -> bool:
    """Say whether a path is a number or a device of Video4Linux (major number 81)."""
    if re.fullmatch(r"\d+|/dev/video\d+", path):
        return True
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == 81


def files_of(uri: str) -> list[Path]:
    """List the files that a source reads, without opening any; none of cameras and streams."""
    try:
        lists = scheme_of(uri).files
    except SourceError:
        return []
    found: list[Path] = load(lists)(uri) if lists else []
    return found


def check_modalities(uri: str, modalities: Sequence[Modality]) -> None:
    """Refuse a source that cannot have a bundle's modalities (none: trained on a single camera).

    The test scene goes with every bundle.
    """
    name = uri.partition("://")[0] if "://" in uri else "file"
    has = SCHEMES[name].modalities if name in SCHEMES else "one"
    if has == "several" and not modalities:
        raise SourceError(
            f"{uri.removeprefix(SCHEME)} has several modalities, and the bundle was trained on one",
            fix="Give one folder as SOURCE, or train on all: aeseg train --modalities "
            "visible=DIR,thermal=DIR -o NAME.aeseg.",
        )
    if has == "one" and modalities:
        folders = ",".join(f"{each.name}=DIR" for each in modalities)
        raise SourceError(
            f"{without_password(uri)} has one modality, and the bundle was trained on "
            f"{describe(modalities)}",
            fix=f"Give a folder of each: --modalities {folders}.",
        )
