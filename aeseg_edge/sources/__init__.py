"""Where frames come from, written as URIs or as people type them.

``drive.mp4``, ``file:///data/drive.mp4``, ``photo.jpg``, ``photos/``, ``photos/*.png``,
``0`` or ``v4l2:///dev/video0?size=1280x720&fps=30`` (a camera), ``csi://0`` (a Jetson's camera),
``rtsp://host/path``, ``http://host/stream.mjpg``, ``gst://PIPELINE ! appsink``,
``test://640x480@30`` (a moving drawn scene), ``pairs://visible=DIR,thermal=DIR`` (folders paired
by name: one frame of several modalities). docs/sources.md has the options of each.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from aeseg_edge.bundle.manifest import Modality
from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Source
from aeseg_edge.sources.capture import CameraMode, CameraSource, StreamSource, VideoSource
from aeseg_edge.sources.gstreamer import (
    INSTALL,
    has_element,
    has_launch,
    open_pipeline,
    opencv_has_gstreamer,
)
from aeseg_edge.sources.images import is_image, natural
from aeseg_edge.sources.mjpeg import MjpegSource, NotMjpeg
from aeseg_edge.sources.pairs import (
    PairSource,
    check_modalities,
    is_pairs,
    open_pairs,
)
from aeseg_edge.sources.paths import _file_path
from aeseg_edge.sources.recorded import ImageSource, RealTime
from aeseg_edge.sources.scene import TestSource
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import check_name, without_password

_MAX_SIDE = 8192
_WANTED = (
    "Give a video, an image, a folder of images, a glob, a camera number, or a URI: v4l2://, "
    "csi://, rtsp://, http://, gst://, test://WxH@fps."
)


def open_source(
    uri: str,
    *,
    channels: int = 3,
    realtime: bool = False,
    modalities: Sequence[Modality] = (),
) -> Source:
    """Open a source.

    Args:
        uri: See the module's text.
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
    check_modalities(uri, modalities)
    source = PairSource(open_pairs(uri, modalities)) if is_pairs(uri) else _open(uri, channels)
    return RealTime(source) if realtime and not source.live else source


def _open(uri: str, channels: int) -> Source:
    scheme, _, rest = uri.partition("://")
    if scheme in _SCHEMES and rest:
        if scheme != "file":
            check_name(without_password(uri), error=SourceError)
        return _SCHEMES[scheme](rest, channels)
    if not uri.strip():
        # As a path it would be the current folder.
        raise SourceError("the source is empty", fix=_WANTED)
    if "://" in uri:
        raise SourceError(f"{without_password(uri)} has an unknown scheme", fix=_WANTED)
    if match := re.fullmatch(r"(\d+)(\?.*)?", uri):
        return CameraSource(int(match[1]), channels, _mode(uri, (match[2] or "?")[1:]))
    return _open_path(uri, channels)


def _open_file(rest: str, channels: int) -> Source:
    return _open_path(_file_path(rest), channels)


def _open_path(text: str, channels: int) -> Source:
    path = Path(text)
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.is_file()), key=lambda p: natural(p.name))
        images = [p for p in files if is_image(p)]
        if not images:
            found = f"{len(files)} other files" if files else "nothing"
            raise SourceError(f"the folder {path} has no images, but {found}", fix=_WANTED)
        return ImageSource(text, images, channels)
    if path.is_file():
        if is_image(path):
            return ImageSource(text, [path], channels)
        check_name(path, error=SourceError)
        return VideoSource(path, channels)
    if glob.has_magic(text):
        matches = [Path(name) for name in sorted(glob.glob(text, recursive=True), key=natural)]
        images = [p for p in matches if p.is_file() and is_image(p)]
        if not images:
            raise SourceError(
                f"the pattern {text} matches {len(matches)} files and no image", fix=_WANTED
            )
        return ImageSource(text, images, channels)
    raise SourceError(f"{text} does not exist", fix=_WANTED)


def _open_test(rest: str, channels: int) -> Source:
    match = re.fullmatch(r"(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?", rest)
    width, height, fps = match.groups(default="30") if match else ("0", "0", "0")
    if not (0 < int(width) <= _MAX_SIDE and 0 < int(height) <= _MAX_SIDE and float(fps) > 0):
        raise SourceError(
            f"test://{rest} is not a size and rate",
            fix=f"Write test://640x480@30; sides end at {_MAX_SIDE}.",
        )
    return TestSource(int(width), int(height), float(fps), channels)


def _options(uri: str, query: str, known: tuple[str, ...]) -> dict[str, str]:
    """Read ``key=value&...``, and refuse keys that nobody would look at."""
    found = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(found) - set(known)):
        raise SourceError(
            f"{uri} has unknown options {unknown}", fix=f"The options are {', '.join(known)}."
        )
    return found


