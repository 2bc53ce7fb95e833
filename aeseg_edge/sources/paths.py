"""What a path is: an image, a video, a zip of images, a folder of any depth, a pattern."""

from __future__ import annotations

import glob
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aeseg_edge.errors import AesegError, SourceError
from aeseg_edge.sources.depth import Levels, footage_of, levels_of, split_levels
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
from aeseg_edge.sources.pairs import is_pairs, with_ranges
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import is_utf8

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
        levels: See ``Pictures``.
    """

    source: str
    kind: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    levels: Levels | None = None

    def pictures(self, *, error: type[AesegError] = SourceError) -> Pictures:
        """Say which pictures these are; nothing is read yet, but the list of a zip.

        Raises ``error`` if a zip holds none.
        """
        if self.kind != "zip":
            return Pictures(self.source, self.kind, self.files, levels=self.levels)
        found = replace(open_zip(Path(self.source)), levels=self.levels)
        if not found.names and not found.damage:
            raise error(
                f"{self.source} holds no images that can be used",
                fix="Give a zip of images, or unzip it and give its videos or folders.",
            )
        return found


def find(uri: str, *, error: type[AesegError] = SourceError, fix: str = _FIX) -> list[Found]:
    """Find what a path, a glob pattern, or either behind ``file://`` stands for, opening nothing.

    One or more: images first, in natural order, then each video and zip. A folder is searched to
    any depth, a name that is there is no pattern, and zips inside a folder are left out.
    ``?range=LOW:HIGH`` may follow. Raises ``error`` with this ``fix`` if there is nothing, or a
    range for videos alone.
    """
    text, levels = split_levels(file_path(uri), error=error)
    found = _find(text, error, fix)
    if levels is None:
        return found
    if all(each.kind == "video" for each in found):
        raise error(f"{text} holds no pictures that a range is for", fix="Leave ?range= out.")
    return [replace(each, levels=levels) for each in found]


def with_range(uri: str, provenance: Mapping[str, Any]) -> str:
    """Add the range of a bundle's footage, by its provenance, to pictures that state none."""
    if is_pairs(uri):
        return with_ranges(uri, footage_of(provenance))
    levels = levels_of(provenance)
    path = file_path(uri)
    if levels is None or "://" in path or split_levels(path)[1] is not None:
        return uri
    if not any(is_image(name) or name.suffix.lower() == ".zip" for name in list_files(uri)):
        return uri
    return f"{uri}?range={levels}"


def _find(text: str, error: type[AesegError], fix: str) -> list[Found]:
    path = Path(text)
    if path.is_dir():
        found, count = _in_folder(path)
        if not found:
            content = f"{count} other files" if count else "no files"
            raise error(f"folder {path} holds no images or videos, but {content}", fix=fix)
        return found
    if text == "-" or is_pipe(path):
        return [Found(text, "video", ("/dev/stdin" if text == "-" else text,))]
    if path.is_file():
        if is_image(path) or (is_avif(path) and _can_decode(path)):
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
    """Read the path of a file URI (RFC 8089), or of ``file://`` before a relative path."""
    if not uri.startswith("file://"):
        return uri
    text = uri.removeprefix("file://")
    text = text.removeprefix("localhost") if text.startswith("localhost/") else text
    return text if Path(text).exists() else unquote(text)


def is_pipe(path: Path) -> bool:
    """Say whether something is there that is no file: a pipe, a device, standard input."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def is_avif(path: Path) -> bool:
    """Say whether a file is an AVIF or HEIC picture (ISO/IEC 23008-12), which looks like MP4."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" and head[8:] in (b"avif", b"avis", b"heic", b"heix", b"mif1")


def _can_decode(path: Path) -> bool:
    return is_utf8(path) and bool(import_cv2().haveImageReader(str(path)))


def list_files(uri: str) -> list[Path]:
    """List the files, not pipes, that a path stands for; see ``aeseg_edge.sources.files_of``."""
    try:
        files = [Path(name) for each in find(uri) for name in each.files]
    except SourceError:
        return []
    return [path for path in files if not is_pipe(path)]


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
