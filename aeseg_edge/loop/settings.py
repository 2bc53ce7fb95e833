"""How long a loop runs, and which frames of its sources it takes."""

from __future__ import annotations

from dataclasses import dataclass

from aeseg_edge.support.options import natural, option, positive, seconds

DROPS = ("auto", "latest", "none")


@dataclass(frozen=True)
class LoopSettings:
    """Arguments of ``CameraLoop``."""

    frames: int | None = option(None, parse=positive, metavar="N", help="stop after N frames")
    duration: float | None = option(None, parse=seconds, metavar="S", help="stop after S seconds")
    drop: str = option(
        "auto",
        choices=DROPS,
        help="latest: always the newest frame, as cameras want it; none: every frame, as "
        "recordings want it (default: {default})",
        shown="by the sources",
    )
    drift_every: int = option(
        10,
        parse=natural,
        metavar="N",
        help="look every N frames how unlike the footage a camera's scene is (default {default}; "
        "0 never)",
    )
