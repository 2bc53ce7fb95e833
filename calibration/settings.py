"""What can be asked of a fit."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from aeseg_edge.calibration.clusters.kmeans import MANY, RESTARTS
from aeseg_edge.calibration.clusters.methods import (
    BALANCES,
    DEFAULT_METHOD,
    MAX_CLUSTERS,
    METHODS,
)
from aeseg_edge.calibration.clusters.mixture import (
    COVARIANCES,
    DEFAULT_COVARIANCE,
    check_covariance,
)
from aeseg_edge.errors import CalibrationError, UsageError
from aeseg_edge.support.options import KEY, option, positive, share

RANGES = ("minmax", "percentile", "entropy")
AUTO_CLUSTERS = (4, 40)
"""Lowest and highest K of ``auto`` alone."""


def parse_clusters(text: str) -> int | tuple[int, int]:
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


def parse_excluded(text: str) -> tuple[str, ...] | str:
    """Parse names of convolutions, ``auto`` or ``none``."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names, auto or none")
    return names


@dataclass(frozen=True)
class FitSettings:
    """How centres and ranges are fitted; the help of an option says what its field is.

    Attributes:
        cluster_range: Lowest and highest K to choose from by ``count.CRITERION``; ``clusters``
            does not count then. None for the K of ``clusters``.
        samples: Latents to cluster.
        calibration_frames: Frames for the INT8 ranges.
        agreement_frames: Other frames for the agreement with fp32.
    """

    clusters: int = option(
        27,
        parse=parse_clusters,
        metavar="K|auto:LO-HI",
        help="2..1024, or auto: the number in a range (auto alone: 4-40) whose clusters are "
        "stable and far apart; the curve is written beside the bundle (default {default})",
        remembered=True,
    )
    cluster_range: tuple[int, int] | None = None
    clustering: str = option(
        DEFAULT_METHOD,
        choices=tuple(METHODS),
        help=f"{', '.join(each.help for each in METHODS.values())} (default {{default}})",
        remembered=True,
    )
    covariance: str = option(
        DEFAULT_COVARIANCE,
        choices=(*COVARIANCES, "full"),
        help="with --clustering gmm: one shape for all clusters, a spread for each channel, or "
        "one spread a cluster; full is refused, the deployed graph cannot hold it "
        "(default {default})",
        remembered=True,
    )
    balance: str = option(
        "none",
        choices=BALANCES,
        help="regions: cluster one vector a connected region, so that large surfaces do not "
        "take most of the clusters (default {default})",
        remembered=True,
    )
    restarts: int | None = option(
        None,
        parse=positive,
        help="K-means starts (default 16, fewer beyond 32 clusters); up to 32 clusters three times "
        "as many where clusters are not stable",
    )
    samples: int = 60_000
    seed: int = option(0, parse=int, help="makes it repeatable (default {default})")
    calibration_frames: int = 48
    agreement_frames: int = 24
    minimum_agreement: float = option(
        0.95,
        "--min-agreement",
        parse=share,
        metavar="SHARE",
        help="gate on agreement with fp32 (default {default})",
        before="0.95, whatever it was before",
    )
    int8_exclude: tuple[str, ...] | Literal["auto"] = option(
        (),
        parse=parse_excluded,
        metavar="NAME[,NAME]|auto",
        help="convolutions that stay in floating point; auto: those that buy most agreement, "
        "until --int8-target is met or a quarter of the encoder's operations are in floating "
        "point; aeseg report has the names (default {default})",
        shown="none",
        remembered=True,
    )
    int8_target: float | None = option(
        None,
        parse=share,
        metavar="AGREEMENT",
        help="with --int8-exclude auto: agreement with fp32 to reach (default: {default})",
        shown="--min-agreement",
        before="{before}, else --min-agreement",
        remembered=True,
    )
    ranges: str = option(
        "minmax",
        choices=RANGES,
        help="how int8 ranges are found: from all values; without the largest 0.01 %% of them; or "
        "as wide as keeps quantised values closest in distribution (default {default})",
    )
    threads: int | None = option(
        None, parse=positive, help="CPU threads (default: the libraries' own choice)"
    )

    def remembered(self) -> dict[str, Any]:
        """Give what a later export takes over where it is told nothing else."""
        return {name: getattr(self, name) for name in _remembered()}

    @staticmethod
    def recalled(told: Mapping[str, Any]) -> dict[str, Any]:
        """Turn what ``remembered`` gave, read from JSON, into arguments; fewer from older ones."""
        known = {name: told[name] for name in _remembered() if name in told}
        method = METHODS.get(known.get("clustering", DEFAULT_METHOD))
        if method is not None and not method.covariances:
            # Older versions took, and kept, one that did nothing.
            known |= {"covariance": DEFAULT_COVARIANCE} if "covariance" in known else {}
        return {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}

    @property
    def excluded(self) -> tuple[str, ...]:
        """Convolutions that were named; none with ``auto``."""
        return () if self.int8_exclude == "auto" else self.int8_exclude

    @property
    def most_clusters(self) -> int:
        """The K, or the highest that may be chosen."""
        return self.clusters if self.cluster_range is None else self.cluster_range[1]

    @property
    def fewest_clusters(self) -> int:
        """The K, or the lowest that may be chosen."""
        return self.clusters if self.cluster_range is None else self.cluster_range[0]

    def starts(self, clusters: int) -> int:
        """K-means starts for K clusters: as asked for, or 16 and fewer beyond 32 clusters.

        Finer clusterings cost more and differ less in quality from start to start.
        """
        if self.restarts is not None:
            return self.restarts
        return max(2, min(RESTARTS, RESTARTS * MANY // clusters))

    def __post_init__(self) -> None:
        """Refuse values that make no sense, before any work is done."""
        if not 0.0 <= self.minimum_agreement <= 1.0:
            raise UsageError(
                f"minimum agreement {self.minimum_agreement} is not within 0..1",
                fix="Give a share such as 0.95.",
            )
        if self.int8_target is not None:
            if not 0.0 <= self.int8_target <= 1.0:
                raise UsageError(
                    f"the target {self.int8_target} for int8 is not within 0..1",
                    fix="Give a share such as 0.99.",
                )
            if self.int8_exclude != "auto":
                raise UsageError(
                    "a target for int8 does nothing unless layers are chosen by it",
                    fix="Give --int8-exclude auto, or leave --int8-target out.",
                )
        if self.clustering not in METHODS:
            raise UsageError(
                f"clustering {self.clustering!r} is unknown",
                fix=f"Use one of {', '.join(METHODS)}.",
            )
        if self.ranges not in RANGES:
            raise UsageError(
                f"ranges {self.ranges!r} are unknown", fix=f"Use one of {', '.join(RANGES)}."
            )
        if self.balance not in BALANCES:
            raise UsageError(
                f"balance {self.balance!r} is unknown", fix=f"Use one of {', '.join(BALANCES)}."
            )
        if not 2 <= self.clusters <= MAX_CLUSTERS:
            raise UsageError(
                f"{self.clusters} clusters are not within 2..{MAX_CLUSTERS}", fix="Use 8 to 256."
            )
        low, high = self.cluster_range or (2, MAX_CLUSTERS)
        if not 2 <= low < high <= MAX_CLUSTERS:
            raise UsageError(
                f"{low}-{high} is not a range of clusters within 2..{MAX_CLUSTERS}",
                fix="Write the lower number first: auto:4-40.",
            )
        try:
            check_covariance(self.covariance)
        except CalibrationError as error:
            raise UsageError(error.problem, fix=error.fix) from error
        if self.covariance != DEFAULT_COVARIANCE and not METHODS[self.clustering].covariances:
            raise UsageError(
                f"covariance {self.covariance} does nothing with clustering {self.clustering}",
                fix="Use --clustering gmm, or leave --covariance out.",
            )
        if self.samples < self.most_clusters:
            raise UsageError(
                f"{self.samples} samples are fewer than {self.most_clusters} clusters",
                fix="Leave samples out to take 60000.",
            )
        for name in ("restarts", "samples", "calibration_frames", "agreement_frames"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} is {value}", fix="Use 1 or more.")


def _remembered() -> list[str]:
    options = {each.name: each.metadata.get(KEY) for each in fields(FitSettings)}
    # The range belongs to the option that gives the number.
    options["cluster_range"] = options["clusters"]
    return [name for name, told in options.items() if told is not None and told.remembered]
