"""The doctor tells what is there and what to do, and says 1 only for what is needed."""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aeseg_edge.errors import UsageError
from aeseg_edge.measure import doctor
from aeseg_edge.measure.doctor import Check, camera_formats, diagnose, healthy
from tests.doubles import cuda
from tests.doubles.tensorrt import make_module

MEMINFO = (
    "MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable: {available} kB\nSwapTotal: 4194304 kB\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine's files: a PC with enough memory."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "dev").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO.format(available=4000000))
    return tmp_path


@pytest.fixture
def jetson(root: Path) -> Path:
    """A Jetson Orin Nano with JetPack 6.2."""
    for name, text in {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def look(root: Path, backend: str = "auto", **commands: str) -> dict[str, Check]:
    def command(argv: Sequence[str]) -> str | None:
        return commands.get(argv[0])

    rows = diagnose(backend, cache_dir=root / "cache", root=root, command=command)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def without(patch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        patch.setitem(sys.modules, name, None)


def with_gpu(patch: pytest.MonkeyPatch, version: str = "10.3.0") -> cuda.Gpu:
    gpu = cuda.Gpu()
    cuda.install(gpu, patch)
    patch.setitem(sys.modules, "tensorrt", make_module(gpu, version=version))
    return gpu


def test_every_row_has_something_found_and_a_fix_where_it_is_not_fine(root: Path) -> None:
    for row in look(root).values():
        assert row.found
        assert "\n" not in row.found + row.fix
        if row.ok is False:
            assert row.fix


def test_a_pc_without_tensorrt_is_healthy_for_onnx_runtime_and_not_for_tensorrt(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    without(monkeypatch, "tensorrt", "pycuda")
    for backend in ("auto", "onnxruntime"):
        rows = look(root, backend)
        assert healthy(list(rows.values()))
        assert rows["TensorRT"].ok is None
    rows = look(root, "tensorrt")
    assert not healthy(list(rows.values()))
    assert rows["TensorRT"].ok is False
    assert "TensorRT is not importable" in rows["TensorRT"].found
    assert rows["GPU through pycuda"].ok is False
    assert "nvcc on PATH" in rows["GPU through pycuda"].fix


def test_a_machine_with_no_backend_at_all_is_not_healthy(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "tensorrt", "pycuda", "onnxruntime")
    rows = look(root)
    assert rows["ONNX Runtime"].ok is False
    assert "[cpu]'" in rows["ONNX Runtime"].fix
    assert not healthy(list(rows.values()))


LEFTOVERS = {
    "empty": "",
    "raises": "raise OSError('libthing.so.10: file too short')",
    "another numpy": "raise ImportError('numpy.core.multiarray failed to import')",
    "odd names": "__version__ = None; init = Error = Device = Runtime = imread = 1; "
    "InferenceSession = SessionOptions = 2",
}


@pytest.mark.parametrize("source", LEFTOVERS.values(), ids=LEFTOVERS)
@pytest.mark.parametrize(
    ("module", "row"),
    [
        ("cv2", "OpenCV"),
        ("onnxruntime", "ONNX Runtime"),
        ("tensorrt", "TensorRT"),
        ("pycuda.driver", "GPU through pycuda"),
    ],
)
def test_what_is_left_of_a_package_is_a_row_and_not_a_crash(
    root: Path, monkeypatch: pytest.MonkeyPatch, module: str, row: str, source: str
) -> None:
    folder = root / "left" / module.replace(".", "/")
    folder.mkdir(parents=True)
    (root / "left" / module.partition(".")[0] / "__init__.py").touch()
    (folder / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(root / "left")
    package = module.partition(".")[0]
    monkeypatch.setattr("numpy.__version__", "2.4.6")
    # What was loaded before is put back after the test.
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    rows = look(root, "tensorrt" if module in ("tensorrt", "pycuda.driver") else "onnxruntime")
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{package}.")]:
        del sys.modules[name]
    assert rows[row].ok is False
    assert rows[row].fix
    if "numpy" in source:
        assert "pip install 'numpy<2'" in rows[row].fix


@pytest.mark.parametrize("loses", [False, True])
def test_how_int8_is_computed_on_this_cpu_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, loses: bool
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(doctor, "saturates", lambda _: loses)
    row = look(root)["int8 on this CPU"]
    assert row.ok is (None if loses else True)
    assert "exact" in row.found
    assert ("VNNI" in row.found) == loses


def test_a_gpu_is_described_and_given_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = with_gpu(monkeypatch)
    without(monkeypatch, "onnxruntime")
    rows = look(root, "tensorrt")
    assert rows["TensorRT"] == Check("TensorRT", True, "10.3.0")
    assert rows["GPU through pycuda"].ok
    for part in ("Double, compute capability 8.7", "8 multiprocessors", "CUDA driver 12.6"):
        assert part in rows["GPU through pycuda"].found
    assert rows["ONNX Runtime"].ok is None
    assert gpu.leaks() == {}


def test_a_gpu_that_fails_is_a_row_and_not_a_crash(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch).fail_at = ("init", 0)
    rows = look(root, "tensorrt")
    assert rows["GPU through pycuda"].ok is False
    assert "CUDA does not start" in rows["GPU through pycuda"].found


def test_tensorrt_8_is_named_with_the_jetpack_to_move_to(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, version="8.6.2")
    row = look(root, "tensorrt")["TensorRT"]
    assert row.ok is False
    assert "JetPack 6.1" in row.fix


def test_a_jetson_is_described_with_its_power_mode_and_clock(jetson: Path) -> None:
    rows = look(jetson, nvpmodel="NV Power Mode: 15W\n0\n")
    assert "Orin Nano" in rows["JetPack"].found
    assert "L4T 36.4.3" in rows["JetPack"].found
    assert rows["JetPack"].ok
    power = rows["power mode and clocks"]
    assert power.found == "mode 15W, GPU at 306 of 1020 MHz"
    assert "nvpmodel -m 0" in power.fix
    assert power.ok is None
    fast = look(jetson, nvpmodel="NV Power Mode: MAXN_SUPER\n2\n")["power mode and clocks"]
    assert (fast.ok, fast.fix) == (True, "")


def test_an_old_jetpack_is_told_to_be_flashed(jetson: Path) -> None:
    (jetson / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 3.0, GCID: 1")
    row = look(jetson)["JetPack"]
    assert row.ok is None
    assert "JetPack 6.1 or later" in row.fix


def test_little_memory_is_advice_where_engines_are_built(jetson: Path) -> None:
    assert look(jetson)["memory"].ok
    (jetson / "proc/meminfo").write_text(MEMINFO.format(available=500000))
    row = look(jetson)["memory"]
    assert row.ok is None
    assert "4.0 GiB swap" in row.found
    assert "add swap" in row.fix


@pytest.mark.parametrize(
    ("build", "ok"),
    [("  GStreamer:   YES (1.20.3)", True), ("  GStreamer:   NO", None), ("nothing", None)],
)
def test_gstreamer_in_opencv_is_looked_for(
    build: str, ok: bool | None, jetson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: build)
    row = look(jetson)["GStreamer in OpenCV"]
    assert row.ok is ok
    assert ("pip uninstall" in row.fix) == (ok is None)


def test_a_broken_opencv_is_a_row(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "cv2")
    rows = look(root)
    assert rows["OpenCV"].ok is False
    assert "GStreamer in OpenCV" not in rows


def test_an_unknown_backend_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="cuda"):
        look(root, "cuda")


# Cameras ---------------------------------------------------------------------------------------


def test_a_cameras_formats_are_asked_for_one_after_the_other(tmp_path: Path) -> None:
    device = tmp_path / "video0"
    device.write_text("")
    asked: list[tuple[int, int]] = []

    def ioctl(_handle: int, code: int, request: bytearray) -> int:
        assert code == 0xC0405602
        assert len(request) == 64
        index, kind = struct.unpack_from("=II", request)
        asked.append((index, kind))
        if index == 2:
            raise OSError(errno.EINVAL, "Invalid argument")
        request[44:48] = (b"YUYV", b"MJPG")[index]
        return 0

    assert camera_formats(device, ioctl) == ["YUYV", "MJPG"]
    assert asked == [(0, 1), (1, 1), (2, 1)]


def test_a_node_that_does_not_capture_is_no_camera(root: Path) -> None:
    (root / "dev/video0").write_text("")
    assert look(root)["cameras"] == Check("cameras", None, "none at /dev/video*")


def test_cameras_are_listed_by_number_with_their_names(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 2, 10):
        (root / f"dev/video{number}").write_text("")
        (root / f"sys/class/video4linux/video{number}").mkdir(parents=True)
        (root / f"sys/class/video4linux/video{number}/name").write_text(f"Camera {number}\n")
    monkeypatch.setattr(
        doctor, "camera_formats", lambda path: [] if path.name == "video2" else ["YUYV"]
    )
    row = look(root)["cameras"]
    assert row.found == "/dev/video0 (Camera 0): YUYV; /dev/video10 (Camera 10): YUYV"


def test_a_camera_that_may_not_be_opened_names_the_group(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "dev/video0").write_text("")

    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(doctor, "camera_formats", refuse)
    row = look(root)["cameras"]
    assert "video0 may not be opened" in row.found
    assert "usermod -aG video" in row.fix


# Cache -----------------------------------------------------------------------------------------


def test_the_cache_is_measured_and_not_made(root: Path) -> None:
    assert "0 engines" in look(root)["engine cache"].found
    assert not (root / "cache").exists()
    (root / "cache").mkdir()
    (root / "cache/a.plan").write_bytes(bytes(1 << 20))
    assert look(root)["engine cache"].found.endswith("1 engines, 1.0 MiB")


def test_a_cache_that_cannot_be_written_is_a_fault_only_where_engines_are_needed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    row = look(root, "tensorrt")["engine cache"]
    assert row.ok is False
    assert "Read-only file system" in row.found
    assert "--cache-dir" in row.fix
    if look(root, "onnxruntime")["ONNX Runtime"].ok:
        assert look(root, "onnxruntime")["engine cache"].ok is None
