"""Names of sources as parts of the names of files."""

from __future__ import annotations

import re
from collections.abc import Sequence

NAME = "{name}"
"""What stands for the name of a frame's file, without its suffix, in the name of a picture."""

NUMBER = re.compile(r"%\d*d")
"""What stands for the frame's number in the name of a picture."""


def file_part(name: str) -> str:
    """Give a source's name as it may stand in a file's: ``csi://0`` becomes ``csi-0``."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "source"


def file_parts(names: Sequence[str]) -> list[str]:
    """Give each source its part of a file name, numbered where two would be alike.

    They are unlike each other also on a disk that does not tell ``A`` from ``a``.
    """
    parts: list[str] = []
    taken: set[str] = set()
    for name in names:
        stem = part = file_part(name)
        count = 2
        while part.casefold() in taken:
            part, count = f"{stem}-{count}", count + 1
        taken.add(part.casefold())
        parts.append(part)
    return parts


def name_each(uri: str, names: Sequence[str]) -> list[str]:
    """Write one URI a source where it has ``{source}``; else it stays one."""
    if "{source}" not in uri:
        return [uri]
    return [uri.replace("{source}", part) for part in file_parts(names)]
