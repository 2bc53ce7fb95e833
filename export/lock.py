"""One training at a time in NAME.train.

The lock is the kernel's (flock): it ends with the process that holds it, however that process
ends. A file that a killed one left is therefore no obstacle. What is written into it serves the
message alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aeseg_edge.errors import TrainingError
from aeseg_edge.support.files import write_error

_log = logging.getLogger(__name__)

LOCK = "lock"

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems say that have none."""


@contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """Hold the right to train in a folder, made if needed; no trace of it stays.

    Raises:
        TrainingError: If another process trains in it, or it cannot be written.
    """
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(folder)
    except OSError as problem:
        raise write_error(folder, problem, error=TrainingError) from problem
    try:
        yield
    finally:
        # While it is held: nobody else's file is removed.
        (folder / LOCK).unlink(missing_ok=True)
        os.close(handle)
        if fresh:
            # A training that was refused leaves no empty folder.
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextmanager
def reading_of(folder: Path) -> Iterator[None]:
    """Keep trainings out while what belongs together is read; TrainingError where one runs."""
    handle = None
    # Nobody trains; or nobody can, in a folder that cannot be read.
    with contextlib.suppress(OSError):
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if handle is not None:
            _flock(handle, fcntl.LOCK_SH, folder)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _take(folder: Path) -> int:
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _flock(handle, fcntl.LOCK_EX, folder)
            # Whoever held it may have removed the file since it was opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    os.truncate(handle, 0)
                    os.write(handle, json.dumps(_owner()).encode())
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _owner() -> dict[str, object]:
    return {"pid": os.getpid(), "host": platform.node()}


def _flock(handle: int, kind: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TrainingError(
            f"a training is under way in {folder}{_who(folder)}",
            fix="Wait for it to end, or give the bundle another name.",
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("%s cannot be locked: let no two trainings run in it", folder)


def _who(folder: Path) -> str:
    try:
        owner = json.loads((folder / LOCK).read_bytes())
        return f" (process {int(owner['pid'])} on {owner['host']})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""
