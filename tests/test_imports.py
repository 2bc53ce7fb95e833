"""What importing loads. Which room may import which is held by import-linter (pyproject.toml)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import aeseg_edge

# Never loaded by importing the runtime: a device may lack them, and each takes time to load.
OPTIONAL = {
    "cv2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pycuda",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "starlette",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "uvicorn",
}


def python_files(folder: Path) -> list[Path]:
    """All modules below a folder, not following symlinks to other folders."""
    if not folder.is_dir():
        return []
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink() or entry.name.startswith("."):
            continue
        found += python_files(entry) if entry.is_dir() else [entry] * (entry.suffix == ".py")
    return found


def top_level_imports(root: Path) -> list[str]:
    """Places that import `export` or `calibration` by the folder's name, not the package's."""
    found = []
    for folder in (
        "aeseg_edge",
        "export",
        "calibration",
        "tests",
        "tools",
        "benchmarks",
        "examples",
    ):
        for path in python_files(root / folder):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                found += [
                    f"{path.relative_to(root)}:{node.lineno} imports {name}"  # type: ignore[attr-defined]
                    for name in names
                    if name.partition(".")[0] in {"export", "calibration"}
                ]
    return found


def test_nobody_imports_the_folders_by_their_own_names(repository: Path, tmp_path: Path) -> None:
    assert top_level_imports(repository) == []
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "a.py").write_text("import calibration.fit\nfrom export import b\n")
    assert top_level_imports(tmp_path) == [
        "export/a.py:1 imports calibration.fit",
        "export/a.py:2 imports export",
    ]


# --- what is loaded -------------------------------------------------------------------------------

# Refuses the optional packages, so that the test holds where they are not installed as well.
PROBE = """
import importlib, json, sys

modules, optional = json.loads(sys.argv[1])
asked_for = set()

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in optional:
            asked_for.add(name.partition(".")[0])
            raise ModuleNotFoundError(f"refused: {name}", name=name)

sys.meta_path.insert(0, Refuse())
loaded_by = {}
for module in modules:
    for name in [name for name in sys.modules if name.partition(".")[0] == "aeseg_edge"]:
        del sys.modules[name]
    asked_for.clear()
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        if not asked_for:
            raise
    if asked_for:
        loaded_by[module] = sorted(asked_for)
print(json.dumps(loaded_by))
"""


def optional_packages_loaded(root: Path, modules: list[str]) -> dict[str, list[str]]:
    """Import modules in a fresh process, each as if it came first; which packages did each load?"""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([modules, sorted(OPTIONAL)])],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    loaded: dict[str, list[str]] = json.loads(done.stdout)
    return loaded


def runtime_modules(root: Path) -> list[str]:
    """All but `__main__`, which is there to run."""
    folder = root / "aeseg_edge"
    files = [path for path in python_files(folder) if path.stem != "__main__"]
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in files]
    return [name.removesuffix(".__init__") for name in names]


def test_importing_any_runtime_module_loads_no_optional_package(repository: Path) -> None:
    modules = runtime_modules(repository)

    assert "aeseg_edge" in modules
    assert "aeseg_edge.cli.main" in modules
    assert optional_packages_loaded(repository, modules) == {}


def test_a_package_loaded_at_import_time_is_named(tmp_path: Path) -> None:
    sources = {
        "aeseg_edge/__init__.py": "",
        "aeseg_edge/first.py": "from rich.console import Console",
        "aeseg_edge/second.py": "from . import first",
        "aeseg_edge/third.py": "def draw():\n    import cv2",
        "aeseg_edge/fourth.py": "try:\n    import torch\nexcept ImportError:\n    torch = None",
    }
    for file, source in sources.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(source)

    assert optional_packages_loaded(tmp_path, runtime_modules(tmp_path)) == {
        "aeseg_edge.first": ["rich"],
        "aeseg_edge.fourth": ["torch"],
        "aeseg_edge.second": ["rich"],
    }


# --- the public names -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", aeseg_edge.__all__)
def test_a_public_name_is_loaded_on_use_and_listed(name: str) -> None:
    assert getattr(aeseg_edge, name) is not None
    assert name in dir(aeseg_edge)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'aeseg_edge' has no attribute 'Segmentor'"):
        aeseg_edge.Segmentor  # type: ignore[attr-defined]  # noqa: B018
