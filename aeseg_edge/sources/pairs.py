"""Several pictures of one scene, one frame: folders paired by name.

``pairs://visible=DIR,thermal=DIR`` is a source like any other; ``--modalities`` writes it.
Channels are put side by side in the order given: a colour modality has three (blue, green,
red), a grey one (thermal, near infrared, depth) has one. ``thermal:1=DIR`` states the number.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.manifest import Modality
from aeseg_edge.errors import SourceError
from aeseg_edge.sources.base import Frame, Source
from aeseg_edge.sources.depth import Levels, once, split_levels
from aeseg_edge.sources.images import decode_image, is_image, natural, orientation_of

_log = logging.getLogger(__name__)

SCHEME = "pairs://"
SKIP = "?unpaired=skip"
UNPAIRED = ("refuse", "skip")
"""What becomes of files without a partner."""

_NAMED = 3
"""File names that a message about unpaired files shows."""
_LOOKED_AT = 8
"""Files that tell whether a modality is grey."""
_GREY = 2
"""Levels that the channels of a grey picture, coded as colour, differ by at most."""
_NAME = r"[A-Za-z][A-Za-z0-9_-]*"
_WANTED = "Write visible=DIR,thermal=DIR; thermal:1=DIR also states the number of channels."
MAX_CHANNELS = 16


@dataclass(frozen=True)
class Folder:
    """One modality's pictures; the folder is searched to any depth.

    ``channels`` is 1 or 3 where it is stated, else None; ``levels`` the range, likewise.
    """

    name: str
    path: Path
    channels: int | None = None
    levels: Levels | None = None


@dataclass(frozen=True)
class Pairs:
    """Files that belong together.

    Attributes:
        name: As the user gave it.
        modalities: Names and channels, in the order of the channels.
        files: For each scene one file of each modality, in natural order.
        unpaired: Files left out because another modality lacks them.
        levels: Of each modality, see ``Pictures``.
    """

    name: str
    modalities: tuple[Modality, ...]
    files: tuple[tuple[Path, ...], ...]
    unpaired: tuple[Path, ...]
    levels: tuple[Levels | None, ...]

    @property
    def channels(self) -> int:
        """C of the frames."""
        return sum(each.channels for each in self.modalities)


def is_pairs(source: str | Path) -> bool:
    """Say whether a source is written as paired folders."""
    return isinstance(source, str) and source.startswith(SCHEME)


def describe(modalities: Sequence[Modality]) -> str:
    """Write modalities for a sentence: ``visible (3 channels) and thermal (1)``."""
    first, *rest = modalities
    parts = [f"{first.name} ({first.channels} channel{'s' * (first.channels > 1)})"]
    parts += [f"{each.name} ({each.channels})" for each in rest]
    return " and ".join(parts)


def pair_folders(uri: str) -> tuple[Folder, ...]:
    """Read the folders of ``pairs://NAME=DIR,NAME=DIR``; none of them is looked at."""
    return _parse(uri.removeprefix(SCHEME).removesuffix(SKIP))


def open_pairs(uri: str, modalities: Sequence[Modality] = ()) -> Pairs:
    """Find the files of ``pairs://NAME=DIR,NAME=DIR``.

    With ``?unpaired=skip`` at its end, files without a partner are left out instead of refused.
    ``modalities`` are what a bundle was trained on: its order and channels are used. Without, the
    order is the one given, and a modality whose first files are grey has one channel.
    """
    text = uri.removeprefix(SCHEME)
    skip = text.endswith(SKIP)
    text = text.removesuffix(SKIP)
    folders = pair_folders(uri)
    if modalities:
        folders = _in_order(folders, modalities)
    found = {each.name: _list(each) for each in folders}
    keys = set.intersection(*(set(files) for files in found.values()))
    alone = tuple(
        path for files in found.values() for key, path in files.items() if key not in keys
    )
    if alone and (not skip or not keys):
        shown = ", ".join(map(str, alone[:_NAMED]))
        more = f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
        raise SourceError(
            f"{len(alone)} files of {text} have no partner of the same name: {shown}{more}",
            fix="Name the files of a pair alike (only the suffix may differ), or leave these "
            "out: --unpaired skip."
            if keys
            else "Name the files of a pair alike; only the suffix may differ.",
        )
    if alone:
        _log.warning(
            "%s: %d files without a partner are skipped, such as %s", text, len(alone), alone[0]
        )
    scenes = [tuple(found[each.name][key] for each in folders) for key in sorted(keys, key=natural)]
    chosen = tuple(modalities) or _modalities(folders, scenes)
    levels = tuple(each.levels for each in folders)
    return Pairs(text, chosen, tuple(scenes), alone, levels)


