"""A package that is missing, and one that is there and does not load."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aeseg_edge.errors import MissingDependency
from aeseg_edge.support.require import optional, require, whole


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of a package called half_installed."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "half_installed", raising=False)
    return tmp_path / "half_installed.py"


def test_what_is_there_is_given() -> None:
    assert require("json.decoder").JSONDecoder


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.part"])
def test_a_missing_package_is_named_with_its_extra(module: str) -> None:
    with pytest.raises(MissingDependency, match="the page needs no_such_package, which") as caught:
        require(module, extra="web", for_="the page")
    assert caught.value.fix == "Install it: pip install 'aeseg_edge[web]'."
    assert optional(module) is None


@pytest.mark.parametrize(
    "source",
    [
        "raise OSError('libGL.so.1: cannot open shared object file')",
        "raise AttributeError('_ARRAY_API not found')",
        "raise RuntimeError('built for another numpy')",
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
        "import no_such_package",
    ],
)
def test_a_package_that_does_not_load_is_no_traceback(package: Path, source: str) -> None:
    package.write_text(source)
    with pytest.raises(
        MissingDependency, match="half_installed is installed but does not load"
    ) as caught:
        require("half_installed")
    assert "--force-reinstall half_installed" in caught.value.fix
    assert optional("half_installed") is None


@pytest.mark.parametrize(
    "told",
    ["numpy.core.multiarray failed to import", "_ARRAY_API not found", "numpy.dtype size changed"],
)
@pytest.mark.parametrize("version", ["1.26.4", "2.4.6"])
def test_a_build_for_numpy_1_beside_numpy_2_is_named(
    package: Path, monkeypatch: pytest.MonkeyPatch, told: str, version: str
) -> None:
    monkeypatch.setattr("numpy.__version__", version)
    package.write_text(f"raise ImportError({told!r})")
    with pytest.raises(MissingDependency) as caught:
        require("half_installed")
    assert ("pip install 'numpy<2'" in caught.value.fix) == version.startswith("2")


def test_what_is_left_of_a_package_is_not_taken_for_it(package: Path) -> None:
    package.write_text("there = 1")
    module = require("half_installed")
    assert whole(module, "there") is module
    with pytest.raises(MissingDependency, match=r"not whole: .*half_installed\.py\) has no gone"):
        whole(module, "there", "gone")
