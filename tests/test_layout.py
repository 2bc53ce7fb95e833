"""The layout: rooms of a size that can be overlooked, and a test file for a module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PARTS = ("aeseg_edge", "calibration", "export")
MOST = 13
"""Modules and folders beside each other; ten is the aim."""
ROOMY = {"aeseg_edge": 14, "aeseg_edge/cli/verbs": 20}
"""The top, whose rooms are its table of contents, and one file a verb."""
OF_THE_WHOLE = {"tests", "tests/benchmarks", "tests/examples", "tests/tools", "tests/libcuda"}
"""Tests of what is no module of the three parts."""


def modules(root: Path, part: str) -> Iterator[Path]:
    """Every module of a part, relative to the root; symlinks to other parts are not followed."""
    pending = [root / part]
    while pending:
        folder = pending.pop()
        for entry in sorted(folder.iterdir()):
            if entry.is_symlink() or entry.name.startswith(("_", ".")):
                continue
            if entry.is_dir():
                pending.append(entry)
            elif entry.suffix == ".py":
                yield entry.relative_to(root)


def rooms(root: Path, part: str) -> dict[str, set[str]]:
    """Folder -> names of the modules and folders in it."""
    found: dict[str, set[str]] = {}
    for module in modules(root, part):
        for inner, outer in zip([module, *module.parents], module.parents, strict=False):
            if outer != Path("."):
                found.setdefault(str(outer), set()).add(inner.name)
    return found


def outgrown(root: Path) -> list[str]:
    return [
        f"{folder} has {len(inside)} modules and folders, more than {ROOMY.get(folder, MOST)}"
        for part in PARTS
        for folder, inside in sorted(rooms(root, part).items())
        if len(inside) > ROOMY.get(folder, MOST)
    ]


def astray(root: Path) -> list[str]:
    """Test files that mirror no module: neither test_MODULE*.py nor test_FOLDER.py fits."""
    found = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        folder = path.parent.relative_to(root)
        if str(folder) in OF_THE_WHOLE:
            continue
        source = root / folder.relative_to("tests")
        names = {each.stem for each in source.glob("*.py")} | {source.name}
        tested = path.stem.removeprefix("test_")
        if not any(tested == name or tested.startswith(f"{name}_") for name in names):
            found.append(
                f"{path.relative_to(root)} mirrors no module of {source.relative_to(root)}"
            )
    return found


def literal_choices(root: Path) -> list[str]:
    """Places in cli/ that write choices out, instead of taking them from a table or a field."""
    found = []
    for module in modules(root, "aeseg_edge/cli"):
        for node in ast.walk(ast.parse((root / module).read_text())):
            if isinstance(node, ast.keyword) and node.arg == "choices":
                literals = [each for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
                if any(isinstance(each.value, str) for each in literals):
                    found.append(f"{module}:{node.value.lineno}")
    return found


def openers(root: Path) -> list[str]:
    """Files that open ONNX Runtime sessions."""
    return [
        str(module)
        for part in PARTS
        for module in modules(root, part)
        if re.search(r"\bInferenceSession\(", (root / module).read_text())
    ]


def test_no_room_outgrows_its_size(repository: Path) -> None:
    assert "\n".join(outgrown(repository)) == ""


def test_each_test_file_mirrors_a_module(repository: Path) -> None:
    assert "\n".join(astray(repository)) == ""


def test_the_command_line_writes_no_choices_out(repository: Path) -> None:
    assert "\n".join(literal_choices(repository)) == ""


def test_one_file_opens_sessions_of_onnx_runtime(repository: Path) -> None:
    assert openers(repository) == ["aeseg_edge/backends/session.py"]


def missing_paths(root: Path) -> list[str]:
    """Files and folders that the documents name in code spans, and that are not there."""
    found = []
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        for path in re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.(?:py|js|html))`", page.read_text()):
            tops = (root, root / "aeseg_edge", root / "calibration")
            if not any((top / path).exists() for top in tops):
                found.append(f"{page.relative_to(root)} names {path}")
    return found


def test_documents_name_files_that_are_there(repository: Path) -> None:
    assert missing_paths(repository) == []


def test_what_breaks_the_layout_is_named(tmp_path: Path) -> None:
    files = {
        **{f"calibration/score/m{number}.py": "" for number in range(MOST + 1)},
        "aeseg_edge/cli/verbs/run.py": 'add("--view", choices=("mask", "both"))\n',
        "aeseg_edge/cli/verbs/info.py": 'add("--view", choices=VIEWS)\n',
        "aeseg_edge/segment/decoder.py": "session = onnxruntime.InferenceSession(model)\n",
        "export/pipeline.py": "",
        "tests/test_layout.py": "",
        "README.md": "See `export/pipeline.py` and `segment/encoder.py`.",
        "tests/export/test_pipeline.py": "",
        "tests/export/test_pipelines.py": "",
        "tests/calibration/score/test_m1_twice.py": "",
        "tests/calibration/score/test_score.py": "",
    }
    for file, source in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(source)

    assert outgrown(tmp_path) == ["calibration/score has 14 modules and folders, more than 13"]
    assert astray(tmp_path) == ["tests/export/test_pipelines.py mirrors no module of export"]
    assert literal_choices(tmp_path) == ["aeseg_edge/cli/verbs/run.py:1"]
    assert openers(tmp_path) == ["aeseg_edge/segment/decoder.py"]
    assert missing_paths(tmp_path) == ["README.md names segment/encoder.py"]


@pytest.mark.parametrize("part", PARTS)
def test_every_folder_of_modules_says_what_is_in_it(part: str, repository: Path) -> None:
    for folder in rooms(repository, part):
        tree = ast.parse((repository / folder / "__init__.py").read_text())
        assert ast.get_docstring(tree), folder
