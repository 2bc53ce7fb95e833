"""GStreamer, through OpenCV where that was built with it, else through a gst-launch-1.0 child.

pip's OpenCV has no GStreamer, and a Jetson's hardware is behind GStreamer alone. A child process
needs nothing but the command line tools: frames come through a pipe as YUV4MPEG2 (the y4m(5)
format of mjpegtools), whose header says the size, in parts of stated length (multipartmux), so
that a stream that changes its size is noticed and not shown as noise; results go the other way
as raw BGR.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Absent, Frame, Source
from aeseg_edge.sources.capture import open_stream, read_mode
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import without_password

LAUNCH = "gst-launch-1.0"
_INSPECT = "gst-inspect-1.0"
_APPSINK = re.compile(r"!\s*appsink\b([^!]*)$")
_FIRST_FRAME = 15.0
_SHUTDOWN = 3.0

INSTALL = (
    "Install them: apt install gstreamer1.0-tools gstreamer1.0-plugins-base "
    "gstreamer1.0-plugins-good; or use an OpenCV with GStreamer, such as JetPack's "
    "(pip uninstall opencv-python)."
)


def opencv_has_gstreamer() -> bool:
    """Say whether this OpenCV was built with GStreamer; pip's is not."""
    built = import_cv2().getBuildInformation()
    return re.search(r"GStreamer:\s+YES", built) is not None


def has_launch() -> bool:
    """Say whether the command line tools of GStreamer are installed."""
    return shutil.which(LAUNCH) is not None


def has_element(name: str) -> bool | None:
    """Say whether GStreamer has an element; None where there is no tool to ask."""
    if shutil.which(_INSPECT) is None:
        return None
    asked = subprocess.run(
        [_INSPECT, "--exists", name], capture_output=True, timeout=60, check=False
    )
    return asked.returncode == 0


def open_pipeline(name: str, pipeline: str, channels: int, *, endless: bool = False) -> Source:
    """Open a pipeline that ends in appsink, whichever way this machine can, as a live source.

    ``endless``: the end of its stream is a lost source too: cameras have none. OpenCV cannot tell
    an end from an error: there, either is a loss.
    """
    if _APPSINK.search(pipeline) is None:
        raise SourceError(
            f"the pipeline of {name} does not end in appsink",
            fix="Write gst://videotestsrc ! videoconvert ! video/x-raw,format=BGR ! appsink.",
        )
    if opencv_has_gstreamer():
        return open_stream(name, pipeline, import_cv2().CAP_GSTREAMER, channels)
    if has_launch():
        return LaunchedSource(name, pipeline, channels, endless=endless)
    raise SourceError(
        f"{name} needs GStreamer: this OpenCV is built without it and {LAUNCH} is not installed",
        fix=INSTALL,
    )


def csi_pipeline(uri: str) -> str:
    """Write the pipeline from nvarguscamerasrc (the ISP of a Jetson) to appsink.

    ``csi://0?size=1280x720&fps=30&flip=2``; flip is nvvidconv's flip-method, 0..7.
    """
    number, _, query = uri.removeprefix("csi://").partition("?")
    flip = dict(parse_qsl(query)).get("flip", "0")
    if re.fullmatch(r"\d{1,2}", number) is None or re.fullmatch("[0-7]", flip) is None:
        raise SourceError(
            f"{uri} is no sensor number with options", fix="Write csi://0?size=1280x720&fps=30."
        )
    mode = read_mode(uri, "flip")
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


def open_csi(uri: str, channels: int) -> Source:
    """Open a camera on a Jetson's CSI port; see ``open_source``."""
    pipeline, name = csi_pipeline(uri), uri.partition("?")[0]
    if has_element("nvarguscamerasrc") is False:
        raise SourceError(
            f"{name} needs the GStreamer element nvarguscamerasrc, which is not there",
            fix="It comes with JetPack (apt install nvidia-l4t-gstreamer); a container needs "
            "--runtime nvidia and /tmp/argus_socket. USB cameras are v4l2:///dev/video0.",
        )
    return open_pipeline(name, pipeline, channels, endless=True)


