"""What this machine has and lacks for running bundles, each finding with its fix.

Runs everywhere and never raises for what it finds: a broken package is a row, not an error.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import re
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from aeseg_edge.backends.cache import EngineCache
from aeseg_edge.backends.session import load_onnxruntime, saturates
from aeseg_edge.bundle.precisions import BACKENDS, ONNXRUNTIME, TENSORRT
from aeseg_edge.errors import AesegError, EngineError, MissingDependency, UsageError
from aeseg_edge.measure.machine import Command, environment, run_command
from aeseg_edge.support.require import import_cv2, install

_log = logging.getLogger(__name__)

ASKED = ("auto", *BACKENDS)
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
OLDEST_NUMPY, OLDEST_OPENCV, OLDEST_ONNXRUNTIME = (1, 26), (4, 10), (1, 23)
BUILD_MEMORY = 1536 << 20
"""What building an engine takes, about; an estimate, see export/engines/compile.py."""

_ROOT = Path("/")
_GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One row of the report.

    Attributes:
        name: What was looked at.
        ok: True: fine. False: needed for the chosen backend, and missing or broken.
            None: not needed, or advice.
        found: What is there.
        fix: What to do about it; "" where nothing is to be done.
    """

    name: str
    ok: bool | None
    found: str
    fix: str = ""


def healthy(checks: list[Check]) -> bool:
    """Whether everything that is needed is there; the exit code of `aeseg doctor`."""
    return not any(check.ok is False for check in checks)


def diagnose(
    backend: str = "auto",
    *,
    cache_dir: str | Path | None = None,
    root: Path = _ROOT,
    command: Command | None = None,
) -> list[Check]:
    """Look at everything that a run depends on.

    Args:
        backend: What is to be run: "onnxruntime", "tensorrt", or "auto", for which either
            will do.
        cache_dir: Where engines are kept; the user's cache folder when None.
        root: Where /proc, /sys, /etc, /var and /dev are looked up.
        command: Runs nvpmodel and nvidia-smi; `device.run_command` unless given.

    Returns:
        One row for each thing, in the order to fix them.

    Raises:
        UsageError: The backend is unknown.
    """
    if backend not in ASKED:
        raise UsageError(f"backend {backend!r} is unknown", fix=f"Use one of {', '.join(ASKED)}.")
    machine = environment(root, command or run_command)
    jetson = machine["jetson"]
    tensorrt = *_safely("TensorRT", _tensorrt), *_safely("GPU through pycuda", _gpu)
    usable = all(check.ok for check in tensorrt)
    with_tensorrt = backend == TENSORRT or (backend == "auto" and (usable or jetson is not None))
    runtime, *int8 = _safely("ONNX Runtime", _onnxruntime)
    # For "auto" one of the two is enough; what is not needed is told, and is no fault.
    runtime_needed = backend == ONNXRUNTIME or (backend == "auto" and not usable)
    tensorrt_needed = backend == TENSORRT or (with_tensorrt and not runtime.ok)
    return [
        _python(),
        _numpy(),
        *_safely("OpenCV", lambda: _opencv(jetson is not None)),
        _needed(runtime, runtime_needed),
        *int8,
        *(_needed(check, tensorrt_needed) for check in tensorrt),
        _jetpack(jetson, machine["os"]),
        _power(jetson, root),
        _memory(machine["memory"], root, building=with_tensorrt),
        _cameras(root),
        _cache(cache_dir, needed=tensorrt_needed),
    ]


