"""What can be asked of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from aeseg_edge.errors import CalibrationError, UsageError

from .balance import BALANCES
from .clustering import MAX_CLUSTERS, METHODS
from .mixture import DEFAULT_COVARIANCE, check_covariance
from .starts import RESTARTS


@dataclass(frozen=True)
class FitSettings:
    """How centres and ranges are fitted.

    Attributes:
        clusters: K.
        cluster_range: Lowest and highest K to choose from by ``choose.CRITERION``; ``clusters``
            does not count then. None for the K of ``clusters``.
        clustering: ``kmeans``, ``spherical`` or ``gmm``.
        covariance: With ``gmm``: ``tied``, ``diag`` or ``spherical``.
        balance: ``regions`` clusters one vector a region of each frame, ``none`` latents.
        restarts: K-means starts; three times as many where the clusters are not stable.
        samples: Latents to cluster.
        seed: Makes everything here repeatable.
        calibration_frames: Frames for the INT8 ranges.
        agreement_frames: Other frames for the agreement with fp32.
        minimum_agreement: Gate, 0..1; an entry below it is not recommended.
        ranges: ``minmax``, ``percentile`` or ``entropy``.
        threads: For ONNX Runtime; its own choice when None.
    """

    clusters: int = 27
    cluster_range: tuple[int, int] | None = None
    clustering: str = "spherical"
    covariance: str = DEFAULT_COVARIANCE
    balance: str = "none"
    restarts: int = RESTARTS
    samples: int = 60_000
    seed: int = 0
    calibration_frames: int = 48
    agreement_frames: int = 24
    minimum_agreement: float = 0.95
    ranges: str = "minmax"
    threads: int | None = None

    @property
    def most_clusters(self) -> int:
        """The K, or the highest that may be chosen."""
        return self.clusters if self.cluster_range is None else self.cluster_range[1]

    @property
    def fewest_clusters(self) -> int:
        """The K, or the lowest that may be chosen."""
        return self.clusters if self.cluster_range is None else self.cluster_range[0]

    def __post_init__(self) -> None:
        """Refuse values that make no sense, before any work is done."""
        if not 0.0 <= self.minimum_agreement <= 1.0:
            raise UsageError(
                f"minimum agreement {self.minimum_agreement} is not within 0..1",
                fix="Give a share such as 0.95.",
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
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", fix="Use 1 or more.")
