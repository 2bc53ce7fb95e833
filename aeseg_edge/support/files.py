"""Files that are whole or as they were before."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aeseg_edge.errors import AesegError, SinkError

_FIXES = {
    errno.ENOSPC: "Free some space, or write to another disk.",
    errno.EDQUOT: "Your quota is used up: free some space, or write to another disk.",
    errno.EFBIG: "The file is larger than this system allows: write to another disk.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
    errno.EROFS: "The disk is read-only: choose another folder.",
    errno.ENOENT: "Make the folder first.",
    errno.ENOTDIR: "Choose a name inside a folder.",
    errno.EISDIR: "Choose the name of a file, not of a folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")


def write_error(path: Path, problem: OSError, *, error: type[AesegError]) -> AesegError:
    """Turn what the system said into an error with a fix, to be raised from ``problem``."""
    reason = os.strerror(problem.errno) if problem.errno else str(problem)
    fix = _FIXES.get(problem.errno or 0, "Check the disk and the folder.")
    return error(f"{path} cannot be written: {reason}", fix=fix)


def temporary_beside(path: Path, *, error: type[AesegError] = SinkError) -> Path:
    """Make an empty, hidden file beside a target (a link's own target), with the target's suffix.

    Raises ``error`` if the target is a folder, or its folder is missing or cannot be written.
    """
    target = Path(os.path.realpath(path))
    # A long name leaves no room for the random part (255 bytes on most file systems).
    stem = target.stem[:40]
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if is_stream(path):
            # The rename would put a plain file in the device's place, /dev/null included.
            raise error(
                f"{path} is a device or a pipe, and this file is written beside its target first",
                fix="Choose the name of a file.",
            )
        while True:
            temporary = target.with_name(f".{stem}-{secrets.token_hex(4)}{target.suffix}")
            try:
                # Mode 0666 less the umask, as any other new file; mkstemp would give 0600.
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
            except FileExistsError:
                continue
            return temporary
    except OSError as problem:
        raise write_error(path, problem, error=error) from problem


def move_into_place(temporary: Path, path: Path, *, error: type[AesegError] = SinkError) -> None:
    """Flush a closed file and give it the target's name; if either fails, that stays as it was."""
    try:
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(os.path.realpath(path))
    except OSError as problem:
        raise write_error(path, problem, error=error) from problem


@contextmanager
def replacing(path: Path, *, error: type[AesegError] = SinkError) -> Iterator[Path]:
    """Give a temporary path beside the target, and rename it when the block ends well.

    It is flushed to the disk first, and removed if anything fails, Ctrl-C included.
    """
    temporary = temporary_beside(path, error=error)
    try:
        try:
            yield temporary
        except OSError as problem:
            raise write_error(path, problem, error=error) from problem
        move_into_place(temporary, path, error=error)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, error: type[AesegError] = SinkError) -> None:
    """Write a whole file at once, into a folder that exists.

    A device or a pipe (/dev/stdout, /dev/null) is written to as it is.
    """
    if is_stream(path):
        try:
            # Appending, because /dev/stdout may be a file that holds something already.
            with path.open("ab") as stream:
                stream.write(data)
        except OSError as problem:
            raise write_error(path, problem, error=error) from problem
        return
    with replacing(path, error=error) as temporary:
        temporary.write_bytes(data)


def identity(path: Path) -> str:
    """Give what all names of one file have in common, whether it is there yet or not.

    That is its real path, with small letters where the folder takes A and a for one name.
    """
    real = os.path.realpath(path)
    folder, name = os.path.split(real)
    return os.path.join(folder, name.casefold()) if _folds_case(folder) else real


def _folds_case(folder: str) -> bool:
    # Only trying tells: file systems of one system differ, and one folder from another (ext4).
    try:
        names = [entry.name for entry in os.scandir(folder)]
        other = next((name for name in names if name != name.swapcase()), None)
        paths = [os.path.join(folder, each) for each in (other, other.swapcase())] if other else []
        return bool(paths) and os.path.samefile(*paths)
    except OSError:
        return False


def is_stream(path: Path) -> bool:
    """Say whether a path is written to and not replaced: a device, a pipe, a socket."""
    if os.path.abspath(path).startswith(_STREAMS):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()
