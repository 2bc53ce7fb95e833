"""How strongly frames are mixed, and how much labels flicker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aeseg_edge.errors import UsageError

if TYPE_CHECKING:
    from aeseg_edge.bundle.manifest import Manifest

GATED_STRENGTH = 0.9
PLAIN_STRENGTH = 0.5
"""Without a gate everything that moves is smeared as well: less is better there."""


def default_strength(manifest: Manifest) -> float:
    """What ``--smooth`` without a value means for a bundle; docs/reliability.md has figures."""
    return GATED_STRENGTH if manifest.gate is not None else PLAIN_STRENGTH


def check_strength(strength: float) -> float:
    """Refuse a strength not within 0 up to below 1 (it would forget nothing): UsageError."""
    if not 0.0 <= strength < 1.0:
        raise UsageError(
            f"smoothing {strength} is not within 0 up to below 1", fix="Use 0.9, for instance."
        )
    return strength