def read_pair(
    files: Sequence[Path],
    modalities: Sequence[Modality],
    levels: Sequence[Levels | None] = (),
    warn: Callable[[str], None] | None = None,
) -> NDArray[np.uint8] | str:
    """Read one scene, a file of each modality: uint8 [H, W, C], or the file and why not.

    Pictures of different sizes raise: they do not show the same. ``warn`` gets what is lost of
    more than 8 bits, and that EXIF turns some of the pictures alone.
    """
    parts: list[NDArray[np.uint8]] = []
    ways: list[int] = []
    for index, (path, modality) in enumerate(zip(files, modalities, strict=True)):
        notes: list[str] = []
        try:
            data = path.read_bytes()
            known = levels[index] if levels else None
            image = decode_image(
                data, modality.channels, levels=known, tell=notes.append if warn else None
            )
            ways.append(orientation_of(data))
        except OSError as error:
            image = f"cannot be read ({error.strerror or error})"
        if isinstance(image, str):
            return f"{path} {image}"
        if parts and image.shape[:2] != parts[0].shape[:2]:
            sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (image, parts[0])]
            raise SourceError(
                f"{path} is {sizes[0]}, and {files[0]} is {sizes[1]}",
                fix="Register the pictures of a pair to each other, and crop them to one size.",
            )
        parts.append(image)
        if warn is not None and notes:
            warn(f"{path} {notes[0]}")
    if warn is not None and len(set(ways)) > 1:
        turned = next(path for path, way in zip(files, ways, strict=True) if way > 1)
        warn(f"{turned} is turned by EXIF, and others of its scene are not: all are shown upright")
    return np.ascontiguousarray(np.concatenate(parts, axis=2))


def with_ranges(uri: str, footage: Sequence[str]) -> str:
    """Add to the folders of ``pairs://`` that state no range those of a bundle's footage."""
    try:
        known = {
            each.name: each.levels
            for name in footage
            for each in pair_folders(name)
            if each.levels is not None
        }
        folders = pair_folders(uri)
    except SourceError:
        return uri
    parts = []
    for each in folders:
        channels = "" if each.channels is None else f":{each.channels}"
        levels = each.levels or known.get(each.name)
        parts.append(f"{each.name}{channels}={each.path}" + (f"?range={levels}" if levels else ""))
    return f"{SCHEME}{','.join(parts)}{SKIP if uri.endswith(SKIP) else ''}" if known else uri


class PairSource(Source):
    """Scenes of paired folders, in natural order.

    Scenes that cannot be read are skipped, named in the log, and counted in ``skipped``.
    """

    def __init__(self, pairs: Pairs) -> None:
        self.name = pairs.name
        self.total = len(pairs.files)
        self.skipped: list[str] = []
        self._pairs = pairs

    def __iter__(self) -> Iterator[Frame]:
        """Read one scene after another; a SourceError if none can be read, or sizes differ."""
        none, warn = True, once(_log.warning)
        for index, files in enumerate(self._pairs.files):
            image = read_pair(files, self._pairs.modalities, self._pairs.levels, warn)
            if isinstance(image, str):
                self.skipped.append(str(files[0]))
                _log.warning("a pair is skipped: %s", image)
                continue
            none = False
            yield Frame(image, index, time.monotonic(), self.name, path=files[0])
        if none:
            raise SourceError(
                f"none of the {len(self._pairs.files)} pairs of {self.name} can be read",
                fix="Open one in a viewer; convert them to PNG or JPEG.",
            )


def open_scenes(uri: str, channels: int, modalities: Sequence[Modality]) -> Source:
    """Open ``pairs://``; the modalities say how many channels there are. See ``open_source``."""
    return PairSource(open_pairs(uri, modalities))


def list_files(uri: str) -> list[Path]:
    """List the pictures of ``pairs://``; see ``files_of``."""
    return [path for each in pair_folders(uri) for path in each.path.rglob("*") if is_image(path)]