def _safely(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """Look at a package; a broken one raises whatever its code happens to meet."""
    try:
        return look()
    except AesegError as error:
        return [Check(name, False, error.problem, error.fix)]
    except Exception as error:
        _log.debug("%s", name, exc_info=True)
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return [Check(name, False, f"it does not work ({told})", "Install the package again.")]


def _needed(check: Check, needed: bool) -> Check:
    if check.ok is False and not needed:
        return Check(check.name, None, check.found, check.fix)
    return check


def _python() -> Check:
    here = sys.version_info[:2]
    return Check(
        "Python",
        OLDEST_PYTHON <= here <= NEWEST_PYTHON,
        f"{platform.python_version()} on {platform.machine()}",
        "" if OLDEST_PYTHON <= here <= NEWEST_PYTHON else "Use Python 3.10 to 3.13.",
    )


def _numpy() -> Check:
    import numpy as np

    fine = _version(np.__version__) >= OLDEST_NUMPY
    return Check("numpy", fine, np.__version__, "" if fine else "pip install 'numpy>=1.26'")


def _opencv(on_jetson: bool) -> list[Check]:
    """OpenCV, and whether it can open GStreamer pipelines."""
    fix = "apt install python3-opencv, and a virtual environment with --system-site-packages."
    try:
        cv2 = import_cv2()
    except MissingDependency as error:
        if not on_jetson or find_spec("cv2") is not None:
            fix = error.fix
        return [Check("OpenCV", False, error.problem, fix)]
    if not on_jetson:
        fix = install("cpu")
    fine = _version(cv2.__version__) >= OLDEST_OPENCV or on_jetson
    rows = [Check("OpenCV", fine, cv2.__version__, "" if fine else fix)]
    build = re.search(r"GStreamer:\s*(\S+)(?:\s*\(([^)]*)\))?", cv2.getBuildInformation())
    if build is not None and build[1] == "YES":
        rows.append(Check("GStreamer in OpenCV", True, build[2] or "yes"))
    else:
        advice = (
            "pip's OpenCV hides JetPack's: pip uninstall opencv-python opencv-python-headless."
            if on_jetson
            else "csi:// and gst:// sources then need gst-launch-1.0: apt install "
            "gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good."
        )
        rows.append(Check("GStreamer in OpenCV", None, "no", advice))
    return rows


def _onnxruntime() -> list[Check]:
    """ONNX Runtime, and how exactly it computes int8 graphs on this CPU."""
    runtime = load_onnxruntime()
    fine = _version(runtime.__version__) >= OLDEST_ONNXRUNTIME
    fix = "" if fine else install("cpu")
    found = "exact, and as fast as this CPU is"
    if loses := saturates(runtime):
        found = "exact, with uint8 weights and slower: this CPU has no VNNI, and its own way is not"
    return [
        Check("ONNX Runtime", fine, runtime.__version__, fix),
        Check("int8 on this CPU", None if loses else True, found),
    ]


def _tensorrt() -> list[Check]:
    from aeseg_edge.backends.tensorrt_api import load_tensorrt

    return [Check("TensorRT", True, load_tensorrt().__version__)]


def _gpu() -> list[Check]:
    """The GPU as pycuda sees it: this is what a run will use."""
    from aeseg_edge.backends.cuda import Device

    gpu = Device()
    try:
        with gpu.current("asking for its memory"):
            free, total = gpu.memory()
    finally:
        gpu.close()
    info = gpu.info
    found = (
        f"{info.name}, compute capability {info.compute_capability}, {info.multiprocessors} "
        f"multiprocessors, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, "
        f"pycuda {gpu.pycuda_version}, CUDA driver {gpu.cuda_version}"
    )
    return [Check("GPU through pycuda", True, found)]


def _jetpack(jetson: dict[str, str | None] | None, system: dict[str, str | None]) -> Check:
    if jetson is None:
        return Check("JetPack", None, f"not a Jetson ({system['name']})")
    l4t = jetson["l4t"]
    found = f"{jetson['model']}, L4T {l4t}, JetPack {jetson['jetpack'] or 'package not installed'}"
    # L4T 36.4 is JetPack 6.1, the first with TensorRT 10.3.
    fine = l4t is not None and _version(l4t) >= (36, 4)
    fix = "" if fine else "Flash JetPack 6.1 or later: older ones have TensorRT 8."
    return Check("JetPack", fine or None, found, fix)


def _power(jetson: dict[str, str | None] | None, root: Path) -> Check:
    """Power mode and GPU clock: half of all slow Jetsons are in a saving mode."""
    if jetson is None:
        return Check("power mode and clocks", None, "not a Jetson")
    mode = jetson["power_mode"]
    clocks = []
    for folder in sorted((root / "sys/class/devfreq").glob("*gpu*")):
        current, highest = _number(folder / "cur_freq"), _number(folder / "max_freq")
        if current and highest:
            clocks.append(f"GPU at {current // 10**6} of {highest // 10**6} MHz")
    found = ", ".join([f"mode {mode or 'unknown'}", *clocks])
    fastest = mode is not None and mode.startswith("MAXN")
    fix = "" if fastest else "For full speed: sudo nvpmodel -m 0 && sudo jetson_clocks."
    return Check("power mode and clocks", True if fastest else None, found, fix)


def _memory(memory: dict[str, int] | None, root: Path, *, building: bool) -> Check:
    if memory is None:
        return Check("memory", None, "unknown")
    swap = re.search(r"^SwapTotal:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    swap_bytes = int(swap[1]) * 1024 if swap else 0
    found = (
        f"{memory['available'] / _GIB:.1f} of {memory['total'] / _GIB:.1f} GiB available, "
        f"{swap_bytes / _GIB:.1f} GiB swap"
    )
    if building and memory["available"] < BUILD_MEMORY:
        fix = "Building engines takes about 1.5 GiB: close other programs or add swap."
        return Check("memory", None, found, fix)
    return Check("memory", True, found)


def _cameras(root: Path) -> Check:
    """Video devices with the pixel formats they offer."""
    found = []
    refused = []
    for device in sorted((root / "dev").glob("video*"), key=lambda p: (len(p.name), p.name)):
        label = _text(root / "sys/class/video4linux" / device.name / "name").strip()
        try:
            formats = camera_formats(device)
        except PermissionError:
            refused.append(device.name)
            continue
        except OSError as error:
            _log.debug("%s: %s", device, error)
            continue
        # A camera has a second node for metadata, which offers no formats.
        if formats:
            found.append(f"/dev/{device.name} ({label or 'unnamed'}): {', '.join(formats)}")
    if refused:
        return Check(
            "cameras",
            None,
            "; ".join([*found, f"{', '.join(refused)} may not be opened"]),
            "Join the group: sudo usermod -aG video $USER, then log in again.",
        )
    if not found:
        return Check("cameras", None, "none at /dev/video*")
    return Check("cameras", True, "; ".join(found))


def camera_formats(
    device: Path, ioctl: Callable[[int, int, bytearray], int] = fcntl.ioctl
) -> list[str]:
    """Ask a video device, such as /dev/video0, for its pixel formats, such as "YUYV" or "MJPG".

    OSError where it cannot be opened. Source: Linux kernel,
    userspace-api/media/v4l/vidioc-enum-fmt (VIDIOC_ENUM_FMT).
    """
    enum_fmt, capture = 0xC0405602, 1
    formats: list[str] = []
    handle = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            # struct v4l2_fmtdesc: index, type, flags, description[32], pixelformat, ...
            request = bytearray(
                struct.pack("=III32s4s4I", len(formats), capture, 0, b"", b"", *[0] * 4)
            )
            try:
                ioctl(handle, enum_fmt, request)
            except OSError:  # past the last format, or not a device that captures
                return formats
            formats.append(request[44:48].decode("ascii", errors="replace").strip("\0 "))
    finally:
        os.close(handle)


def _cache(cache_dir: str | Path | None, *, needed: bool) -> Check:
    """Whether engines can be kept, and how much is kept."""
    name = "engine cache"
    try:
        folder = EngineCache(cache_dir).folder
    except EngineError as error:
        return _needed(Check(name, False, error.problem, error.fix), needed)
    plans = list(folder.glob("*.plan"))
    size = sum(path.stat().st_size for path in plans) / (1 << 20)
    found = f"{folder}: {len(plans)} engines, {size:.1f} MiB"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        fix = "Allow writing there, or name another folder with --cache-dir."
        return _needed(
            Check(name, False, f"{there} cannot be written ({error.strerror})", fix), needed
        )
    return Check(name, True, found)


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
