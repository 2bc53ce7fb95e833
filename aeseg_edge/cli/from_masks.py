"""The part of ``aeseg name`` that reads labelled frames: --from-masks."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aeseg_edge.cli.options import positive
from aeseg_edge.errors import UsageError

if TYPE_CHECKING:
    from aeseg_edge.bundle import Bundle
    from aeseg_edge.calibration.from_masks import Unseen
    from aeseg_edge.calibration.labelled import Pair

_log = logging.getLogger(__name__)

# Of no use without --from-masks.
_NEEDS = ("classes", "ignore", "frames", "class_weights", "unseen", "threads")


def add_from_masks(parser: argparse.ArgumentParser) -> None:
    """Add ``--from-masks`` and what belongs to it."""
    group = parser.add_argument_group("names from labelled frames")
    group.add_argument(
        "--from-masks",
        nargs=2,
        type=Path,
        metavar=("IMAGES", "MASKS"),
        help="name every cluster by the class that most of its pixels have; MASKS are 8-bit "
        "index PNGs, named as the images. Class ids become the values of the masks",
    )
    group.add_argument(
        "--classes", type=Path, metavar="FILE", help="one class name a line, for 0, 1, ..."
    )
    group.add_argument("--ignore", type=int, metavar="ID", help="mask value left out")
    group.add_argument(
        "--frames",
        type=positive,
        metavar="N",
        help="use N frames, evenly spaced (default: all)",
    )
    group.add_argument(
        "--class-weights",
        choices=("none", "power"),
        help="power: divide by frequency^0.3, for rare classes (default: none)",
    )
    group.add_argument(
        "--unseen",
        choices=("own", "nearest", "void"),
        help="clusters in no labelled pixel: keep their class, take that of the nearest named "
        "cluster, or leave out (default: own)",
    )
    group.add_argument("--threads", type=positive, help="threads for ONNX Runtime")


def check_from_masks(options: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is read.

    Raises:
        UsageError: For an option that needs another one.
    """
    if options.from_masks is None:
        for name in _NEEDS:
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} does nothing without --from-masks",
                    fix="Give --from-masks IMAGES MASKS.",
                )
    elif options.classes is None:
        raise UsageError(
            "--from-masks needs the names of the classes", fix="Give --classes classes.txt."
        )


def name_from(bundle: Bundle, options: argparse.Namespace) -> tuple[Bundle, dict[str, Any]]:
    """Name a bundle's clusters from labelled frames.

    Args:
        bundle: Left as it is.
        options: Of ``aeseg name``.

    Returns:
        The named bundle, and what to report.

    Raises:
        EvaluationError: Images, masks and classes do not fit together.
        CodebookError: A name cannot be used, or class ids run out.
    """
    from aeseg_edge.calibration.from_masks import count_pixels, name_by_majority
    from aeseg_edge.calibration.labelled import evenly_spaced, find_pairs, read_classes
    from aeseg_edge.cli.progress import Progress

    names = read_classes(options.classes)
    pairs = find_pairs(*options.from_masks)
    chosen = evenly_spaced(pairs, options.frames)
    with Progress() as progress:
        counts = count_pixels(
            bundle,
            chosen,
            names,
            ignore=options.ignore,
            threads=options.threads,
            progress=lambda done, total: progress.update("labelled frames", done / total),
        )
    unseen: Unseen = options.unseen or "own"
    weighted = options.class_weights == "power"
    named = name_by_majority(bundle.codebook, counts, names, unseen=unseen, weighted=weighted)
    if named.unseen:
        became = {
            "own": "they keep the class they had; --unseen nearest gives them that of the "
            "nearest named cluster",
            "nearest": "they take the class of the nearest named cluster",
            "void": "they are void now",
        }
        _log.warning(
            "%d of %d clusters are in no labelled pixel (%s): %s",
            len(named.unseen),
            len(named.clusters),
            _some(named.unseen),
            became[unseen],
        )
    if named.without_cluster:
        _log.warning("no cluster became %s", ", ".join(named.without_cluster))
    report = {
        "method": "majority",
        "frames": len(chosen),
        "class_weights": "power" if weighted else "none",
        "unseen": list(named.unseen),
        "without_cluster": list(named.without_cluster),
        "clusters": [row.to_json() for row in named.clusters],
    }
    return _noted(bundle.with_codebook(named.codebook), chosen, report), report


def format_clusters(report: dict[str, Any]) -> list[str]:
    """Give a table of clusters and what became of them; shares in percent."""
    width = max(len(row["class"]) for row in report["clusters"])
    lines = [f"cluster  {'class':<{width}}  {'share':>7}  {'purity':>7}"]
    for row in report["clusters"]:
        purity = "      -" if row["purity"] is None else f"{100 * row['purity']:6.1f}%"
        lines.append(
            f"{row['cluster']:>7}  {row['class']:<{width}}  {100 * row['share']:6.2f}%  {purity}"
        )
    return lines


def _noted(bundle: Bundle, chosen: Sequence[Pair], report: dict[str, Any]) -> Bundle:
    """Say in the manifest that labels were used, and how many."""
    from aeseg_edge.bundle import Bundle

    note = {
        "method": report["method"],
        "frames": len(chosen),
        "images": str(chosen[0].image.parent),
        "class_weights": report["class_weights"],
    }
    manifest = bundle.manifest
    return Bundle.build(
        replace(manifest, training={**manifest.training, "labels": note}),
        bundle.codebook,
        bundle.graphs,
        preview=bundle.preview,
        region=bundle.region,
    )


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown} and {len(numbers) - 8} more"
