"""A package that is missing, and one that is there and does not load."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from aeseg_edge.errors import MissingDependency
from aeseg_edge.support.require import install, optional, require, whole


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
    assert caught.value.fix == f"Install it: {install('web')}."
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


class _Installed:
    def __init__(self, origin: object) -> None:
        self._origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self._origin is None else json.dumps(self._origin)


WHEEL = "aeseg_edge-1.0-py3-none-any.whl"
GIT = {"vcs": "git", "commit_id": "abc123"}


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file:///a%20b/clone", "dir_info": {}}, "pip install '/a b/clone[web]'"),
        ({"url": f"file:///w/{WHEEL}", "archive_info": {}}, f"pip install '/w/{WHEEL}[web]'"),
        (
            {"url": f"https://me:secret@host/{WHEEL}", "archive_info": {}},
            f"pip install 'aeseg_edge[web] @ https://host/{WHEEL}'",
        ),
        (
            {"url": "https://host/it.git", "vcs_info": GIT},
            "pip install 'aeseg_edge[web] @ git+https://host/it.git@abc123'",
        ),
    ],
)
def test_an_extra_is_added_the_way_the_package_was_installed(
    origin: object, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: _Installed(origin))
    assert install("web", root=tmp_path) == command
    (tmp_path / "setup.py").touch()
    assert install("web", root=tmp_path) == f"pip install -e '{tmp_path}[web]'"


def test_no_name_that_anybody_could_take_is_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    for found in (lambda name: _Installed(None), nothing):
        monkeypatch.setattr(metadata, "distribution", found)
        assert ".whl[web]'" in install("web", root=tmp_path)
    package = Path(__file__).parents[3]
    rooms = [package / name for name in ("aeseg_edge", "calibration", "export", "docs")]
    texts = [path for room in rooms for end in ("py", "md") for path in room.rglob(f"*.{end}")]
    assert len(texts) > 100
    named = [path for path in texts if "install 'aeseg_edge" in path.read_text(encoding="utf-8")]
    assert named == []
