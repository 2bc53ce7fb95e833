"""The wheel, the pins and the Debian packages: what set-up on a fresh machine stands on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Each folder of the clone, and where a wheel holds it.
PARTS = {
    "aeseg_edge": "aeseg_edge",
    "export": "aeseg_edge/export",
    "calibration": "aeseg_edge/calibration",
}


# --- the wheel ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that building leaves nothing in the clone."""
    target = tmp_path_factory.mktemp("clone")
    for folder in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(repository / folder, target / folder, symlinks=True, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(repository / file, target / file)
    return target


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(clone, tmp_path_factory.mktemp("wheel"))


def build_wheel(clone: Path, folder: Path) -> Path:
    pytest.importorskip("setuptools")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", str(folder), str(clone))
    return next(folder.glob("*.whl"))


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metadata(wheel: Path, file: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(f".dist-info/{file}"))
        return archive.read(name).decode()


def test_the_wheel_holds_every_module_once_under_aeseg_edge(clone: Path, wheel: Path) -> None:
    expected = {
        f"{installed}/{path.relative_to(clone / folder).as_posix()}"
        for folder, installed in PARTS.items()
        for path in (clone / folder).glob("**/*.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }

    with zipfile.ZipFile(wheel) as archive:
        names = Counter(name for name in archive.namelist() if ".dist-info/" not in name)

    assert {name for name in names if name.endswith(".py")} == expected
    assert "aeseg_edge/export/__init__.py" in expected
    assert set(names.values()) == {1}
    assert {name.partition("/")[0] for name in names} == {"aeseg_edge"}


def test_a_clone_without_symlinks_builds_the_same_wheel(
    clone: Path, wheel: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clone, copy, symlinks=True, ignore=shutil.ignore_patterns("build"))
    (copy / "aeseg_edge" / "export").unlink()
    (copy / "aeseg_edge" / "calibration").unlink()

    other = build_wheel(copy, tmp_path / "wheel")

    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(other) as other_archive:
        assert sorted(other_archive.namelist()) == sorted(archive.namelist())


def test_the_wheel_carries_its_type_marker_page_licence_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    page = {f"aeseg_edge/page/static/{name}" for name in ("page.html", "page.css", "main.js")}
    assert {"aeseg_edge/py.typed", "aeseg_edge/calibration/report/page.html"} | page <= names
    assert any(re.search(r"\.dist-info/(licenses/)?LICENSE$", name) for name in names)
    assert "aeseg = aeseg_edge.cli:main" in metadata(wheel, "entry_points.txt")


def test_the_source_distribution_holds_no_tests_and_no_links(clone: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clone, copy, symlinks=True, ignore=shutil.ignore_patterns("build"))
    (copy / "tests").mkdir()
    (copy / "tests" / "test_packaging.py").write_text("")
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path), cwd=copy)

    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        members = archive.getmembers()
    inside = {member.name.partition("/")[2].partition("/")[0] for member in members}

    assert not any(member.issym() or member.islnk() for member in members)
    assert {*PARTS, "LICENSE", "setup.py"} <= inside
    assert "tests" not in inside


def test_the_version_is_the_one_in_the_package(wheel: Path) -> None:
    import aeseg_edge

    assert Parser().parsestr(metadata(wheel, "METADATA"))["Version"] == aeseg_edge.__version__


def test_an_installed_copy_holds_export_and_calibration(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import importlib.util\n"
        "import aeseg_edge.export, aeseg_edge.calibration\n"
        "print(aeseg_edge.export.__file__, aeseg_edge.calibration.__file__)\n"
        "print(importlib.util.find_spec('export'), importlib.util.find_spec('calibration'))\n"
    )

    files, top_level = run(sys.executable, "-c", script, cwd=tmp_path).splitlines()

    assert files == " ".join(
        str(site / "aeseg_edge" / name / "__init__.py") for name in ("export", "calibration")
    )
    assert top_level == "None None"


# --- the pins -------------------------------------------------------------------------------------


def read_pins(repository: Path) -> list[Requirement]:
    lines = (repository / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins_for(pins: list[Requirement], python: str) -> dict[str, list[str]]:
    """Package -> the versions pinned for one Python, on Linux on x86-64."""
    found: dict[str, list[str]] = {}
    for pin in pins:
        if pin.marker is None or pin.marker.evaluate(machine(python)):
            version = str(pin.specifier).removeprefix("==")
            found.setdefault(canonicalize_name(pin.name), []).append(version)
    return found


def machine(python: str, extra: str = "") -> dict[str, str]:
    return {
        "extra": extra,
        "platform_machine": "x86_64",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def test_every_pin_is_one_exact_version(repository: Path) -> None:
    pins = read_pins(repository)

    assert [str(pin) for pin in pins if not re.fullmatch(r"==[^,*]+", str(pin.specifier))] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_no_package_has_two_pins_on_one_python(python: str, repository: Path) -> None:
    pins = pins_for(read_pins(repository), python)

    assert {name: versions for name, versions in pins.items() if len(versions) > 1} == {}


@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_is_pinned_to_a_version_it_admits(
    python: str, repository: Path, wheel: Path
) -> None:
    described = Parser().parsestr(metadata(wheel, "METADATA"))
    extras = described.get_all("Provides-Extra", [])
    pins = pins_for(read_pins(repository), python)

    wrong = []
    checked = set()
    for requirement in map(Requirement, described.get_all("Requires-Dist", [])):
        asked = [extra for extra in ("", *extras) if applies(requirement, python, extra)]
        versions = pins.get(canonicalize_name(requirement.name), [])
        if asked and not admits(requirement.specifier, versions):
            wrong.append(f"{requirement}: pinned to {versions}")
        checked.update(asked)

    assert wrong == []
    assert checked == {"", *extras}


def applies(requirement: Requirement, python: str, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(machine(python, extra))


def admits(specifier: SpecifierSet, versions: list[str]) -> bool:
    return bool(versions) and all(specifier.contains(version) for version in versions)


def test_python_3_10_keeps_the_numpy_of_jetpack_6(repository: Path) -> None:
    assert pins_for(read_pins(repository), "3.10")["numpy"] == ["1.26.4"]


def test_what_the_makefile_installs_by_name_is_pinned(repository: Path) -> None:
    lines = (repository / "Makefile").read_text().splitlines()
    installs = [line.partition("$(PIP_INSTALL)")[2] for line in lines if "$(PIP_INSTALL)" in line]
    named = {word for line in installs for word in line.split() if re.match(r"[a-z]", word)}

    assert "pytest" in named
    assert named - set(pins_for(read_pins(repository), "3.10")) == set()


# --- the Debian packages --------------------------------------------------------------------------


def test_the_readme_names_the_debian_packages_that_ci_installs(repository: Path) -> None:
    readme = (repository / "README.md").read_text()
    script = (repository / ".ci" / "run").read_text()
    installed = re.search(r"^debian_packages=\((.*)\)$", script, flags=re.MULTILINE)
    named = re.search(r"^Debian packages:(.*)$", readme, flags=re.MULTILINE)

    assert installed is not None, ".ci/run has no line: debian_packages=(...)"
    assert named is not None, "README.md has no line that starts with: Debian packages:"
    assert re.findall(r"`([^`]+)`", named[1]) == installed[1].split()
