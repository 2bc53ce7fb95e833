"""How long a bundle is timed."""

from __future__ import annotations

from dataclasses import dataclass

from aeseg_edge.support.options import option, positive, seconds


def warmup(text: str) -> float:
    """Parse a time of at least 0."""
    return 0.0 if text in ("0", "0.0") else seconds(text)


@dataclass(frozen=True)
class BenchSettings:
    """How long ``aeseg bench`` times a bundle."""

    frames: int = option(
        300,
        parse=positive,
        metavar="N",
        help="frames to time (default {default}); side by side: of each, over all rounds",
    )
    warmup: float = option(
        2.0,
        parse=warmup,
        metavar="SECONDS",
        help="run for so long before timing (default {default})",
    )
    rounds: int = option(
        15,
        parse=positive,
        metavar="N",
        help="side by side: rounds that --frames are spread over (default {default})",
    )
