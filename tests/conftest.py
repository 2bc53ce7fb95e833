"""What all tests share: skipping, with a reason, what this machine cannot run; and fixtures."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the clone."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def v1_bundle() -> Path:
    """A tiny trained bundle of schema version 1: 96x64, stride 4, D = 8, K = 5."""
    return Path(__file__).resolve().parent / "data" / "v1.aeseg"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip a test whose marker names something that this machine lacks."""
    for marker, lacks in LACKS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = lacks() if marked else None
        if reason is not None:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold torch, once a test module has loaded it, to one thread a process.

    pytest runs one process a core, and sums in another order would give other last digits.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def lacks_torch() -> str | None:
    return None if importlib.util.find_spec("torch") else "torch is not installed (extra host)"


def lacks_pycuda() -> str | None:
    found = importlib.util.find_spec("pycuda")
    return None if found else "pycuda is not installed (extra tensorrt)"


def lacks_rtx() -> str | None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return "tensorrt_rtx is not installed (extra rtx)"
    return cannot_load("tensorrt_rtx")


def lacks_gpu() -> str | None:
    if importlib.util.find_spec("tensorrt") is None:
        return "tensorrt is not installed"
    devices = count_cuda_devices()
    return cannot_load("tensorrt") if devices else "no CUDA device"


def lacks_browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    if not any(shutil.which(name) for name in names):
        return "Chromium is not installed"
    return None if shutil.which("chromedriver") else "chromedriver is not installed"


LACKS: dict[str, Callable[[], str | None]] = {
    "host": lacks_torch,
    "pycuda": lacks_pycuda,
    "rtx": lacks_rtx,
    "gpu": lacks_gpu,
    "browser": lacks_browser,
}


def cannot_load(package: str) -> str | None:
    """Import a package that is there; NVIDIA's fail where a shared library is missing."""
    try:
        importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        return f"{package} does not load: {error}"
    return None


def count_cuda_devices() -> int:
    """Ask the driver how many devices there are; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
