"""What can be asked of a fit, and what a later export takes over."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from aeseg_edge.calibration.settings import FitSettings


def test_what_is_remembered_comes_back_through_json() -> None:
    made = FitSettings(cluster_range=(4, 9), clustering="kmeans", int8_exclude=("a", "b"), seed=3)
    told = FitSettings.recalled(json.loads(json.dumps(made.remembered())))
    assert list(told) == [
        *("clusters", "cluster_range", "clustering", "covariance", "balance"),
        *("int8_exclude", "int8_target"),
    ]
    assert FitSettings(**told) == FitSettings(
        cluster_range=(4, 9), clustering="kmeans", int8_exclude=("a", "b")
    )


def test_older_trainings_remember_less_and_newer_ones_more() -> None:
    assert FitSettings.recalled({"clusters": 4, "of_tomorrow": 1}) == {"clusters": 4}


@pytest.mark.parametrize(
    "module",
    [
        "aeseg_edge.calibration.settings",
        "aeseg_edge.calibration.report.devices",
        "aeseg_edge.export.settings",
    ],
)
def test_settings_need_no_package_of_a_host(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit(bool({{'torch', 'onnx', 'sklearn'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