def _mode(uri: str, query: str, more: tuple[str, ...] = ("format",)) -> CameraMode:
    """Read ``size=1280x720&fps=30&format=MJPG``."""
    options = _options(uri, query, ("size", "fps", *more))
    size = re.fullmatch(r"(\d+)x(\d+)", options.get("size", "1x1"))
    rate = re.fullmatch(r"\d+(\.\d+)?", options.get("fps", "1"))
    wide, high = (int(size[1]), int(size[2])) if size else (0, 0)
    if not (0 < wide <= _MAX_SIDE and 0 < high <= _MAX_SIDE and rate and float(rate[0]) > 0):
        raise SourceError(
            f"{uri} asks for no size or rate of a camera", fix="Write ?size=1280x720&fps=30."
        )
    form = options.get("format")
    if form is not None and re.fullmatch(r"[A-Za-z0-9]{4}", form) is None:
        raise SourceError(
            f"{uri} asks for the format {form!r}", fix="Write four characters: MJPG or YUYV."
        )
    return CameraMode(
        size=(wide, high) if "size" in options else None,
        fps=float(options["fps"]) if "fps" in options else None,
        format=form,
    )


def _open_v4l2(rest: str, channels: int) -> Source:
    device, _, query = rest.partition("?")
    return CameraSource(device, channels, _mode(f"v4l2://{rest}", query))


def csi_pipeline(rest: str) -> str:
    """Write the pipeline of a camera on a Jetson's CSI port.

    Args:
        rest: ``0?size=1280x720&fps=30&flip=2``; flip is nvvidconv's flip-method, 0..7.

    Returns:
        A pipeline from nvarguscamerasrc (the ISP of the device) to appsink.

    Raises:
        SourceError: If it is no sensor number, or an option is wrong.
    """
    uri = f"csi://{rest}"
    number, _, query = rest.partition("?")
    flip = dict(parse_qsl(query)).get("flip", "0")
    if re.fullmatch(r"\d{1,2}", number) is None or re.fullmatch("[0-7]", flip) is None:
        raise SourceError(
            f"{uri} is no sensor number with options", fix="Write csi://0?size=1280x720&fps=30."
        )
    mode = _mode(uri, query, ("flip",))
    caps = "video/x-raw(memory:NVMM),format=NV12"
    if mode.size is not None:
        caps += f",width={mode.size[0]},height={mode.size[1]}"
    if mode.fps is not None:
        caps += f",framerate={round(mode.fps * 1000)}/1000"
    return (
        f"nvarguscamerasrc sensor-id={number} ! {caps} ! nvvidconv flip-method={flip} ! "
        "video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )


def _open_csi(rest: str, channels: int) -> Source:
    pipeline, name = csi_pipeline(rest), f"csi://{rest.partition('?')[0]}"
    if has_element("nvarguscamerasrc") is False:
        raise SourceError(
            f"{name} needs the GStreamer element nvarguscamerasrc, which is not there",
            fix="It comes with JetPack (apt install nvidia-l4t-gstreamer); a container needs "
            "--runtime nvidia and /tmp/argus_socket. USB cameras are v4l2:///dev/video0.",
        )
    return open_pipeline(name, pipeline, channels, endless=True)


def rtsp_pipeline(uri: str, *, jetson: bool) -> str:
    """Write the pipeline of a network camera.

    Args:
        uri: ``rtsp://[user:password@]host[:port]/path``.
        jetson: Decoded frames lie in NVMM memory, and nvvidconv fetches them.
    """
    fetch = "nvvidconv ! video/x-raw,format=BGRx ! " if jetson else ""
    return (
        f'rtspsrc location="{uri}" protocols=tcp latency=100 ! decodebin ! {fetch}'
        "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )


def _open_rtsp(rest: str, channels: int) -> Source:
    uri = f"rtsp://{rest}"
    if re.search(r"[\s\"'!\\]", rest):
        raise SourceError(
            f"{without_password(uri)} has characters that an address cannot have",
            fix="Write them as %20 (a space), %22 (\"), %27 ('), %21 (!).",
        )
    cv2, name = import_cv2(), without_password(uri)
    jetson = has_element("nvv4l2decoder") is True
    ffmpeg = cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
    # FFmpeg decodes on the CPU, but is inside pip's OpenCV; GStreamer uses the device's decoder.
    if opencv_has_gstreamer() or (has_launch() and (jetson or not ffmpeg)):
        return open_pipeline(name, rtsp_pipeline(uri, jetson=jetson), channels, endless=True)
    if ffmpeg:
        return StreamSource(name, uri, cv2.CAP_FFMPEG, channels)
    raise SourceError(
        f"{name} needs FFmpeg or GStreamer: this OpenCV has neither, and there is no "
        "gst-launch-1.0",
        fix=INSTALL,
    )


def _open_http(uri: str, channels: int) -> Source:
    try:
        return MjpegSource(uri, channels)
    except NotMjpeg as problem:
        # A video, or a playlist: FFmpeg knows what to do with it.
        cv2 = import_cv2()
        try:
            return StreamSource(without_password(uri), uri, cv2.CAP_FFMPEG, channels)
        except SourceError:
            raise problem from None


def _open_gst(rest: str, channels: int) -> Source:
    # Without the password first, which may have a ! in it.
    name = without_password(f"gst://{rest}").partition("!")[0].strip()
    return open_pipeline(name, rest, channels)


_SCHEMES: dict[str, Callable[[str, int], Source]] = {
    "csi": _open_csi,
    "file": _open_file,
    "gst": _open_gst,
    "http": lambda rest, channels: _open_http(f"http://{rest}", channels),
    "https": lambda rest, channels: _open_http(f"https://{rest}", channels),
    "rtsp": _open_rtsp,
    "test": _open_test,
    "v4l2": _open_v4l2,
}
