"""What may import what: cli -> export -> calibration -> runtime, and never the other way."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import aeseg_edge

# The folder of each part below the root, and the package that it is when installed.
PARTS = {
    "aeseg_edge": "aeseg_edge",
    "export": "aeseg_edge.export",
    "calibration": "aeseg_edge.calibration",
}
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


# --- reading imports ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One imported name: `from a.b import c` is a.b.c, which also stands for a and a.b."""

    file: str
    line: int
    importer: str
    name: str
    lazy: bool

    def reaches(self, package: str) -> bool:
        return within(self.name, package)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.importer} imports {self.name}"


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


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


def module_name(path: Path, folder: Path, package: str) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join([package, *parts]).removesuffix(".__init__")


def package_imports(root: Path) -> list[Import]:
    """Every import statement of the three parts, relative ones resolved to absolute names."""
    found: list[Import] = []
    for folder, package in PARTS.items():
        for path in python_files(root / folder):
            name = module_name(path, root / folder, package)
            found += file_imports(path, root, name)
    return found


def file_imports(path: Path, root: Path, importer: str) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    inside = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    file = str(path.relative_to(root))
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, lazy = pending.pop()
        for name in imported_names(node, inside):
            yield Import(file, node.lineno, importer, name, lazy)  # type: ignore[attr-defined]
        lazy = lazy or runs_later(node)
        pending += [(child, lazy) for child in ast.iter_child_nodes(node)]


