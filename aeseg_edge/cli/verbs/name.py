"""``aeseg name``: names and colours for what a bundle found."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

from aeseg_edge.bundle import classes as naming
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.classes import clusters_of, find_class
from aeseg_edge.bundle.codebook import VOID, Codebook
from aeseg_edge.cli.files import check_output, check_picture
from aeseg_edge.cli.options import add_json, open_bundle, open_for
from aeseg_edge.cli.output import write_json, write_picture
from aeseg_edge.cli.verbs.name_masks import (
    add_from_masks,
    check_from_masks,
    format_report,
    name_from,
)
from aeseg_edge.errors import CodebookError, UsageError
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.support.options import positive
from aeseg_edge.view import sheet

EXAMPLE = "aeseg name street.aeseg 3=road 5=sky --merge 7,9 --void 4"
SHEET_FRAMES = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="WHICH=NAME",
        help="WHICH is a cluster's number (see --sheet), which stands for the class it "
        "belongs to, or a class's present name; two of one name become one class",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OTHER.aeseg", help="default: in place"
    )
    for option, metavar, text in (
        ("--split", "N", "give a cluster a class of its own again"),
        ("--merge", "A,B", "make one class of two or more; the first gives name and colour"),
        ("--void", "WHICH", "leave out: 255 in label maps"),
        ("--color", "WHICH=RRGGBB", "draw in this colour"),
    ):
        parser.add_argument(option, action="append", default=[], metavar=metavar, help=text)
    parser.add_argument(
        "--sheet",
        nargs=2,
        metavar=("FILE", "SOURCE"),
        help="write a picture of what each cluster looks like in a video or folder",
    )
    parser.add_argument(
        "--sheet-frames", type=positive, metavar="N", help=f"default: {SHEET_FRAMES}"
    )
    add_from_masks(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    check_from_masks(options)
    bundle = open_bundle(options)
    edits = any((options.names, options.split, options.merge, options.void, options.color))
    labelled = options.from_masks is not None
    if not edits and not labelled and options.sheet is None and options.output is None:
        raise UsageError(
            "there is nothing to do",
            fix="Name clusters (3=road), give --from-masks, or ask for --sheet.",
        )
    if options.sheet is not None:
        check_picture(Path(options.sheet[0]))
    report: dict[str, Any] | None = None
    target: Path | None = None
    if edits or labelled or options.output is not None:
        target = options.output or options.bundle
        check_output(target, ".aeseg")
        if labelled:
            bundle, report = name_from(bundle, options)
        # Afterwards, by hand, what the masks do not say.
        bundle = bundle.with_codebook(edit(bundle.codebook, options))
    if options.sheet is not None:
        _write_sheet(bundle, *options.sheet, frames=options.sheet_frames or SHEET_FRAMES)
    if target is not None:
        # Last, so that a mistake changes nothing.
        bundle.write(target)
    rows = list_classes(bundle.codebook)
    if options.json != "-":
        for line in () if report is None else format_report(report):
            print(line)
        for row in rows:
            print(f"{row['id']:>4}  {row['color']:<7}  {row['name']}  (clusters {row['clusters']})")
    write_json(options, rows if report is None else {**report, "classes": rows})
    return 0


def edit(codebook: Codebook, options: argparse.Namespace) -> Codebook:
    """Apply what the options say: splits first, then merges, void, names, colours."""
    for text in options.split:
        codebook = naming.split(codebook, _number(text))
    for text in options.merge:
        parts = [part.strip() for part in text.split(",")]
        if len(parts) < 2:
            raise UsageError(f"--merge {text} names one class", fix="Write --merge 7,9.")
        into, *others = (_find(codebook, part) for part in parts)
        # Some may be of one class already; what is asked for is then there.
        rest = [other for other in dict.fromkeys(others) if other != into]
        codebook = naming.merge(codebook, into, rest) if rest else codebook
    for text in options.void:
        codebook = naming.make_void(codebook, _find(codebook, text))
    for text in options.names:
        which, value = _pair(text, "3=road")
        if which.isdecimal() and _class_of(codebook, int(which)) == VOID:
            codebook = naming.split(codebook, int(which))
        codebook = naming.rename(codebook, _find(codebook, which), value)
    for text in options.color:
        which, value = _pair(text, "--color 3=804080")
        codebook = naming.recolor(codebook, _find(codebook, which), naming.parse_color(value))
    return codebook


def list_classes(codebook: Codebook) -> list[dict[str, object]]:
    """Give id, name, colour and clusters of each class, and of void where it has clusters."""
    rows = [(c.id, c.name, "#{:02x}{:02x}{:02x}".format(*c.color)) for c in codebook.classes]
    if (codebook.remap == VOID).any():
        rows.append((VOID, "void", ""))
    return [
        {
            "id": class_id,
            "name": name,
            "color": color,
            "clusters": ",".join(map(str, clusters_of(codebook, class_id))),
        }
        for class_id, name, color in rows
    ]


def _pair(text: str, example: str) -> tuple[str, str]:
    which, equals, value = text.partition("=")
    if not equals or not which.strip():
        raise UsageError(f"{text!r} is not WHICH=VALUE", fix=f"Write {example}.")
    return which.strip(), value


def _number(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{text!r} is not a cluster's number", fix="Write --split 7.")
    return int(text)


def _class_of(codebook: Codebook, cluster: int) -> int:
    if cluster >= codebook.clusters:
        raise CodebookError(
            f"there is no cluster {cluster}", fix=f"Clusters are 0 to {codebook.clusters - 1}."
        )
    return int(codebook.remap[cluster])


def _find(codebook: Codebook, which: str) -> int:
    """Give the id of the class that a cluster belongs to, or that has a name."""
    if which.isdecimal():
        class_id = _class_of(codebook, int(which))
        if class_id == VOID:
            raise CodebookError(
                f"cluster {which} is void", fix=f"Give it a class first: --split {which}."
            )
        return class_id
    found = find_class(codebook, which)
    if found is None:
        raise CodebookError(
            f"there is no class {which!r}", fix="`aeseg info` lists the classes of a bundle."
        )
    return found.id


def _write_sheet(bundle: Bundle, target: str, source: str, *, frames: int) -> None:

    with (
        Segmenter.load(bundle, backend="onnxruntime") as segmenter,
        open_for(bundle.manifest, source) as opened,
    ):
        # Spread over a recording whose length is known; a camera's first frames otherwise.
        step = max(1, (opened.total or 0) // frames)
        chosen = (frame.image for frame in opened if frame.index % step == 0)
        gallery = sheet.collect(segmenter, islice(chosen, frames))
    write_picture(Path(target), sheet.draw(gallery, bundle.codebook))
