"""``aeseg compare``: how the labels of two bundles differ on the same frames."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.manifest import Manifest, Modality
from aeseg_edge.cli import options as shared
from aeseg_edge.cli.fields import add_options
from aeseg_edge.cli.files import check_picture
from aeseg_edge.cli.output import write_json, write_picture
from aeseg_edge.cli.progress import Progress
from aeseg_edge.errors import UsageError
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.segment.settings import RunnerSettings
from aeseg_edge.sources.pairs import describe
from aeseg_edge.support.evenly import evenly
from aeseg_edge.support.options import positive
from aeseg_edge.support.require import import_scipy
from aeseg_edge.support.text import without_password
from aeseg_edge.view.draw import as_bgr, contact_sheet, fit, mask

if TYPE_CHECKING:
    from aeseg_edge.calibration.score.difference import Comparison, LabelCounts

Picture = NDArray[np.uint8]

EXAMPLE = (
    "aeseg compare rgb.aeseg rgbt.aeseg --modalities visible=rgb,thermal=ir --sheet thermal.png"
)
ROWS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("first", type=Path, metavar="A.aeseg")
    parser.add_argument("second", type=Path, metavar="B.aeseg")
    parser.add_argument(
        "source",
        nargs="?",
        help="video, folder or glob; of --modalities, a bundle for some gets these alone",
    )
    shared.add_modalities(parser)
    parser.add_argument(
        "--blank",
        metavar="NAME",
        help="give A the frame's mean instead of this modality; with one bundle as A and B: "
        "how much of its labels hangs on it",
    )
    add_options(parser, RunnerSettings)
    parser.add_argument("--frames", type=positive, metavar="N", help="look at N frames at most")
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        help="write a picture: each modality, labels of A, labels of B in A's colours, and "
        "where they differ",
    )
    parser.add_argument("--rows", type=positive, metavar="N", help=f"of the sheet (default {ROWS})")
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    from aeseg_edge.calibration.score.difference import LabelCounts

    uri = shared.one_source(options)
    import_scipy("optimize")  # Needed at the end, so asked for before the frames.
    if options.sheet is not None:
        check_picture(options.sheet)
    counts = LabelCounts()
    with (
        shared.open_segmenter(options.first, options) as first,
        shared.open_segmenter(options.second, options) as second,
        Progress() as progress,
    ):
        modalities = _all_modalities(first.manifest, second.manifest)
        pair = _Pair(
            (first, second),
            tuple(_picked(each.manifest, modalities) for each in (first, second)),
            _channels_of(options.blank, modalities) if options.blank is not None else [],
        )
        total = 0
        for image in _frames(uri, modalities, first.manifest, options.frames):
            counts.add(*(result.labels for result in pair(image)))
            total += 1
            progress.update("comparing", 0.0, f"{total} frames")
        progress.update("comparing", 1.0)
        found = counts.compare(first.classes, second.classes)
        if options.sheet is not None:
            chosen = evenly(total, options.rows or ROWS, rounded=False)
            images = _frames(uri, modalities, first.manifest, options.frames)
            shown = (image for index, image in enumerate(images) if index in set(chosen.tolist()))
            names = options.first.stem, options.second.stem
            _write_sheet(options.sheet, shown, modalities, pair, counts, names)
    if options.json != "-":
        _print(found, options)
    write_json(
        options,
        {"first": str(options.first), "second": str(options.second), **found.to_json()},
    )
    return 0


@dataclass(frozen=True)
class _Pair:
    """Two segmenters, the channels that each takes, and those that the first does not see."""

    segmenters: tuple[Segmenter, Segmenter]
    picks: tuple[list[int], ...]
    blank: list[int]

    def __call__(self, image: Picture) -> tuple[Segmentation, Segmentation]:
        blanked = image.copy()
        for channel in self.blank:
            blanked[..., channel] = round(float(image[..., channel].mean()))
        first, second = (
            run(np.ascontiguousarray(frame[..., pick]))
            for run, frame, pick in zip(self.segmenters, (blanked, image), self.picks, strict=True)
        )
        return first, second


def _channels_of(name: str, modalities: Sequence[Modality]) -> list[int]:
    """Give the channels of one modality."""
    start = 0
    for each in modalities:
        if each.name == name:
            return list(range(start, start + each.channels))
        start += each.channels
    known = ", ".join(each.name for each in modalities) or "only one"
    raise UsageError(
        f"there is no modality {name!r}", fix=f"The bundles have {known}; see aeseg info."
    )


def _all_modalities(first: Manifest, second: Manifest) -> tuple[Modality, ...]:
    """Give the modalities of the bundle that has more; empty where neither has any."""
    more, fewer = sorted((first.modalities, second.modalities), key=len, reverse=True)
    if not set(fewer) <= set(more):
        raise UsageError(
            f"one bundle was trained on {describe(more)}, the other on {describe(fewer)}",
            fix="Compare bundles of which one has all modalities of the other.",
        )
    if not more and first.geometry.channels != second.geometry.channels:
        raise UsageError(
            f"one bundle takes frames of {first.geometry.channels} channels, the other of "
            f"{second.geometry.channels}",
            fix="Compare bundles that take the same frames.",
        )
    return more


def _picked(manifest: Manifest, modalities: Sequence[Modality]) -> list[int]:
    """Say which channels of a frame a bundle takes: the first modality's for one camera's."""
    wanted = manifest.geometry.channels
    if not modalities:
        return list(range(wanted))
    if not manifest.modalities:
        if modalities[0].channels != wanted:
            raise UsageError(
                f"one bundle takes {wanted} channels, and {modalities[0].name} has "
                f"{modalities[0].channels}",
                fix="Compare with a bundle that was trained on the first modality.",
            )
        return list(range(wanted))
    return [
        channel for each in manifest.modalities for channel in _channels_of(each.name, modalities)
    ]


def _frames(
    uri: str, modalities: Sequence[Modality], manifest: Manifest, most: int | None
) -> Iterator[Picture]:
    from aeseg_edge.sources.paths import with_range
    from aeseg_edge.sources.registry import open_source

    uri = with_range(uri, manifest.provenance)
    channels = sum(each.channels for each in modalities) or manifest.geometry.channels
    with open_source(uri, channels=channels, modalities=modalities) as source:
        if source.live or (source.total is None and most is None):
            raise UsageError(
                f"{without_password(uri)} has no end, and is read twice",
                fix="Give a recording, or --frames N.",
            )
        for frame in islice(source, most):
            yield frame.image


def _write_sheet(
    path: Path,
    images: Iterator[Picture],
    modalities: Sequence[Modality],
    pair: _Pair,
    counts: LabelCounts,
    names: tuple[str, str],
) -> None:

    matched = counts.matching()
    rows: list[list[Picture]] = []
    for image in images:
        first, second = pair(image)
        # B's classes in the colours of A's that they were matched to.
        same = np.where(matched >= 0, matched, np.arange(len(matched)))
        recoloured = mask(second.labels, first.palette[same])
        differ = matched[second.labels] != first.labels
        base = as_bgr(image)
        where = np.where(differ[..., None], base, base // 5)
        start, row = 0, []
        for channels in [each.channels for each in modalities] or [image.shape[2]]:
            row.append(as_bgr(image[..., start : start + channels]))
            start += channels
        row += [mask(first.labels, first.palette), recoloured, np.asarray(where, np.uint8)]
        size = rows[0][0].shape[:2] if rows else row[0].shape[:2]
        rows.append([fit(each, *size) for each in row])
    titles = [each.name for each in modalities] or ["frame"]
    titles += [f"A: {names[0]}", f"B: {names[1]}, in A's colours", "where they differ"]
    write_picture(path, contact_sheet(rows, titles))


def _print(found: Comparison, options: argparse.Namespace) -> None:
    print(f"A {options.first}, B {options.second}: {found.frames} frames")
    print(f"label agreement (adjusted Rand index)    {found.ari:.3f}")
    print(f"pixels alike with classes matched 1:1    {100 * found.matched:.1f} %")
    print(f"{'class of B':<24}{'pixels':>8}   {'nearest class of A':<24}{'IoU':>8}")
    for each in found.classes:
        print(
            f"{each.name[:23]:<24}{100 * each.share:>6.1f} %   {each.best[:23]:<24}"
            f"{100 * each.iou:>6.1f} %"
        )
