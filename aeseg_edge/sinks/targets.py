"""Which files sinks write, and that none of them is written twice or is an input."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from aeseg_edge.errors import SinkError, UsageError
from aeseg_edge.sinks import kind_of
from aeseg_edge.sinks.names import NUMBER
from aeseg_edge.support.files import identity, is_stream


def target_of(uri: str) -> Path | None:
    """Give the file, or the pattern of files, that a sink writes; None where it writes none.

    Args:
        uri: See ``aeseg_edge.sinks.open_sink``.
    """
    kind = kind_of(uri)
    return Path(kind.split(uri)[0]) if kind is not None and kind.file else None


def refuse_shared(uris: Iterable[str]) -> None:
    """Refuse two sinks that would write one file: the later one would win, without a word.

    Args:
        uris: Of all sinks of a run, one a source.

    Raises:
        SinkError: If there are such.
    """
    taken: dict[str, str] = {}
    for uri in uris:
        target = target_of(uri)
        if target is None or is_stream(target):
            continue
        real = identity(target)
        if real in taken:
            raise SinkError(
                f"the outputs {taken[real]} and {uri} would be one file",
                fix="Give each a name of its own.",
            )
        taken[real] = uri


def refuse_inputs(targets: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse outputs that would take the place of what is read.

    Args:
        targets: Files to be written, or patterns of image files (``out/%06d.png``).
        inputs: Files that are read; looked at only where a target is there already.

    Raises:
        UsageError: If one of them is both, under whichever name.
    """
    there = {
        identity: path
        for target in targets
        for path in _existing(target)
        if (identity := _identity(path)) is not None
    }
    if not there:
        return
    for path in inputs:
        identity = _identity(path)
        if identity in there:
            raise UsageError(
                f"the output {there[identity]} is the input {path}, and would destroy it",
                fix="Choose another name or folder for the output.",
            )


def _existing(target: Path) -> list[Path]:
    """Files that are there and would be written again."""
    number = NUMBER.search(target.name)
    kind = kind_of(str(target))
    if number is None or kind is None or not kind.numbered:
        return [target]
    before, after = target.name[: number.start()], target.name[number.end() :]
    # Spaces: what %6d fills with.
    shape = re.compile(rf"{re.escape(before)} *([0-9]+){re.escape(after)}")
    try:
        names = os.listdir(target.parent)
    except OSError:
        return []  # Not there yet; the sink makes it, or says why not.
    return [
        target.with_name(name)
        for name in names
        if (match := shape.fullmatch(name))
        and name == f"{before}{number[0] % int(match[1])}{after}"
    ]


def _identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file have in common; None where there is no plain file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if path.is_file() else None