def runs_later(node: ast.AST) -> bool:
    """Whether what stands inside runs after the import of the module, or only in a type checker."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def imported_names(node: ast.AST, inside: str) -> list[str]:
    """The absolute names that one node imports; `inside` is the package it stands in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start = resolve("." * node.level + (node.module or ""), inside)
        return [f"{start}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args:
        called = ast.unparse(node.func).rpartition(".")[2]
        first = node.args[0]
        if called in {"import_module", "__import__"} and isinstance(first, ast.Constant):
            return [resolve(str(first.value), inside)]
    return []


def resolve(name: str, inside: str) -> str:
    level = len(name) - len(name.lstrip("."))
    if level == 0:
        return name
    package = inside.split(".")[: len(inside.split(".")) - level + 1]
    return ".".join([*package, *filter(None, [name[level:]])])


def part_of(module: str) -> str:
    """The folder that a module lives in: export, calibration, or aeseg_edge for the runtime."""
    for folder in ("export", "calibration"):
        if within(module, PARTS[folder]):
            return folder
    return "aeseg_edge"


# --- the rules: each takes a root folder and names what breaks it ---------------------------------


def runtime_imports_upward(root: Path) -> list[str]:
    return [
        str(found)
        for found in package_imports(root)
        if part_of(found.importer) == "aeseg_edge"
        and (found.reaches("aeseg_edge.export") or found.reaches("aeseg_edge.calibration"))
        and not (within(found.importer, "aeseg_edge.cli") and found.lazy)
    ]


def calibration_imports_export(root: Path) -> list[str]:
    return [
        str(found)
        for found in package_imports(root)
        if part_of(found.importer) == "calibration" and found.reaches("aeseg_edge.export")
    ]


def torch_where_devices_run(root: Path) -> list[str]:
    return [
        str(found)
        for found in package_imports(root)
        if found.reaches("torch")
        and (
            part_of(found.importer) in {"calibration", "aeseg_edge"}
            or found.importer == "aeseg_edge.export.engines.compile"
        )
    ]


def pycuda_outside_its_file(root: Path) -> list[str]:
    return [
        str(found)
        for found in package_imports(root)
        if found.reaches("pycuda") and found.importer != "aeseg_edge.backends.cuda"
    ]


def top_level_export(root: Path) -> list[str]:
    found = package_imports(root)
    for folder in ("tests", "tools", "benchmarks", "examples"):
        for path in python_files(root / folder):
            found += file_imports(path, root, module_name(path, root / folder, folder))
    return [str(one) for one in found if one.reaches("export") or one.reaches("calibration")]


RULES = {
    "the runtime imports neither export nor calibration, but for cli inside a function": (
        runtime_imports_upward
    ),
    "calibration does not import export": calibration_imports_export,
    "the runtime, calibration and export/engine.py import no torch": torch_where_devices_run,
    "only backends/cuda.py imports pycuda": pycuda_outside_its_file,
    "nobody imports a top-level export or calibration": top_level_export,
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_imports_point_one_way(rule: Callable[[Path], list[str]], repository: Path) -> None:
    assert "\n".join(rule(repository)) == ""


def test_every_module_of_the_three_parts_is_read(repository: Path) -> None:
    importers = {found.importer for found in package_imports(repository)}

    assert {part_of(importer) for importer in importers} == set(PARTS)
    assert "aeseg_edge.errors" in importers


PLANTED = {
    "runtime, lazily": (
        runtime_imports_upward,
        "aeseg_edge/loop.py",
        "def run():\n    from .export import train\n",
        "aeseg_edge/loop.py:2: aeseg_edge.loop imports aeseg_edge.export.train",
    ),
    "runtime, from a subpackage": (
        runtime_imports_upward,
        "aeseg_edge/io/sources.py",
        "from ..calibration.frames import choose\n",
        "aeseg_edge/io/sources.py:1: aeseg_edge.io.sources imports "
        "aeseg_edge.calibration.frames.choose",
    ),
    "runtime, by its full name": (
        runtime_imports_upward,
        "aeseg_edge/__init__.py",
        "from aeseg_edge import export\n",
        "aeseg_edge/__init__.py:1: aeseg_edge imports aeseg_edge.export",
    ),
    "cli, when it is loaded": (
        runtime_imports_upward,
        "aeseg_edge/cli/train.py",
        "import sys\n\nfrom .. import calibration\n",
        "aeseg_edge/cli/train.py:3: aeseg_edge.cli.train imports aeseg_edge.calibration",
    ),
    "calibration": (
        calibration_imports_export,
        "calibration/__init__.py",
        "from ..export import graph\n",
        "calibration/__init__.py:1: aeseg_edge.calibration imports aeseg_edge.export.graph",
    ),
    "calibration, by import_module": (
        calibration_imports_export,
        "calibration/ranges.py",
        "import importlib\n\nimportlib.import_module('..export', __package__)\n",
        "calibration/ranges.py:3: aeseg_edge.calibration.ranges imports aeseg_edge.export",
    ),
    "torch in calibration": (
        torch_where_devices_run,
        "calibration/clustering.py",
        "def fit():\n    import torch.nn\n",
        "calibration/clustering.py:2: aeseg_edge.calibration.clustering imports torch.nn",
    ),
    "torch in the engine builder": (
        torch_where_devices_run,
        "export/engines/compile.py",
        "from torch import nn\n",
        "export/engines/compile.py:1: aeseg_edge.export.engines.compile imports torch.nn",
    ),
    "pycuda": (
        pycuda_outside_its_file,
        "aeseg_edge/backends/tensorrt.py",
        "class Backend:\n    def open(self):\n        import pycuda.driver as drv\n",
        "aeseg_edge/backends/tensorrt.py:3: aeseg_edge.backends.tensorrt imports pycuda.driver",
    ),
    "a top-level export in a test": (
        top_level_export,
        "tests/export/test_train.py",
        "from export import train\n",
        "tests/export/test_train.py:1: tests.export.test_train imports export.train",
    ),
    "a top-level calibration": (
        top_level_export,
        "export/pipeline.py",
        "import calibration.ranges\n",
        "export/pipeline.py:1: aeseg_edge.export.pipeline imports calibration.ranges",
    ),
}


@pytest.mark.parametrize(
    ("rule", "file", "source", "message"), PLANTED.values(), ids=PLANTED.keys()
)
def test_a_planted_import_is_named_with_its_line(
    rule: Callable[[Path], list[str]], file: str, source: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)

    assert rule(tmp_path) == [message]


def test_imports_that_point_the_right_way_are_let_through(tmp_path: Path) -> None:
    allowed = {
        "aeseg_edge/cli/__init__.py": "def main():\n    from ..calibration import metrics\n",
        "aeseg_edge/cli/train.py": "def train():\n    from ..export.pipeline import train\n",
        "aeseg_edge/cli/types.py": "if TYPE_CHECKING:\n    from ..export import pipeline\n",
        "aeseg_edge/backends/cuda.py": "def driver():\n    import pycuda.driver\n",
        "export/train.py": "import torch\nfrom ..calibration import ranges\nfrom . import graph\n",
        "calibration/ranges.py": "from ..codebook import Codebook\nfrom .frames import choose\n",
        "tests/test_train.py": "from aeseg_edge.export import train\n",
    }
    for file, source in allowed.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(source)

    assert [rule(tmp_path) for rule in RULES.values()] == [[]] * len(RULES)


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
    return [module_name(path, folder, "aeseg_edge") for path in files]


def test_importing_any_runtime_module_loads_no_optional_package(repository: Path) -> None:
    modules = runtime_modules(repository)

    assert "aeseg_edge" in modules
    assert not any(part_of(module) != "aeseg_edge" for module in modules)
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
