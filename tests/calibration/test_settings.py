"""What can be asked of a fit, and what a later export takes over."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.cli.fields import add_options
from aeseg_edge.cli.options import fit_settings
from aeseg_edge.errors import UsageError


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
    ("asked", "says"),
    [
        ({"covariance": "diag"}, "covariance diag does nothing with clustering spherical"),
        ({"ranges": "median"}, "ranges 'median' are unknown"),
        ({"samples": 20}, "20 samples are fewer than 27 clusters"),
        ({"samples": 20, "cluster_range": (4, 21)}, "20 samples are fewer than 21 clusters"),
        ({"int8_target": 0.9}, "a target for int8 does nothing"),
    ],
)
def test_what_would_do_nothing_is_refused(asked: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        FitSettings(**asked)


def test_a_covariance_that_an_older_training_kept_for_nothing_is_left_out() -> None:
    told = FitSettings.recalled({"clustering": "kmeans", "covariance": "diag"})
    assert FitSettings(**told) == FitSettings(clustering="kmeans")
    told = FitSettings.recalled({"clustering": "gmm", "covariance": "diag"})
    assert FitSettings(**told).covariance == "diag"


@pytest.mark.parametrize(
    ("said", "before", "covariance"),
    [
        ("kmeans", {"clustering": "gmm", "covariance": "diag"}, "tied"),
        ("gmm", {"clustering": "gmm", "covariance": "diag"}, "diag"),
        (None, {"clustering": "gmm", "covariance": "diag"}, "diag"),
    ],
)
def test_a_covariance_goes_with_the_clustering_that_it_was_asked_for(
    said: str | None, before: dict[str, str], covariance: str
) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, FitSettings)
    options = parser.parse_args([] if said is None else ["--clustering", said])
    assert fit_settings(options, before).covariance == covariance


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
