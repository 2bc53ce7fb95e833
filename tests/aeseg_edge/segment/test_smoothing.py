"""How strongly frames are smoothed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aeseg_edge.errors import UsageError
from aeseg_edge.segment.smoothing import check_strength, default_strength


def test_strengths_have_a_range_and_a_default_by_bundle(v1_bundle) -> None:  # type: ignore[no-untyped-def]
    from aeseg_edge.bundle.archive import Bundle

    old = Bundle.open(v1_bundle).manifest
    assert old.gate is None
    assert default_strength(old) == 0.5
    assert default_strength(replace(old, gate=0.2)) == 0.9
    assert check_strength(0.99) == 0.99
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match="smoothing"):
            check_strength(wrong)
