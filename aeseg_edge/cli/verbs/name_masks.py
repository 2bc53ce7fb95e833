"""The part of ``aeseg name`` that reads labelled frames: --from-masks."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.cli.options import add_classes, import_calibration
from aeseg_edge.cli.output import agreement_json, entries_table
from aeseg_edge.cli.progress import Progress
from aeseg_edge.errors import UsageError
from aeseg_edge.support.options import positive, share

if TYPE_CHECKING:
    from aeseg_edge.calibration.footage.masks import Pair
    from aeseg_edge.calibration.labels.naming import Unseen

_log = logging.getLogger(__name__)

# Of no use without --from-masks.
_NEEDS = (
    *("classes", "ignore", "frames", "fit", "class_weights", "unseen", "min_agreement", "threads"),
)
AGREEMENT_FRAMES = 24


def add_from_masks(parser: argparse.ArgumentParser) -> None:
    """Add ``--from-masks`` and what belongs to it."""
    from aeseg_edge.calibration.labels.naming import FITS, UNSEEN, WEIGHTS

    group = parser.add_argument_group("names from labelled frames")
    group.add_argument(
        "--from-masks",
        nargs=2,
        type=Path,
        metavar=("IMAGES", "MASKS"),
        help="name every cluster by the class that most of its pixels have; MASKS are 8-bit "
        "index PNGs, named as the images. Class ids become the values of the masks",
    )
    add_classes(group)
    group.add_argument(
        "--frames", type=positive, metavar="N", help="use N frames, evenly spaced (default: all)"
    )
    group.add_argument(
        "--fit",
        choices=FITS,
        help="linear: replace the clusters by a linear codebook, fitted to the masks on this "
        "machine's CPU in seconds; agreement with fp32 is measured again (default: majority)",
    )
    group.add_argument(
        "--class-weights",
        choices=WEIGHTS,
        help="power: divide by frequency^0.3, for rare classes (default: none, power with "
        "--fit linear)",
    )
    group.add_argument(
        "--unseen",
        choices=UNSEEN,
        help="clusters in no labelled pixel: keep their class, take that of the nearest named "
        "cluster, or leave out (default: own)",
    )
    group.add_argument(
        "--min-agreement",
        type=share,
        metavar="SHARE",
        help="with --fit linear: gate on agreement with fp32 (default: "
        f"{FitSettings.minimum_agreement})",
    )
    group.add_argument("--threads", type=positive, help="threads for ONNX Runtime")


def check_from_masks(options: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is read."""
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
    if options.fit == "linear" and options.unseen is not None:
        raise UsageError(
            "--unseen does nothing with --fit linear, which has no unseen clusters",
            fix="Leave it out.",
        )
    if options.fit != "linear" and options.min_agreement is not None:
        raise UsageError("--min-agreement does nothing without --fit linear", fix="Leave it out.")


def name_from(bundle: Bundle, options: argparse.Namespace) -> tuple[Bundle, dict[str, Any]]:
    """Name clusters from labelled frames, or fit a linear codebook: the bundle, what to report."""
    from aeseg_edge.calibration.footage.masks import evenly_spaced, find_pairs, read_classes

    names = read_classes(options.classes)
    pairs = find_pairs(*options.from_masks)
    chosen = evenly_spaced(pairs, options.frames)
    with Progress() as progress:
        if options.fit != "linear":
            return _by_majority(bundle, names, chosen, options, progress)
        rest = [pair for pair in pairs if pair not in set(chosen)]
        # Frames that the codebook was not fitted on, where there are any; labels do not matter.
        others = evenly_spaced(rest or chosen, AGREEMENT_FRAMES)
        return _linear(bundle, names, chosen, others, options, progress)


def _by_majority(
    bundle: Bundle,
    names: Sequence[str],
    chosen: Sequence[Pair],
    options: argparse.Namespace,
    progress: Progress,
) -> tuple[Bundle, dict[str, Any]]:
    from aeseg_edge.calibration.labels.naming import count_pixels, name_by_majority

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
    note = _note("majority", chosen, "power" if weighted else "none")
    report = {
        **note,
        "unseen": list(named.unseen),
        "without_cluster": list(named.without_cluster),
        "clusters": [row.to_json() for row in named.clusters],
    }
    return _noted(bundle.with_codebook(named.codebook), note), report


def _linear(
    bundle: Bundle,
    names: Sequence[str],
    chosen: Sequence[Pair],
    others: Sequence[Pair],
    options: argparse.Namespace,
    progress: Progress,
) -> tuple[Bundle, dict[str, Any]]:
    import_calibration()
    from aeseg_edge.calibration.assemble import with_agreement
    from aeseg_edge.calibration.footage.masks import reader_for
    from aeseg_edge.calibration.labels.linear import fit_linear, labelled_cells
    from aeseg_edge.calibration.labels.naming import mask_classes

    cells = labelled_cells(
        bundle,
        chosen,
        names,
        ignore=options.ignore,
        threads=options.threads,
        progress=lambda done, total: progress.update("labelled frames", done / total),
    )
    weighted = options.class_weights != "none"
    progress.update("linear codebook", 0.0)
    classes = mask_classes(names, bundle.codebook)
    # Squares of latents help a little, where the graphs have them.
    squares = bundle.manifest.squares
    fit = fit_linear(cells, classes, weighted=weighted, square=squares)
    progress.update("linear codebook", 1.0)
    have = {item.name for item in fit.codebook.classes}
    without = [name for name in names if name not in have]
    if without:
        _log.warning("the labelled frames do not show %s", ", ".join(without))
    note = {**_note("linear", chosen, "power" if weighted else "none"), **fit.to_json()}
    # The picture in the bundle shows the old classes.
    draft = _noted(bundle.with_codebook(fit.codebook).with_preview(None), note)
    gate: float | None = options.min_agreement
    read = reader_for(bundle.manifest)
    made = with_agreement(
        draft,
        [read(pair.image, levels=pair.levels) for pair in others],
        minimum=FitSettings.minimum_agreement if gate is None else gate,
        threads=options.threads,
        progress=progress.update,
    )
    report = {
        **note,
        "without_cluster": without,
        **agreement_json(made.agreements, made.below),
        "entries": entries_table(made.bundle.manifest),
    }
    return made.bundle, report


def format_report(report: dict[str, Any]) -> list[str]:
    """Give lines for a person: what each cluster became, or how well the codebook fits."""
    if report["method"] == "linear":
        frames = f"{report['frames']} frames, {report['cells']} latents"
        return [
            f"linear codebook from {frames}, ridge {report['strength']:g}",
            *(f"  {line}" for line in report["entries"]),
        ]
    width = max(len(row["class"]) for row in report["clusters"])
    lines = [f"cluster  {'class':<{width}}  {'share':>7}  {'purity':>7}"]
    for row in report["clusters"]:
        purity = "      -" if row["purity"] is None else f"{100 * row['purity']:6.1f}%"
        lines.append(
            f"{row['cluster']:>7}  {row['class']:<{width}}  {100 * row['share']:6.2f}%  {purity}"
        )
    return lines


def _note(method: str, chosen: Sequence[Pair], class_weights: str) -> dict[str, Any]:
    return {
        "method": method,
        "frames": len(chosen),
        "images": str(chosen[0].image.parent),
        "class_weights": class_weights,
    }


def _noted(bundle: Bundle, note: dict[str, Any]) -> Bundle:
    """Say in the manifest that labels were used, and how many."""
    manifest = bundle.manifest
    return bundle.with_manifest(replace(manifest, training={**manifest.training, "labels": note}))


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown} and {len(numbers) - 8} more"
