"""Which files sinks write, and that none of them is written twice or is an input."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from aeseg_edge.errors import SinkError, UsageError
from aeseg_edge.sinks.names import NAME, NUMBER
from aeseg_edge.sinks.registry import kind_of
from aeseg_edge.support.files import identity, is_stream


def target_of(uri: str) -> Path | None:
    """Give the file, or the pattern of files, that a sink writes; None where it writes none."""
    kind = kind_of(uri)
    target = kind.split(uri)[0] if kind is not None and kind.file else ""
    return None if target in ("", "-") else Path(target)


def refuse_shared(uris: Iterable[str]) -> None:
    """Refuse two sinks that would write one file: the later one would win, without a word."""
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
    """Refuse outputs that would take the place of what is read, under whichever name.

    Targets are files, or patterns of image files (``out/%06d.png``); inputs are looked at only
    where a target is there already. Raises UsageError.
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
    kind = kind_of(str(target))
    pattern = re.split(rf"({NUMBER.pattern}|{re.escape(NAME)})", target.name)
    if len(pattern) == 1 or kind is None or not kind.numbered:
        return [target]
    # Spaces: what %6d fills with. Odd parts are what stands for a number or a name.
    parts = [" *([0-9]+)" if part.startswith("%") else "(.+)" for part in pattern[1::2]]
    literal = [re.escape(part) for part in pattern[::2]]
    shape = re.compile("".join(a + b for a, b in zip(literal, [*parts, ""], strict=True)))
    try:
        names = os.listdir(target.parent)
    except OSError:
        return []  # Not there yet; the sink makes it, or says why not.
    return [
        target.with_name(name)
        for name in names
        if (match := shape.fullmatch(name)) and name == _filled(pattern, match.groups())
    ]


def _filled(pattern: list[str], values: tuple[str, ...]) -> str:
    marks = pattern[1::2]
    texts = [m % int(v) if m != NAME else v for m, v in zip(marks, values, strict=True)]
    return "".join(a + b for a, b in zip(pattern[::2], [*texts, ""], strict=True))


def _identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file have in common; None where there is no plain file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if path.is_file() else None
