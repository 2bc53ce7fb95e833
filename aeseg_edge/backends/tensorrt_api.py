"""TensorRT as a module: importing it, refusing versions that cannot work, its one logger.

Both the builder (`export/engines/compile.py`) and the backend (`tensorrt.py`) come through here. A
test holds every TensorRT name used in these files to what NVIDIA's bindings from 10.3 to
11.4 share; `trt` is always the module, and every TensorRT object has its type written down
or got from a TensorRT call, so that the test can follow it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import re
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, SupportsInt

from aeseg_edge.errors import EngineError
from aeseg_edge.support.require import require, whole

if TYPE_CHECKING:
    import tensorrt as trt

_log = logging.getLogger(__name__)

OLDEST = (10, 3)
"""JetPack 6.1. Strongly typed networks exist since 9, uint8 I/O as used here since 10."""

NEWEST_MAJOR = 11
"""Bindings of this major version were checked; a newer one is tried, with a warning."""

_KEPT_MESSAGES = 20_000
"""A detailed build log of these graphs is under 5,000 lines."""


def load_tensorrt(name: str = "tensorrt") -> ModuleType:
    """Import "tensorrt", or "tensorrt_rtx" for TensorRT-RTX, whose builder needs no GPU.

    MissingDependency where it or its libraries are not found; EngineError below 10.3.
    """
    trt: ModuleType = require(
        name,
        title="TensorRT",
        fix="On a Jetson install JetPack's python3-libnvinfer and make the virtual "
        "environment with --system-site-packages; elsewhere: pip install tensorrt.",
    )
    whole(trt, "__version__")
    if name == "tensorrt":
        check_version(trt.__version__)
    return trt


def check_version(version: str) -> None:
    """Refuse, by EngineError, a TensorRT below 10.3, such as "8.6.2.3", and what is no version."""
    parts = re.match(r"(\d+)\.(\d+)", version)
    if parts is None:
        raise EngineError(f"{version!r} is not a version of TensorRT", fix="Install TensorRT 10.3.")
    major, minor = int(parts[1]), int(parts[2])
    if major < 9:
        raise EngineError(
            f"TensorRT {version} (JetPack 6.0 or older) has no strongly typed networks",
            fix="Move to JetPack 6.1 or later, which has TensorRT 10.3.",
        )
    if (major, minor) < OLDEST:
        raise EngineError(
            f"TensorRT {version} is older than 10.3", fix="Install TensorRT 10.3 (JetPack 6.1)."
        )
    if major > NEWEST_MAJOR:
        _log.warning("TensorRT %s is newer than any this project was checked with", version)


class Journal:
    """What TensorRT said, for error messages: its functions return None and log the reason."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captures: list[collections.deque[tuple[int, str]]] = []

    def add(self, severity: int, message: str) -> None:
        """Take one message; `severity` counts from 0 (internal error) to 4 (verbose)."""
        _log.log(_LEVELS[min(severity, 4)], "%s", message)
        with self._lock:
            for capture in self._captures:
                capture.append((severity, message))

    @contextlib.contextmanager
    def capture(self) -> Iterator[collections.deque[tuple[int, str]]]:
        """Collect the messages of a stretch of code, from every thread."""
        messages: collections.deque[tuple[int, str]] = collections.deque(maxlen=_KEPT_MESSAGES)
        with self._lock:
            self._captures.append(messages)
        try:
            yield messages
        finally:
            with self._lock:
                # By identity: two empty captures are equal.
                self._captures = [kept for kept in self._captures if kept is not messages]


# Errors become exceptions that hold the text, so the log need not shout them a second time.
_LEVELS = (logging.WARNING, logging.WARNING, logging.INFO, logging.DEBUG, logging.DEBUG)


def reason(messages: collections.deque[tuple[int, str]]) -> str:
    """The errors among captured messages as one line, or that there were none."""
    errors = [" ".join(text.split()) for severity, text in messages if severity <= 1]
    return "; ".join(dict.fromkeys(errors)) or "TensorRT gave no reason"


@functools.cache
def shared_journal(trt: ModuleType) -> tuple[Journal, trt.ILogger]:
    """The journal of this process and the TensorRT logger that fills it.

    TensorRT keeps the first logger it is given for the life of the process and ignores any
    later one, so there is one for each process, made on first use.
    """
    journal = Journal()

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: SupportsInt, message: str) -> None:
            journal.add(int(severity), message)

    return journal, Logger()
