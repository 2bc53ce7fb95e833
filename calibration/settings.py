"""What can be asked of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aeseg_edge.calibration.clusters.kmeans import MANY, RESTARTS
from aeseg_edge.calibration.clusters.methods import (
    BALANCES,
    DEFAULT_METHOD,
    MAX_CLUSTERS,
    METHODS,
)
from aeseg_edge.calibration.clusters.mixture import DEFAULT_COVARIANCE, check_covariance
from aeseg_edge.errors import CalibrationError, UsageError


@dataclass(frozen=True)
class FitSettings:
    """How centres and ranges are fitted.

    Attributes:
        clusters: K.
        cluster_range: Lowest and highest K to choose from by ``choose.CRITERION``; ``clusters``
            does not count then. None for the K of ``clusters``.
        clustering: A key of ``METHODS``.
        covariance: With a mixture: ``tied``, ``diag`` or ``spherical``.
        balance: ``regions`` clusters one vector a region of each frame, ``none`` latents.
        restarts: K-means starts; 16 when None, fewer beyond 32 clusters; up to 32 clusters three
            times as many where the clusters of halves of the frames disagree.
        samples: Latents to cluster.
        seed: Makes everything here repeatable.
        calibration_frames: Frames for the INT8 ranges.
        agreement_frames: Other frames for the agreement with fp32.
        minimum_agreement: Gate, 0..1; an entry below it is not recommended.
        int8_exclude: Names of convolutions that stay in floating point; or ``auto`` for those
            that buy most agreement, until ``int8_target`` is met.
        int8_target: Agreement that ``auto`` goes for; the gate when None.
        ranges: ``minmax``, ``percentile`` or ``entropy``.
        threads: For ONNX Runtime; its own choice when None.
    """

    clusters: int = 27
    cluster_range: tuple[int, int] | None = None
    clustering: str = DEFAULT_METHOD
    covariance: str = DEFAULT_COVARIANCE
    balance: str = "none"
    restarts: int | None = None
    samples: int = 60_000
    seed: int = 0
    calibration_frames: int = 48
    agreement_frames: int = 24
    minimum_agreement: float = 0.95
    int8_exclude: tuple[str, ...] | Literal["auto"] = ()
    int8_target: float | None = None
    ranges: str = "minmax"
    threads: int | None = None

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
        for name in ("restarts", "samples", "calibration_frames", "agreement_frames"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} is {value}", fix="Use 1 or more.")