def _parse(text: str) -> tuple[Folder, ...]:
    # Folders may have commas in their names: only one before NAME= parts.
    folders = []
    for part in re.split(rf",(?={_NAME}(?::\d+)?=)", text):
        match = re.fullmatch(rf"({_NAME})(?::(\d+))?=(.+)", part, re.DOTALL)
        if match is None:
            raise SourceError(f"{part!r} is not NAME=DIR", fix=_WANTED)
        channels = None if match[2] is None else int(match[2])
        if channels not in (None, 1, 3):
            raise SourceError(f"{part!r} has {channels} channels, not 1 or 3", fix=_WANTED)
        path, levels = split_levels(match[3])
        folders.append(Folder(match[1], Path(path), channels, levels))
    names = [each.name for each in folders]
    if len(folders) < 2 or len(set(names)) < len(names):
        raise SourceError(f"{text!r} does not name two or more modalities", fix=_WANTED)
    return tuple(folders)


def _in_order(folders: Sequence[Folder], modalities: Sequence[Modality]) -> tuple[Folder, ...]:
    """Put folders into a bundle's order."""
    by_name = {each.name: each for each in folders}
    wanted = [each.name for each in modalities]
    clash = any(
        each.name in by_name and by_name[each.name].channels not in (None, each.channels)
        for each in modalities
    )
    if sorted(by_name) != sorted(wanted) or clash:
        given = ",".join(f"{name}=DIR" for name in wanted)
        raise SourceError(
            f"the modalities are {', '.join(by_name)}, and the bundle was trained on "
            f"{describe(modalities)}",
            fix=f"Write --modalities {given}.",
        )
    return tuple(by_name[name] for name in wanted)


def _list(folder: Folder) -> dict[str, Path]:
    """Find a folder's pictures by their path without suffix."""
    if not folder.path.is_dir():
        raise SourceError(
            f"{folder.path}, the modality {folder.name}, is not a folder", fix=_WANTED
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.path.rglob("*")):
        inside = path.relative_to(folder.path)
        if path.name.startswith(".") or not is_image(path) or not path.is_file():
            continue
        key = inside.with_suffix("").as_posix()
        if key in found:
            raise SourceError(
                f"{found[key]} and {path} have one name", fix="Keep one of them in this folder."
            )
        found[key] = path
    if not found:
        raise SourceError(f"the folder {folder.path} has no images", fix=_WANTED)
    return found


def _modalities(
    folders: Sequence[Folder], scenes: Sequence[Sequence[Path]]
) -> tuple[Modality, ...]:
    """Say what the folders hold; see ``open_pairs``."""
    step = max(1, len(scenes) // _LOOKED_AT)
    chosen = scenes[::step][:_LOOKED_AT]
    found = []
    for index, folder in enumerate(folders):
        channels = folder.channels
        if channels is None:
            channels = 1 if all(_is_grey(files[index]) for files in chosen) else 3
        found.append(Modality(folder.name, channels))
    if any(each.channels == 3 for each in found) and found[0].channels != 3:
        # Pictures are drawn from the first three channels.
        ordered = sorted(zip(found, folders, strict=True), key=lambda each: -each[0].channels)
        ranges = [f"?range={folder.levels}" if folder.levels else "" for _, folder in ordered]
        parts = zip(ordered, ranges, strict=True)
        text = ",".join(f"{each.name}={folder.path}{more}" for (each, folder), more in parts)
        raise SourceError(
            f"the first modality, {found[0].name}, is grey, and another has colours",
            fix=f"Give colours first: --modalities {text}.",
        )
    total = sum(each.channels for each in found)
    if total > MAX_CHANNELS:
        raise SourceError(
            f"{total} channels are more than {MAX_CHANNELS}", fix="Give fewer modalities."
        )
    return tuple(found)


def _is_grey(path: Path) -> bool:
    """Say whether a picture is grey, also where it is stored as colour; True if unreadable."""
    try:
        image = decode_image(path.read_bytes(), 3)
    except OSError:
        return True
    if isinstance(image, str):
        return True
    levels = image.astype(np.int16)
    return bool((levels.max(axis=2) - levels.min(axis=2)).max() <= _GREY)
