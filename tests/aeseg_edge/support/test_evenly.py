"""Some of many, evenly."""

from __future__ import annotations

from aeseg_edge.support.evenly import evenly, middles


def test_first_and_last_are_among_what_is_chosen_evenly() -> None:
    assert evenly(9, 3).tolist() == [0, 4, 8]
    assert evenly(6, 4).tolist() == [0, 2, 3, 5]
    assert evenly(6, 4, rounded=False).tolist() == [0, 1, 3, 5]
    assert evenly(3, 9).tolist() == evenly(3, 9, rounded=False).tolist() == [0, 1, 2]
    assert evenly(5, 1).tolist() == [0]


def test_middles_are_those_of_equal_parts() -> None:
    assert middles(10, 2) == [2, 7]
    assert middles(3, 5) == [0, 1, 2]
