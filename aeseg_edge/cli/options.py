"""Options that several verbs share, what they were given, and what they lead to."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.manifest import Manifest
from aeseg_edge.bundle.pretrained import NOTICE, pretrained_path
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.cli.fields import filled, given
from aeseg_edge.errors import MissingDependency, UsageError
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.segment.settings import RunnerSettings
from aeseg_edge.sources.base import Source
from aeseg_edge.sources.images import read_grey
from aeseg_edge.sources.pairs import SCHEME, SKIP, UNPAIRED
from aeseg_edge.support.options import size
from aeseg_edge.support.require import install

_log = logging.getLogger(__name__)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument(
        "--json", metavar="FILE", help="write the results as JSON to FILE, - for standard output"
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add ``--cache-dir``."""
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where engines are kept (default: ~/.cache/aeseg_edge)",
    )


def add_imgsz(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--imgsz`` to a verb that runs no bundle."""
    parser.add_argument("--imgsz", type=size, metavar="WxH", help=text)


def add_footage(parser: argparse.ArgumentParser, text: str) -> None:
    """Add SOURCE, ``--modalities`` and ``--output`` to a verb that makes a bundle."""
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=text)
    add_modalities(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="NAME.aeseg")


def add_modalities(parser: argparse.ArgumentParser, *, stands_for: str = "SOURCE") -> None:
    """Add ``--modalities``, which stands for a source, and ``--unpaired``."""
    parser.add_argument(
        "--modalities",
        metavar="NAME=DIR,NAME=DIR",
        help=f"instead of {stands_for}: folders of pictures paired by name, such as "
        "visible=DIR,thermal=DIR; colours first, grey ones have one channel",
    )
    parser.add_argument(
        "--unpaired",
        choices=UNPAIRED,
        help=f"what becomes of files without a partner (default: {UNPAIRED[0]})",
    )


def add_classes(parser: argparse._ActionsContainer, **more: Any) -> None:
    """Add ``--classes`` and ``--ignore`` to a verb that reads masks."""
    numbers = "" if more else ", for 0, 1, ..."
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help=f"one class name a line{numbers} (or CSV, YAML, JSON, CVAT's labelmap.txt)",
        **more,
    )
    parser.add_argument("--ignore", type=int, metavar="ID", help="mask value left out")


def add_roi(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add ``--roi``; ``more`` goes on with its help."""
    parser.add_argument(
        "--roi", metavar="MASK", help=f"picture whose white part is segmented{more}"
    )


def add_names(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--names-from``; ``default`` ends its help."""
    parser.add_argument(
        "--names-from",
        metavar="OLD.aeseg",
        help="names, colours, merges and void of an earlier bundle of the same encoder go to the "
        f"clusters near its own ({default})",
    )


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Import inside this: what is missing is named, with the extra that has it."""
    try:
        yield
    except ImportError as error:
        raise MissingDependency(
            f"{what} ({error})", fix=f"Install it: {install(extra)}."
        ) from error


def import_calibration() -> Any:
    """Give ``calibration.recalibrate``, or say what is missing for it."""
    with needing("calibrate", "calibration needs a package that is not importable"):
        from aeseg_edge.calibration import recalibrate
    return recalibrate


def fit_settings(options: argparse.Namespace, told: Mapping[str, Any] | None = None) -> FitSettings:
    """Join what the options say with how it was done before."""
    import_calibration()

    said, before = given(options, FitSettings), dict(told or {})
    if isinstance(said.get("clusters"), tuple):
        said["cluster_range"] = said.pop("clusters")
    elif "clusters" in said:
        before.pop("cluster_range", None)
    if said.get("clustering", before.get("clustering")) != before.get("clustering"):
        # A covariance goes with gmm alone, and that may have been asked for earlier.
        before.pop("covariance", None)
    if "int8_exclude" in said:
        # A target goes with auto alone, and that may have been asked for earlier.
        before.pop("int8_target", None)
    return FitSettings(**before | said)


def all_sources(given: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Give the sources, whichever way they were given; UsageError if none or both kinds are."""
    pairs = options.modalities
    if bool(given) == (pairs is not None):
        problem = "SOURCE and --modalities are both given" if pairs else "no SOURCE is given"
        raise UsageError(problem, fix="Give a SOURCE, or --modalities visible=DIR,thermal=DIR.")
    if pairs is None:
        return list(given)
    return [f"{SCHEME}{pairs}{SKIP if options.unpaired == UNPAIRED[1] else ''}"]


def one_source(options: argparse.Namespace) -> str:
    """Give the one source of a verb that takes no more."""
    (uri,) = all_sources([] if options.source is None else [options.source], options)
    return uri


def open_for(manifest: Manifest, uri: str) -> Source:
    """Open a source with the channels that a bundle takes."""
    from aeseg_edge.sources.paths import with_range
    from aeseg_edge.sources.registry import open_source

    uri = with_range(uri, manifest.provenance)
    return open_source(uri, channels=manifest.geometry.channels, modalities=manifest.modalities)


def open_bundle(options: argparse.Namespace) -> Bundle:
    """Open the bundle that was named, or the pretrained one, at the size that was asked for."""
    path = options.bundle
    if path is None:
        path = pretrained_path()
        _log.warning(NOTICE)
    bundle = Bundle.open(path)
    imgsz = getattr(options, "imgsz", None)
    return bundle if imgsz is None else bundle.with_size(*imgsz)


def open_segmenter(bundle: Path | Bundle, options: argparse.Namespace, **more: Any) -> Segmenter:
    """Open a bundle as the runner's options say; ``more`` goes to ``Segmenter.load``."""
    return Segmenter.load(bundle, **asdict(filled(options, RunnerSettings)) | more)


_NEEDS = {
    "unpaired": ("modalities",),
    "fit_every": ("fit_images",),
    "rows": ("sheet",),
    "sheet_frames": ("sheet",),
    "rounds": ("against", "split"),
}
"""Options of several verbs that do nothing without one of others."""


def check_needs(options: argparse.Namespace) -> None:
    """Refuse an option that does nothing without one that was not given."""
    for name, needs in _NEEDS.items():
        given_one = any(getattr(options, need, None) for need in needs)
        if getattr(options, name, None) is not None and not given_one:
            wanted = " or ".join(f"--{need.replace('_', '-')}" for need in needs)
            raise UsageError(
                f"--{name.replace('_', '-')} does nothing without {wanted}",
                fix=f"Give {wanted} too, or leave it out.",
            )


def read_mask(path: str | None) -> NDArray[np.uint8] | None:
    """Read a region-of-interest picture: white is inside."""
    if path is None:
        return None
    mask = read_grey(Path(path))
    if mask is None:
        raise UsageError(f"{path} is not a readable image", fix="Give a PNG: white is inside.")
    return mask
