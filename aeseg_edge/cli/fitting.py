"""Options of every fit of clusters and int8 ranges, and the settings they make."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aeseg_edge.cli.options import positive, share
from aeseg_edge.errors import MissingDependency

if TYPE_CHECKING:
    from aeseg_edge.calibration.settings import FitSettings

DEFAULT_CLUSTERS = 27
DEFAULT_CLUSTERING = "spherical"
DEFAULT_COVARIANCE = "tied"
AUTO_CLUSTERS = (4, 40)
FITTED = ("clusters", "clustering", "covariance", "balance")


def add_fit(parser: argparse.ArgumentParser, *, as_before: str = "") -> None:
    """Add the options of a fit; ``as_before`` says what their defaults are, where not ours."""
    parser.add_argument(
        "--clusters",
        type=_clusters,
        default=None if as_before else DEFAULT_CLUSTERS,
        metavar="K|auto:LO-HI",
        help="2..1024, or auto: the number in a range (auto alone: 4-40) whose clusters are "
        "stable and far apart; the curve is written beside the bundle "
        f"(default {as_before or DEFAULT_CLUSTERS})",
    )
    parser.add_argument(
        "--clustering",
        choices=("kmeans", "spherical", "gmm"),
        default=None if as_before else DEFAULT_CLUSTERING,
        help="by nearest centre, by nearest direction whatever the contrast, or by a Gaussian "
        f"mixture (default {as_before or DEFAULT_CLUSTERING})",
    )
    parser.add_argument(
        "--covariance",
        choices=("tied", "diag", "spherical", "full"),
        default=None if as_before else DEFAULT_COVARIANCE,
        help="with --clustering gmm: one shape for all clusters, a spread for each channel, or "
        "one spread a cluster; full is refused, the deployed graph cannot hold it "
        f"(default {as_before or DEFAULT_COVARIANCE})",
    )
    parser.add_argument(
        "--balance",
        choices=("none", "regions"),
        default=None if as_before else "none",
        help="regions: cluster one vector a connected region, so that large surfaces do not "
        f"take most of the clusters (default {as_before or 'none'})",
    )
    parser.add_argument(
        "--restarts",
        type=positive,
        help="K-means starts (default 16, fewer beyond 32 clusters); up to 32 clusters three times "
        "as many where clusters are not stable",
    )
    parser.add_argument(
        "--ranges",
        choices=("minmax", "percentile", "entropy"),
        default="minmax",
        help="how int8 ranges are found (default minmax)",
    )
    parser.add_argument(
        "--min-agreement",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="gate on agreement with fp32 (default 0.95"
        f"{', whatever it was before' if as_before else ''})",
    )
    parser.add_argument(
        "--int8-exclude",
        type=_excluded,
        metavar="NAME[,NAME]|auto",
        help="convolutions that stay in floating point; auto: those that buy most agreement, "
        "until --int8-target is met or a quarter of the encoder's operations are in floating "
        f"point; aeseg report has the names (default {as_before or 'none'})",
    )
    parser.add_argument(
        "--int8-target",
        type=share,
        metavar="AGREEMENT",
        help="with --int8-exclude auto: agreement with fp32 to reach (default: "
        f"{as_before + ', else ' if as_before else ''}--min-agreement)",
    )
    parser.add_argument("--seed", type=int, default=0, help="makes it repeatable (default 0)")
    parser.add_argument(
        "--threads", type=positive, help="CPU threads (default: the libraries' own choice)"
    )


def _clusters(text: str) -> int | tuple[int, int]:
    """Parse a number of clusters, ``auto`` or ``auto:4-40``."""
    if text == "auto":
        return AUTO_CLUSTERS
    match = re.fullmatch(r"auto:(\d+)-(\d+)", text)
    if match is not None:
        return int(match[1]), int(match[2])
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of at least 1, auto or auto:4-40"
        ) from error


def _excluded(text: str) -> tuple[str, ...] | str:
    """Parse names of convolutions, ``auto`` or ``none``."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names, auto or none")
    return names


def fit_settings(options: argparse.Namespace, told: Mapping[str, Any] | None = None) -> FitSettings:
    """Join what the options say with how it was done before."""
    chosen = {name: getattr(options, name) for name in FITTED}
    before = {"clusters": DEFAULT_CLUSTERS, "clustering": DEFAULT_CLUSTERING, **(told or {})}
    if isinstance(chosen["clusters"], tuple):
        chosen["cluster_range"] = chosen.pop("clusters")
    elif chosen["clusters"] is not None:
        before["cluster_range"] = None
    if options.int8_exclude is not None:
        # A target goes with auto alone, and that may have been asked for earlier.
        before.pop("int8_target", None)
        chosen["int8_exclude"] = options.int8_exclude
    chosen["int8_target"] = options.int8_target
    values = {
        **before,
        **{name: value for name, value in chosen.items() if value is not None},
        "restarts": options.restarts,
        "seed": options.seed,
        "ranges": options.ranges,
        "minimum_agreement": options.min_agreement,
        "threads": options.threads,
    }
    import_calibration()
    from aeseg_edge.calibration.settings import FitSettings

    return FitSettings(**values)


def import_calibration() -> Any:
    """Give ``calibration.recalibrate``, or say what is missing for it."""
    try:
        from aeseg_edge.calibration import recalibrate
    except ImportError as error:
        raise MissingDependency(
            f"calibration needs a package that is not importable ({error})",
            fix="Install it: pip install 'aeseg_edge[calibrate]'.",
        ) from error
    return recalibrate
