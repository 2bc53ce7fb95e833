"""No figure in the tables of docs/quality.md is typed by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "quality_table", repository / "tools" / "quality_table.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["quality_table"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_files_say(tool: ModuleType, repository: Path) -> None:
    page = (repository / "docs" / "quality.md").read_text(encoding="utf-8")
    assert tool.fill(page, tool.build(tool.read(repository / "docs" / "quality"))) == page


def test_another_figure_makes_another_page(tool: ModuleType, repository: Path) -> None:
    page = (repository / "docs" / "quality.md").read_text(encoding="utf-8")
    rows = tool.read(repository / "docs" / "quality")
    changed = json.loads(json.dumps(rows))
    next(iter(changed.values()))[0]["figures"]["11.fp32"]["hungarian"]["miou"] += 1.0
    assert tool.fill(page, tool.build(changed)) != page


def test_a_row_gives_mean_and_range_of_its_seeds(tool: ModuleType) -> None:
    assert tool.spread([20.0]) == "20.0"
    assert tool.spread([20.0, 23.0]) == "21.5 (20.0 to 23.0)"


def test_no_file_names_a_path_of_the_machine_that_made_it(repository: Path) -> None:
    for path in (repository / "docs" / "quality").glob("*.json"):
        for command in json.loads(path.read_text(encoding="utf-8"))["commands"].values():
            assert " /" not in command, f"{path.name}: {command}"
