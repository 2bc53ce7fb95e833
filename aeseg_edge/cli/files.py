"""What a verb reads and what it writes: nothing is written over what is read, or written twice."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from aeseg_edge.errors import AesegError, UsageError
from aeseg_edge.sinks.overwrites import refuse_inputs
from aeseg_edge.sources.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from aeseg_edge.sources.pairs import SCHEME
from aeseg_edge.sources.paths import file_path
from aeseg_edge.sources.registry import files_of
from aeseg_edge.support.files import identity, is_stream, temporary_beside

_log = logging.getLogger(__name__)

_FILES = ("bundle", "first", "second", "classes", "roi", "names_from", "against")
_FOLDERS = ("folder", "start", "images", "masks", "fit_images", "fit_masks", "from_masks")
_SOURCES = ("source", "sources")
_CURVES = ("clusters", "latents")
_IN_PLACE = ("name", "calibrate", "export")
"""Verbs that may give a bundle the name of one that they have read: that is asked for by name."""


def check_output(path: Path, suffix: str | None = None) -> Path:
    """Refuse an output that cannot be written, before hours of work.

    A device or a pipe (/dev/stdout, the shell's ``>(command)``) is taken on trust.
    """
    if suffix is not None and path.suffix != suffix:
        raise UsageError(f"{path} does not end in {suffix}", fix=f"Name it {path}{suffix}.")
    if not is_stream(path):
        # Only trying tells: permissions say nothing of a read-only disk or a used-up quota.
        temporary_beside(path, error=AesegError).unlink()
    return path


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be written."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"{path} is no picture", fix="Name it sheet.png.")
    check_output(path)


def check_files(options: argparse.Namespace) -> None:
    """Refuse, before any work, what cannot be written, is read too, or would be written twice.

    What ``aeseg run`` writes to its sinks is known when its sources are open; see ``refuse_reads``.
    """
    reports = [
        (f"--{name}", Path(target))
        for name in ("json", "stats")
        if (target := getattr(options, name, None)) not in (None, "-")
    ]
    outputs = _outputs(options)
    refuse_twice([*outputs, *reports])
    new = [path for _, path in [*outputs, *reports]]
    if options.verb in _IN_PLACE:
        bundles = {identity(Path(each)) for each in _given(options, ("bundle", "names_from"))}
        new = [path for path in new if path != options.output or identity(path) not in bundles]
        if options.verb == "name" and options.output is None:
            new = [path for _, path in reports] + [path for _, path in outputs[1:]]
    refuse_reads(new, options)
    if options.verb == "train":
        _check_training(options, [path for _, path in [*outputs[1:], *reports]])
    for _, path in reports:
        check_output(path)


def refuse_twice(outputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse two outputs that would be one file: the later one would win, without a word."""
    taken: dict[str, str] = {}
    for title, path in outputs:
        if is_stream(path):
            continue
        key = identity(path)
        if key in taken:
            raise UsageError(
                f"{taken[key]} and {title} {path} would be one file",
                fix="Give each a name of its own.",
            )
        taken[key] = f"{title} {path}"


def refuse_reads(targets: Sequence[Path], options: argparse.Namespace) -> None:
    """Refuse outputs that would take the place of what is read; warn of those beside footage."""
    refuse_inputs(targets, files_read(options))
    folders = [file_path(uri) for uri in _sources(options)]
    for folder in (os.path.realpath(each) for each in folders if Path(each).is_dir()):
        for path in targets:
            seen = path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not is_stream(path)
            if seen and _is_inside(path, folder):
                _log.warning(
                    "%s is written into the footage: whoever reads %s again reads it too. "
                    "Choose another folder for it",
                    path,
                    folder,
                )


def files_read(options: argparse.Namespace) -> Iterator[Path]:
    """List the files that a verb was given to read: bundles, footage, masks, class names."""
    for each in _given(options, _FILES):
        yield Path(each)
    for each in _given(options, _FOLDERS):
        yield from (path for path in Path(each).rglob("*") if path.is_file())
    for uri in _sources(options):
        yield from files_of(uri)


def _outputs(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """What a verb writes besides reports, its main file first."""
    found: list[tuple[str, Path]] = []
    output = getattr(options, "output", None)
    if isinstance(output, Path):
        found.append(("-o", output))
    elif options.verb == "name":
        found.append(("BUNDLE", options.bundle))
    if options.verb in ("train", "export", "calibrate") and output is not None:
        chosen = [
            not isinstance(options.clusters, int) and (options.verb != "train" or options.clusters),
            getattr(options, "latent_dim", getattr(options, "reduce_to", None)) == "auto",
        ]
        found += [
            ("the curve", output.with_name(f"{output.stem}.{name}{suffix}"))
            for name, made in zip(_CURVES, chosen, strict=True)
            if made
            for suffix in (".json", ".png")
        ]
    sheet = getattr(options, "sheet", None)
    if sheet is not None:
        found.append(("--sheet", Path(sheet if isinstance(sheet, Path) else sheet[0])))
    if (prefix := getattr(options, "out", None)) is not None:
        found += [
            ("--out", prefix.with_name(prefix.name + end)) for end in (".md", ".json", ".png")
        ]
    return found


def _check_training(options: argparse.Namespace, others: Sequence[Path]) -> None:
    """Refuse footage and other files inside NAME.train, whose content training replaces."""
    folder = options.output.with_suffix(".train")
    inside = next((path for path in others if _is_inside(path, folder)), None)
    if inside is not None:
        raise UsageError(
            f"{inside} lies in {folder}, which belongs to the training",
            fix="Choose another folder for it.",
        )
    if not folder.is_dir():
        return
    given = [Path(each) for each in _given(options, (*_FILES, *_FOLDERS))]
    given += [path for uri in _sources(options) for path in (Path(file_path(uri)), *files_of(uri))]
    for path in given:
        if _is_inside(path, folder):
            raise UsageError(
                f"{path} lies in {folder}, whose content this training would replace",
                fix=f"Move it out of {folder}, or give -o another name.",
            )


def _is_inside(path: Path, folder: str | Path) -> bool:
    """Whether a path is a folder or lies in it, whatever links lead there."""
    real, where = os.path.realpath(path), os.path.realpath(folder)
    return real == where or real.startswith(where.rstrip(os.sep) + os.sep)


def _given(options: argparse.Namespace, names: Sequence[str]) -> Iterator[str | Path]:
    for name in names:
        value = getattr(options, name, None)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if each is not None and each != "none":
                yield each


def _sources(options: argparse.Namespace) -> list[str]:
    """Every source that a verb was given, as URIs."""
    found = [str(each) for each in _given(options, _SOURCES)]
    sheet = getattr(options, "sheet", None)
    if isinstance(sheet, list):
        found.append(sheet[1])
    if (pairs := getattr(options, "modalities", None)) is not None:
        found.append(f"{SCHEME}{pairs}")
    return found