def rtsp_pipeline(uri: str, *, jetson: bool) -> str:
    """Write the pipeline of a network camera; nvvidconv fetches a Jetson's frames from NVMM."""
    fetch = "nvvidconv ! video/x-raw,format=BGRx ! " if jetson else ""
    return (
        f'rtspsrc location="{uri}" protocols=tcp latency=100 ! decodebin ! {fetch}'
        "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )


def open_rtsp(uri: str, channels: int) -> Source:
    """Open a network camera, by whichever decoder is there; see ``open_source``."""
    if re.search(r"[\s\"'!\\]", uri):
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
        return open_stream(name, uri, cv2.CAP_FFMPEG, channels)
    raise SourceError(
        f"{name} needs FFmpeg or GStreamer: this OpenCV has neither, and there is no "
        "gst-launch-1.0",
        fix=INSTALL,
    )


def open_gst(uri: str, channels: int) -> Source:
    """Open a pipeline of the user's own; see ``open_source``."""
    # Without the password first, which may have a ! in it.
    name = without_password(uri).partition("!")[0].strip()
    return open_pipeline(name, uri.removeprefix("gst://"), channels)


class Child:
    """A gst-launch-1.0 process and what it said last; ``pass_fds`` are descriptors it inherits."""

    def __init__(
        self,
        pipeline: list[str],
        *,
        stdin: int = subprocess.DEVNULL,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [LAUNCH, "-q", *pipeline],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            # Ctrl-C is for the loop, which ends the child when its last frame is done.
            start_new_session=True,
        )
        self._said: deque[str] = deque(maxlen=60)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def complaint(self) -> str:
        """The first error it told, with its details; else its last line."""
        self._listener.join(_SHUTDOWN)
        lines = [without_password(line) for line in self._said]
        for at, line in enumerate(lines):
            if match := re.search(r"(?:ERROR: from element \S+ |erroneous pipeline: )(.*)", line):
                # Three lines on stands what the element itself had to say.
                detail = lines[at + 3] if "debug info" in "".join(lines[at + 1 : at + 2]) else ""
                return f"{match[1].rstrip('.')} ({detail})" if detail else match[1]
        return lines[-1] if lines else "it said nothing"

    def end(self, timeout: float = _SHUTDOWN) -> int:
        """Wait for its end, or make it end: its exit status, negative where made to."""
        for force in (self.process.terminate, self.process.kill):
            try:
                return self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                force()
        return self.process.wait()

    def _listen(self) -> None:
        stream: IO[bytes] | None = self.process.stderr
        assert stream is not None
        with stream:
            for line in stream:
                if text := line.decode(errors="replace").strip():
                    self._said.append(text)


class LaunchedSource(Source):
    """Frames of a gst-launch-1.0 child; the first one comes within 15 seconds.

    The end of the stream is the end of the source (of an ``endless`` one a loss); an error of the
    pipeline is a lost source. The pipeline ends in appsink, whose ``drop=true`` is kept; its other
    properties have no meaning.
    """

    live = True

    def __init__(self, name: str, pipeline: str, channels: int, *, endless: bool = False) -> None:
        self.name = name
        self._endless = endless
        if channels not in (1, 3):
            raise SourceError(
                f"{name} has 3 channels, the bundle wants {channels}",
                fix="Use a bundle that was trained on such footage.",
            )
        self._channels = channels
        self._size = (0, 0)
        self._reading: IO[bytes] | None = None
        reading, writing = os.pipe()
        try:
            self._child = Child(_to_pipe(name, pipeline, writing), pass_fds=(writing,))
        except OSError as error:
            os.close(reading)
            raise SourceError(f"{LAUNCH} cannot be started: {error}", fix=INSTALL) from error
        finally:
            os.close(writing)
        self._reading = os.fdopen(reading, "rb", buffering=1 << 20)
        try:
            if not select.select([reading], [], [], _FIRST_FRAME)[0]:
                raise Absent(
                    f"{name} gives no frame within {_FIRST_FRAME:g} s",
                    fix="Try the pipeline with gst-launch-1.0 and autovideosink.",
                )
            self._first = self._read()
            self._first_at = time.monotonic()
            if self._first is None:
                raise Absent(f"{name} ended before its first frame", fix="Check the pipeline.")
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        """Give frames until the stream ends."""
        index = 0
        image, captured = self._first, self._first_at
        self._first = None
        while image is not None:
            yield Frame(image, index, captured, self.name)
            index += 1
            image = self._read()
            captured = time.monotonic()

    def interrupt(self) -> None:
        """End the child, which wakes up whoever reads from it."""
        with contextlib.suppress(ProcessLookupError):
            self._child.process.kill()

    def close(self) -> None:
        """End the child."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None
            self._child.process.terminate()
            self._child.end()

    def _read(self) -> NDArray[np.uint8] | None:
        """Read one frame; None at the end of the stream."""
        data = self._part()
        if data is None:
            status = self._child.end()
            if status != 0 or self._endless:
                why = self._child.complaint if status else "the other side ended the stream"
                raise Absent(
                    f"{self.name} stopped: {why}",
                    fix="Try the pipeline with gst-launch-1.0 and fakesink.",
                )
            return None
        if data.startswith(b"YUV4MPEG2 "):
            header, _, data = data.partition(b"\n")
            self._read_header(header.decode("ascii", "replace"))
        marker, _, planes = data.partition(b"\n")
        image = None
        if marker.startswith(b"FRAME"):
            image = i420_to_bgr(planes, *self._size, self._channels)
        if image is None:
            raise SourceError(
                f"{self.name} changed its size in the stream",
                fix="It is opened again; to prevent that, put videoscale and caps before appsink.",
            )
        return image

    def _part(self) -> bytes | None:
        """Read one part; None at the end, and where it is cut short."""
        stream = self._reading
        length = 0
        while stream is not None:
            line = stream.readline()
            if not line:
                return None
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
            elif length and not line.strip():
                data = stream.read(length)
                return data if len(data) == length else None
        return None

    def _read_header(self, header: str) -> None:
        fields = {field[0]: field[1:] for field in header.split()[1:]}
        self._size = int(fields["H"]), int(fields["W"])
        rate, _, per = fields.get("F", "0:1").partition(":")
        self.fps = int(rate) / int(per) if int(rate) and int(per or 0) else None


def _to_pipe(name: str, pipeline: str, descriptor: int) -> list[str]:
    """Replace appsink by what writes YUV4MPEG2 into a file descriptor."""
    match = _APPSINK.search(pipeline)
    assert match is not None
    try:
        head = shlex.split(pipeline[: match.start()])
    except ValueError as error:
        raise SourceError(
            f"the pipeline of {name} has an open quote ({error})", fix="Close it."
        ) from error
    leaky = ["leaky=downstream"] if re.search(r"\bdrop=(true|1)\b", match[1], re.I) else []
    # The colours of BT.601 with limited range are what OpenCV converts from.
    tail = ["queue", "max-size-buffers=1", *leaky, "!", "videoconvert", "!"]
    tail += ["video/x-raw,format=I420,colorimetry=bt601", "!", "y4menc", "!"]
    tail += ["multipartmux", "!"]
    return [*head, "!", *tail, "fdsink", f"fd={descriptor}", "sync=false"]


def i420_to_bgr(
    data: bytes, height: int, width: int, channels: int = 3
) -> NDArray[np.uint8] | None:
    """Convert planar YUV 4:2:0 (ITU-R BT.601, limited range) to uint8 [H, W, C], BGR or grey.

    The data is Y [H, W], then U and V [ceil(H/2), ceil(W/2)]: without padding as y4m(5) has it, or
    with rows padded to 4 bytes and an even number of them, as GStreamer 1.22's y4menc writes it.
    None where it has neither length.
    """
    cv2 = import_cv2()
    rows, columns = -(-height // 2), -(-width // 2)
    layouts = [
        ((height, width), (rows, columns)),
        ((2 * rows, -(-width // 4) * 4), (rows, -(-columns // 4) * 4)),
    ]
    for luma, chroma in layouts:
        sizes = luma[0] * luma[1], chroma[0] * chroma[1]
        if len(data) != sizes[0] + 2 * sizes[1]:
            continue
        planes = np.frombuffer(data, np.uint8)
        if (width % 2, height % 2, luma, chroma) != (0, 0, (height, width), (rows, columns)):
            # OpenCV converts even sides without padding only.
            y = planes[: sizes[0]].reshape(luma)[:height, :width]
            y = np.pad(y, ((0, height % 2), (0, width % 2)), mode="edge")
            uv = planes[sizes[0] :].reshape(2, *chroma)[:, :, :columns]
            planes = np.concatenate([y.ravel(), uv.ravel()])
        image: Any = cv2.cvtColor(planes.reshape(3 * rows, 2 * columns), cv2.COLOR_YUV2BGR_I420)
        if channels == 1:
            # Not the luma itself, which ends at 16 and 235.
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        image = image.reshape(2 * rows, 2 * columns, channels)
        return np.ascontiguousarray(image[:height, :width], np.uint8)
    return None
