"""What a path is: an image, a video, a folder, a pattern."""

from __future__ import annotations

import glob
from pathlib import Path
from urllib.parse import unquote

from aeseg_edge.sources.images import is_image
from aeseg_edge.sources.pairs import (
    is_pairs,
    pair_folders,
)


def files_of(uri: str) -> list[Path]:
    """List the files that a source reads, without opening any.

    Args:
        uri: See the module's text.

    Returns:
        None of a camera, of a stream, of the test scene, or where there is nothing.
    """
    if is_pairs(uri):
        return [
            path for each in pair_folders(uri) for path in each.path.rglob("*") if is_image(path)
        ]
    scheme, separator, rest = uri.partition("://")
    if separator and scheme != "file":
        return []
    text = _file_path(rest) if separator else uri
    path = Path(text)
    if path.is_dir():
        return [each for each in path.iterdir() if is_image(each)]
    if path.is_file():
        return [path]
    return [Path(name) for name in glob.glob(text, recursive=True)] if glob.has_magic(text) else []


def _file_path(rest: str) -> str:
    """Read the path of a file URI (RFC 8089), or of ``file://`` before a relative path."""
    text = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    return text if Path(text).exists() else unquote(text)
