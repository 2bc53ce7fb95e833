"""What a measurement ran on: software, processor, memory, GPU, temperatures, power.

Everything is read from files and package metadata, from two short commands where they
exist, and never by importing a heavy package. What is absent is None, never guessed.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

Command = Callable[[Sequence[str]], "str | None"]
"""Runs a command and returns its standard output, or None where it cannot."""

_ROOT = Path("/")
_COMMAND_SECONDS = 5.0

# The first distribution that is installed counts; the key is the name in the report.
_PACKAGES: dict[str, tuple[str, ...]] = {
    "aeseg_edge": ("aeseg_edge",),
    "numpy": ("numpy",),
    "opencv": (
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnx": ("onnx",),
    "scikit-learn": ("scikit-learn",),
    "scipy": ("scipy",),
    "torch": ("torch",),
    "tensorrt": ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
    "pycuda": ("pycuda",),
}

# Source: util-linux, sys-utils/lscpu-arm.c; only cores found on boards this runs on.
_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x4e", "0x004"): "Carmel",
}

# Instruction sets that decide how fast int8 runs on a CPU.
_INT8_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve2")


def environment(root: Path = _ROOT, command: Command | None = None) -> dict[str, Any]:
    """Describe this machine, in JSON types.

    Args:
        root: Where /proc, /sys, /etc and /var are looked up.
        command: Runs nvpmodel and nvidia-smi; run_command unless given.

    Returns:
        python, packages (versions), tensorrt (version), os, cpu, load (1, 5 and 15 minutes),
        memory (bytes), gpu, jetson (model, versions, power_mode, jetson_clocks), throttling,
        temperatures (degrees Celsius by zone), power (by rail).
        None stands for what this machine lacks.
    """
    run = command or run_command
    versions = packages()
    return {
        "python": platform.python_version(),
        "packages": versions,
        "tensorrt": versions["tensorrt"] or _debian_version(root, r"libnvinfer\d+"),
        "os": {
            "name": _os_name(root),
            "kernel": platform.release(),
            "machine": platform.machine(),
        },
        "cpu": _cpu(root),
        "load": _load(root),
        "memory": _memory(root),
        "gpu": _gpu(run),
        "jetson": _jetson(root, run),
        "throttling": throttling(root),
        "temperatures": temperatures(root),
        "power": power(root),
    }


def packages() -> dict[str, str | None]:
    """Return the versions of the packages that matter here, None where not installed.

    Only metadata is read. An OpenCV without metadata (JetPack's) has a version here once
    something else has imported it.
    """
    versions: dict[str, str | None] = {}
    for name, distributions in _PACKAGES.items():
        versions[name] = next(filter(None, map(_version, distributions)), None)
    if versions["opencv"] is None:
        versions["opencv"] = getattr(sys.modules.get("cv2"), "__version__", None)
    return versions


def process_memory(root: Path = _ROOT) -> dict[str, int] | None:
    """Return the memory of this process in bytes, or None where Linux's /proc is absent.

    Source: proc_pid_status(5), VmRSS (resident now) and VmHWM (its peak).
    """
    text = _read(root / "proc/self/status")
    sizes = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", text or "", re.MULTILINE))
    if set(sizes) != {"VmRSS", "VmHWM"}:
        return None
    return {"resident": int(sizes["VmRSS"]) * 1024, "peak": int(sizes["VmHWM"]) * 1024}


def temperatures(root: Path = _ROOT) -> dict[str, float] | None:
    """Return degrees Celsius by thermal zone, or None where there is none to read.

    Source: Linux kernel, Documentation/ABI/testing/sysfs-class-thermal (millidegrees).
    Zones of parts that are switched off cannot be read and are left out.
    """
    found: dict[str, float] = {}
    for zone in _glob(root, "sys/class/thermal/thermal_zone*"):
        value = _number(zone / "temp")
        if value is not None:
            found[_unique(_read(zone / "type") or zone.name, found)] = value / 1000
    return found or None


def power(root: Path = _ROOT) -> dict[str, dict[str, float]] | None:
    """Return volts, amperes and watts by power rail from INA3221 monitors, or None.

    Source: Linux kernel, Documentation/hwmon/ina3221.rst (in[123]_input in mV,
    curr[123]_input in mA). Rails labelled NC (not connected) and disabled ones are left out.
    """
    rails: dict[str, dict[str, float]] = {}
    for monitor in _glob(root, "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"):
        for channel in (1, 2, 3):
            name = _read(monitor / f"in{channel}_label")
            if not name or name == "NC" or _read(monitor / f"in{channel}_enable") == "0":
                continue
            millivolts = _number(monitor / f"in{channel}_input")
            milliamperes = _number(monitor / f"curr{channel}_input")
            if millivolts is None or milliamperes is None:
                continue
            rails[_unique(name, rails)] = {
                "volts": round(millivolts / 1e3, 6),
                "amperes": round(milliamperes / 1e3, 6),
                "watts": round(millivolts * milliamperes / 1e6, 6),
            }
    return rails or None


def throttling(root: Path = _ROOT) -> dict[str, int] | None:
    """Return what says that this machine was slowed down, or None where nothing says it.

    Counters since it was started (over-current events of a Jetson; throttle events of an x86
    processor, all cores added up) and, on a Jetson, whether a thermal limit holds now (0 or 1).

    Sources: NVIDIA Jetson Linux Developer Guide r36, "Over-current Throttling"
    (hwmon, oc[n]_event_cnt) and "Thermal Management" (cooling devices *-alert); Linux kernel,
    Documentation/ABI/testing/sysfs-devices-system-cpu (thermal_throttle).
    """
    found: dict[str, int] = {}
    for path in _glob(root, "sys/class/hwmon/hwmon*/oc[0-9]*_event_cnt"):
        value = _number(path)
        if value is not None:
            found[_unique(path.name, found)] = value
    for device in _glob(root, "sys/class/thermal/cooling_device*"):
        name, value = _read(device / "type") or "", _number(device / "cur_state")
        if name.endswith("-alert") and value is not None:
            found[_unique(name, found)] = value
    for kind in ("core", "package"):
        counts = [
            value
            for path in _glob(
                root, f"sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{kind}_throttle_count"
            )
            if (value := _number(path)) is not None
        ]
        if counts:
            found[f"{kind}_throttle_count"] = sum(counts)
    return found or None


def run_command(argv: Sequence[str]) -> str | None:
    """Return what a command prints, or None where it is absent, fails or takes over 5 s."""
    path = shutil.which(argv[0])
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        _log.debug("%s gives nothing: %s", argv[0], error)
        return None
    return done.stdout


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except Exception:  # not installed, or half: its metadata raises whatever it happens to meet
        return None


def _os_name(root: Path) -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release") or "", re.M)
    return found.group(1) if found else None


def _cpu(root: Path) -> dict[str, Any]:
    text = _read(root / "proc/cpuinfo") or ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    known = set(flags.group(1).split()) if flags else set()
    governors = {
        _read(path)
        for path in _glob(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    }
    return {
        "model": _cpu_model(text),
        "cores": len(re.findall(r"^processor\s*:", text, re.MULTILINE)) or os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "quota": _cpu_quota(root),
        "governor": ", ".join(sorted(filter(None, governors))) or None,
        "int8": [flag for flag in _INT8_FLAGS if flag in known] if flags else None,
    }


def _cpu_model(cpuinfo: str) -> str | None:
    """Return the model's name; ARM kernels print only numbers, which are looked up."""
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if named:
        return named.group(1).strip()
    makers = re.findall(r"^CPU implementer\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    cores = dict.fromkeys(
        _ARM_CORES.get(core, f"ARM implementer {core[0]} part {core[1]}")
        for core in zip(makers, parts, strict=False)
    )
    return " + ".join(cores) or None


def _cpu_quota(root: Path) -> float | None:
    """Return how many cores' worth of time the container may use (cgroup v2 cpu.max)."""
    words = (_read(root / "sys/fs/cgroup/cpu.max") or "").split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None
    return int(words[0]) / int(words[1])


def _load(root: Path) -> list[float] | None:
    found = re.match(r"([\d.]+) ([\d.]+) ([\d.]+) ", _read(root / "proc/loadavg") or "")
    return [float(value) for value in found.groups()] if found else None


def _memory(root: Path) -> dict[str, int] | None:
    text = _read(root / "proc/meminfo") or ""
    sizes = dict(re.findall(r"^(MemTotal|MemFree|MemAvailable):\s+(\d+) kB$", text, re.MULTILINE))
    if len(sizes) != 3:
        return None
    names = {"total": "MemTotal", "free": "MemFree", "available": "MemAvailable"}
    return {name: int(sizes[key]) * 1024 for name, key in names.items()}


def _gpu(run: Command) -> list[dict[str, str | None]] | None:
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    text = run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    gpus: list[dict[str, str | None]] = []
    for line in (text or "").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(fields):
            known = (None if cell in ("", "[N/A]", "N/A") else cell for cell in cells)
            gpus.append(dict(zip(("name", "driver", "memory", "compute"), known, strict=True)))
    return gpus or None


def _jetson(root: Path, run: Command) -> dict[str, str | bool | None] | None:
    """Return model, versions, power mode and jetson_clocks, or None on other machines.

    /etc/nv_tegra_release begins "# R36 (release), REVISION: 4.0, ...": L4T 36.4.0.
    """
    release = _read(root / "etc/nv_tegra_release")
    if release is None:
        return None
    l4t = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release)
    mode = re.search(r"NV Power Mode:\s*(\S+)", run(["nvpmodel", "-q"]) or "")
    return {
        "model": _read(root / "proc/device-tree/model"),
        "l4t": f"{l4t.group(1)}.{l4t.group(2)}" if l4t else None,
        "jetpack": _debian_version(root, "nvidia-jetpack"),
        "power_mode": mode.group(1) if mode else None,
        "jetson_clocks": _clocks_pinned(root),
    }


