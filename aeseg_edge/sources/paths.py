"""What a path is: an image, a video, a zip of images, a folder of any depth, a pattern."""

from __future__ import annotations

import glob
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from aeseg_edge.errors import AesegError, SourceError
from aeseg_edge.sources.images import (
    TEXT_SUFFIXES,
    VIDEO_SUFFIXES,
    Pictures,
    is_hidden,
    is_image,
    left_out,
    natural,
    open_zip,
)

_KEPT = ("model.json", "history.json", "frames/sizes.json")
"""What tells a NAME.train from a folder of footage."""
_FIX = "Give a video, an image, a folder, a zip of images or a glob of any of these."


@dataclass(frozen=True)
class Found:
    """What is read as one: the images of one place, a video, or a zip.

    Attributes:
        source: What the user gave, or the path of a video or zip that was found.
        kind: ``images``, ``folder``, ``glob``, ``video`` or ``zip``.
        files: Paths, in natural order; one of a video or zip.
        notes: Sentences for a person about what is beside them and left out.
    """

    source: str
    kind: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def pictures(self, *, error: type[AesegError] = SourceError) -> Pictures:
        """Say which pictures these are; nothing is read yet, but the list of a zip.

        Args:
            error: Class of what is raised.

        Raises:
            AesegError: Of class ``error``, if a zip holds none.
        """
        if self.kind != "zip":
            return Pictures(self.source, self.kind, self.files)
        found = open_zip(Path(self.source))
        if not found.names and not found.damage:
            raise error(
                f"{self.source} holds no images that can be used",
                fix="Give a zip of images, or unzip it and give its videos or folders.",
            )
        return found


def find(uri: str, *, error: type[AesegError] = SourceError, fix: str = _FIX) -> list[Found]:
    """Find what a path stands for, without opening it.

    Args:
        uri: A path, a glob pattern, or either behind ``file://``.
        error: Class of what is raised.
        fix: Advice where there is nothing.

    Returns:
        One or more: images first, in natural order, then each video and zip. A folder is
        searched to any depth, a name that is there is no pattern, and zips inside a folder
        are left out.

    Raises:
        AesegError: Of class ``error``, if there is nothing.
    """
    text = file_path(uri)
    path = Path(text)
    if path.is_dir():
        found, count = _in_folder(path)
        if not found:
            content = f"{count} other files" if count else "no files"
            raise error(f"folder {path} holds no images or videos, but {content}", fix=fix)
        return found
    if path.is_file():
        if is_image(path):
            return [Found(text, "images", (text,))]
        if path.suffix.lower() in TEXT_SUFFIXES:
            raise error(f"{path} is neither an image nor a video", fix=fix)
        is_zip = path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)
        return [Found(text, "zip" if is_zip else "video", (text,))]
    if not glob.has_magic(text):
        raise error(f"{text} does not exist", fix=fix)
    matches = sorted(glob.glob(text, recursive=True), key=natural)
    found = _sort_out(text, "glob", [name for name in matches if Path(name).is_file()])
    if "**" not in text:
        for name in matches:
            found += _in_folder(Path(name))[0] if Path(name).is_dir() else []
    if not found:
        content = f"matches {len(matches)} files and no image or video"
        raise error(f"the pattern {text} {content if matches else 'matches nothing'}", fix=fix)
    return found


def file_path(uri: str) -> str:
    """Read the path of a file URI (RFC 8089), or of ``file://`` before a relative path.

    Args:
        uri: Such, or a path as it is.
    """
    if not uri.startswith("file://"):
        return uri
    text = uri.removeprefix("file://")
    text = text.removeprefix("localhost") if text.startswith("localhost/") else text
    return text if Path(text).exists() else unquote(text)


def list_files(uri: str) -> list[Path]:
    """List the files that a path stands for; see ``aeseg_edge.sources.files_of``."""
    try:
        return [Path(name) for each in find(uri) for name in each.files]
    except SourceError:
        return []


def _in_folder(folder: Path) -> tuple[list[Found], int]:
    """What a folder holds, and how many files that is, hidden ones and others included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    # What a training has kept of its footage is no footage again: `aeseg train . -o cam.aeseg`.
    kept = [path for path in folder.rglob("*.train") if any((path / m).exists() for m in _KEPT)]
    names = [
        str(path)
        for path in files
        if not is_hidden(str(path.relative_to(folder))) and not set(kept) & set(path.parents)
    ]
    found = _sort_out(str(folder), "folder", sorted(names, key=natural))
    if found and kept:
        note = f"{kept[0]} holds frames that a training has kept: they are left out"
        found[0] = replace(found[0], notes=(*found[0].notes, note))
    return found, len(files)


def _sort_out(source: str, kind: str, names: list[str]) -> list[Found]:
    images = [name for name in names if is_image(Path(name))]
    single = VIDEO_SUFFIXES | ({".zip"} if kind == "glob" else set())
    suffixes = [(name, Path(name).suffix.lower()) for name in names if not is_image(Path(name))]
    others = [name for name, suffix in suffixes if suffix not in single]
    found = [Found(source, kind, tuple(images))] if images else []
    found += [
        Found(name, "zip" if suffix == ".zip" else "video", (name,))
        for name, suffix in suffixes
        if suffix in single
    ]
    if found and others:
        found[0] = replace(found[0], notes=(left_out(source, others),))
    return found
