"""What every verb that makes a bundle says of its precisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aeseg_edge.calibration.score.agreement import Agreement

Agreements = Mapping[tuple[str, str], "Agreement"]
"""By (precision, backend), against fp32."""


def print_below(below: Agreements, gate: float) -> None:
    """Print a warning for each precision that does not reach the gate.

    Args:
        below: Those under the gate.
        gate: Share of equal labels that was asked for, 0..1.
    """
    for (precision, backend), found in below.items():
        print(
            f"WARNING: {precision} for {backend} agrees with fp32 on only "
            f"{100 * found.labels_equal:.1f} % of the labels, below the gate of "
            f"{100 * gate:.1f} %. The bundle marks it not recommended."
        )


def agreement_json(agreements: Agreements, below: Agreements) -> dict[str, Any]:
    """Give the part of ``--json`` that tells of agreement.

    Args:
        agreements: All that were measured.
        below: Those under the gate.

    Returns:
        ``agreement`` and ``below_gate``, keyed ``precision/backend``.
    """
    return {
        "agreement": {f"{p}/{b}": found.to_json() for (p, b), found in agreements.items()},
        "below_gate": [f"{p}/{b}" for p, b in below],
    }