def _clocks_pinned(root: Path) -> bool | None:
    """Say whether jetson_clocks holds every CPU and GPU clock at its top; None where unknown.

    The script sets the least frequency to the greatest; `jetson_clocks --show` would need root.
    """
    folders = _glob(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    limits = [(folder / "scaling_min_freq", folder / "scaling_max_freq") for folder in folders]
    for folder in _glob(root, "sys/class/devfreq/*"):
        if re.search(r"\.g[a-z]\d+b$|gpu", folder.name):
            limits.append((folder / "min_freq", folder / "max_freq"))
    pairs = [(_number(low), _number(high)) for low, high in limits]
    known = [(low, high) for low, high in pairs if low is not None and high is not None]
    return all(low == high for low, high in known) if known else None


def _debian_version(root: Path, package: str) -> str | None:
    """Return the installed version of the Debian package whose name matches the pattern."""
    for entry in (_read(root / "var/lib/dpkg/status") or "").split("\n\n"):
        if re.search(rf"^Package: {package}$", entry, re.MULTILINE) and re.search(
            r"^Status: .* installed$", entry, re.MULTILINE
        ):
            found = re.search(r"^Version: (\S+)$", entry, re.MULTILINE)
            return found.group(1) if found else None
    return None


def _glob(root: Path, pattern: str) -> list[Path]:
    """Return matches in the order of their numbers (zone10 after zone9)."""

    def key(path: Path) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]

    return sorted(root.glob(pattern), key=key)


def _unique(name: str, taken: dict[str, Any]) -> str:
    """Return the name, numbered where an equal one is taken: x86 has several acpitz zones."""
    if name not in taken:
        return name
    return next(f"{name} {n}" for n in range(2, len(taken) + 2) if f"{name} {n}" not in taken)


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None


def _read(path: Path) -> str | None:
    """Return a small text file without outer blanks, or None: absence is an answer here."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n")
    except OSError:
        return None
