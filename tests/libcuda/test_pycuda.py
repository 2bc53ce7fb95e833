"""Real pycuda under the real backend, over a CUDA driver library of our own."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

HERE = Path(__file__).parent
FRAMES = 1000

pytestmark = pytest.mark.pycuda


def pycuda_symbols() -> set[str]:
    """Names of the driver library that pycuda's extension module is linked to."""
    spec = importlib.util.find_spec("pycuda")
    assert spec is not None
    assert spec.submodule_search_locations
    (module,) = Path(spec.submodule_search_locations[0]).glob("_driver*.so")
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(module)], check=True, capture_output=True, text=True
    ).stdout
    return set(re.findall(r" U (cu[A-Z]\w*)", listing))


def compile_libcuda(folder: Path, source: str | None = None) -> Path:
    """Compile our library, with a "not supported" for every name it does not have."""
    source = source or (HERE / "libcuda.c").read_text()
    own = set(re.findall(r"^int (cu\w+)\(", source, re.MULTILINE))
    missing = sorted(pycuda_symbols() - own)
    stubs = "".join(f"int {name}(void) {{ return aeseg_not_supported(); }}\n" for name in missing)
    (folder / "libcuda.c").write_text(source + stubs)
    library = folder / "libcuda.so.1"
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-pthread"]
    subprocess.run(
        [*command, f"-Wl,-soname,{library.name}", "-o", str(library), str(folder / "libcuda.c")],
        check=True,
    )
    return library


def run(library: Path, frames: int) -> tuple[dict[str, object], str]:
    """What the scenario says, and what it wrote to standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.libcuda.scenario", str(library), str(frames)],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result, done.stderr


def test_a_thousand_frames_from_two_threads_are_right_and_leave_nothing(tmp_path: Path) -> None:
    result, said = run(compile_libcuda(tmp_path), FRAMES)
    assert result["faults"] == []
    assert result["left"] == {}
    assert result["gpu"] == ["malloc", "8.7", 8]
    # pycuda warns there when it cleans up after somebody.
    assert said == ""


def test_what_is_held_while_it_runs_is_counted(tmp_path: Path) -> None:
    """The counts are not zero because nothing is counted."""
    result, _ = run(compile_libcuda(tmp_path), 2)
    # Three for the codebook, five for each of two frames under way.
    assert result["held"] == {
        "device allocations": 13,
        "pinned allocations": 13,
        "retained contexts": 1,
        "streams": 2,
        "events": 10,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {
            "await(work->event, work->count);\n        break;": "break;",
            "memcpy(bytes, work->host, work->size);": (
                "{ nanosleep(&(struct timespec){0, 5000000}, 0);"
                " memcpy(bytes, work->host, work->size); }"
            ),
        },
        {"memcpy(bytes, work->host, work->size);": ";"},
    ],
    ids=["a stream that ignores events", "a copy that does nothing"],
)
def test_the_scenario_notices_a_device_that_does_not_keep_its_promises(
    changes: dict[str, str], tmp_path: Path
) -> None:
    source = (HERE / "libcuda.c").read_text()
    for old, new in changes.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    result, _ = run(compile_libcuda(tmp_path, source), 20)
    # Or the frame's arrival is not over when the engine is done, so its time cannot be asked.
    assert re.search("labels differ|cuEventElapsedTime failed", str(result["faults"]))
