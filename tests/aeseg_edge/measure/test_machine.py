"""What the environment report says, on made-up machines and on this one."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aeseg_edge.measure.machine import (
    environment,
    packages,
    power,
    process_memory,
    run_command,
    temperatures,
)

JETSON = {
    "etc/nv_tegra_release": (
        "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64, "
        "DATE: Fri Sep 13 04:36:44 UTC 2024\n# KERNEL_VARIANT: oot\n"
    ),
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\n',
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/cpuinfo": "".join(
        f"processor\t: {core}\nBogoMIPS\t: 62.50\n"
        "Features\t: fp asimd evtstrm aes asimdrdm asimddp\n"
        "CPU implementer\t: 0x41\nCPU part\t: 0xd42\n\n"
        for core in range(6)
    ),
    "proc/loadavg": "0.52 0.58 0.59 1/257 1234\n",
    "proc/meminfo": "MemTotal:        7802400 kB\nMemFree:  100 kB\nMemAvailable:    200 kB\n",
    "proc/self/status": "Name:\tpython\nVmHWM:\t  3000 kB\nVmRSS:\t  2000 kB\nThreads:\t1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu4/cpufreq/scaling_governor": "performance\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48593\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "-1250\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",  # switched off: no temperature
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_input": "5000\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input": "1200\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in2_enable": "1\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in2_input": "4992\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr2_input": "80\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in3_label": "NC\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in3_input": "5000\n",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr3_input": "5\n",
    "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon2/in2_label": "NO_CURRENT\n",
    "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon2/in2_input": "5000\n",
    "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon2/in3_label": "NO_VOLTAGE\n",
    "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon2/curr3_input": "5\n",
    "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon2/in1_label": "VDD_SOC\n",
    "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon2/in1_enable": "0\n",
    "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon2/in1_input": "5000\n",
    "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon2/curr1_input": "5\n",
    "var/lib/dpkg/status": (
        "Package: libnvinfer-dev\nStatus: install ok installed\nVersion: 9.9\n\n"
        "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n\n"
        "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.1+b123\n"
    ),
}

PC = {
    "proc/cpuinfo": "".join(
        f"processor\t: {core}\nmodel name\t: AMD Ryzen 7 5800X 8-Core Processor\n"
        "flags\t\t: fpu sse4_2 avx2 sha_ni\n\n"
        for core in range(16)
    ),
    "sys/fs/cgroup/cpu.max": "250000 100000\n",
    "sys/class/thermal/thermal_zone0/type": "acpitz\n",
    "sys/class/thermal/thermal_zone0/temp": "16800\n",
    "sys/class/thermal/thermal_zone1/type": "acpitz\n",
    "sys/class/thermal/thermal_zone1/temp": "17000\n",
    "sys/class/thermal/thermal_zone10/type": "acpitz\n",
    "sys/class/thermal/thermal_zone10/temp": "19000\n",
    "sys/class/thermal/thermal_zone2/type": "acpitz\n",
    "sys/class/thermal/thermal_zone2/temp": "18000\n",
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def jetson_commands(argv: Sequence[str]) -> str | None:
    return {
        "nvpmodel": "NV Power Mode: 15W\n0\n",
        "nvidia-smi": "Orin (nvgpu), 540.4.0, [N/A], 8.7\n",
    }.get(argv[0])


def no_commands(_argv: Sequence[str]) -> None:
    return None


def test_a_jetson_is_described_in_full(tmp_path: Path) -> None:
    found = environment(tree(tmp_path, JETSON), jetson_commands)
    assert found["jetson"] == {
        "model": "NVIDIA Jetson Orin Nano Developer Kit",
        "l4t": "36.4.0",
        "jetpack": "6.1+b123",
        "power_mode": "15W",
        "jetson_clocks": None,
    }
    assert found["os"]["name"] == "Ubuntu 22.04.5 LTS"
    assert found["cpu"]["model"] == "Cortex-A78AE"
    assert found["cpu"]["cores"] == 6
    assert found["cpu"]["governor"] == "performance, schedutil"
    assert found["cpu"]["int8"] == ["asimddp"]
    assert found["load"] == [0.52, 0.58, 0.59]
    assert found["memory"] == {"total": 7802400 * 1024, "free": 102400, "available": 204800}
    assert found["gpu"] == [
        {"name": "Orin (nvgpu)", "driver": "540.4.0", "memory": None, "compute": "8.7"}
    ]
    assert found["temperatures"] == {"cpu-thermal": 48.593, "gpu-thermal": -1.25}


def test_power_is_volts_times_amperes_of_each_connected_rail(tmp_path: Path) -> None:
    assert power(tree(tmp_path, JETSON)) == {
        "VDD_IN": {"volts": 5.0, "amperes": 1.2, "watts": 6.0},
        "VDD_CPU_GPU_CV": {"volts": 4.992, "amperes": 0.08, "watts": 0.39936},
    }


@pytest.mark.parametrize(
    ("cpu_min", "gpu_min", "pinned"),
    [("1510400", "624750000", True), ("729600", "624750000", False), ("1510400", "0", False)],
)
def test_jetson_clocks_hold_when_no_clock_may_fall(
    cpu_min: str, gpu_min: str, pinned: bool, tmp_path: Path
) -> None:
    clocks = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": cpu_min,
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400",
        "sys/class/devfreq/17000000.ga10b/min_freq": gpu_min,
        "sys/class/devfreq/17000000.ga10b/max_freq": "624750000",
        "sys/class/devfreq/15480000.nvdec/min_freq": "0",  # left alone by jetson_clocks
        "sys/class/devfreq/15480000.nvdec/max_freq": "793600000",
    }
    found = environment(tree(tmp_path, {**JETSON, **clocks}), jetson_commands)
    assert found["jetson"]["jetson_clocks"] is pinned


def test_throttle_events_of_all_cores_are_added_up(tmp_path: Path) -> None:
    counts = {
        f"sys/devices/system/cpu/cpu{core}/thermal_throttle/{kind}_throttle_count": str(count)
        for core, kind, count in ((0, "core", 3), (1, "core", 4), (0, "package", 9))
    }
    found = environment(tree(tmp_path, {**PC, **counts}), no_commands)
    assert found["throttling"] == {"core_throttle_count": 7, "package_throttle_count": 9}


def test_tensorrt_is_found_as_a_debian_package_where_python_has_no_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aeseg_edge.measure.machine._version", lambda name: None)
    found = environment(tree(tmp_path, JETSON), no_commands)
    assert found["tensorrt"] == "10.3.0.30-1+cuda12.5"
    assert found["packages"]["numpy"] is None


def test_an_opencv_without_metadata_has_a_version_once_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aeseg_edge.measure.machine._version", lambda name: None)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    assert packages()["opencv"] is None
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__version__="4.10.0"))
    assert packages()["opencv"] == "4.10.0"


def test_a_removed_debian_package_is_not_a_version(tmp_path: Path) -> None:
    status = JETSON["var/lib/dpkg/status"].replace("ok installed", "ok config-files")
    root = tree(tmp_path, {**JETSON, "var/lib/dpkg/status": status})
    assert environment(root, no_commands)["jetson"]["jetpack"] is None


def test_a_pc_is_no_jetson_and_its_equal_zones_are_numbered(tmp_path: Path) -> None:
    found = environment(tree(tmp_path, PC), no_commands)
    assert found["jetson"] is None
    assert found["gpu"] is None
    assert found["power"] is None
    assert found["cpu"]["model"] == "AMD Ryzen 7 5800X 8-Core Processor"
    assert found["cpu"]["int8"] == ["avx2"]
    assert found["cpu"]["quota"] == 2.5
    assert list(found["temperatures"].items()) == [
        ("acpitz", 16.8),
        ("acpitz 2", 17.0),
        ("acpitz 3", 18.0),
        ("acpitz 4", 19.0),
    ]


def test_unknown_arm_cores_keep_their_numbers_and_mixed_ones_are_listed(tmp_path: Path) -> None:
    cpuinfo = "".join(
        f"processor\t: {i}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
        for i, part in enumerate(("0xd05", "0xd05", "0xfff"))
    )
    found = environment(tree(tmp_path, {"proc/cpuinfo": cpuinfo}), no_commands)
    assert found["cpu"]["model"] == "Cortex-A55 + ARM implementer 0x41 part 0xfff"


def test_on_an_empty_machine_everything_absent_is_none(tmp_path: Path) -> None:
    found = environment(tmp_path, no_commands)
    for name in ("load", "memory", "gpu", "jetson", "throttling", "temperatures", "power"):
        assert found[name] is None, name
    assert found["os"]["name"] is None
    assert {found["cpu"][name] for name in ("model", "quota", "governor", "int8")} == {None}
    assert found["cpu"]["cores"] == os.cpu_count()
    assert process_memory(tmp_path) is None
    assert temperatures(tmp_path) is None


def test_an_unlimited_container_has_no_quota(tmp_path: Path) -> None:
    root = tree(tmp_path, {"sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert environment(root, no_commands)["cpu"]["quota"] is None


def test_process_memory_is_in_bytes(tmp_path: Path) -> None:
    assert process_memory(tree(tmp_path, JETSON)) == {"resident": 2_048_000, "peak": 3_072_000}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_the_memory_of_this_process_grows_with_what_it_holds() -> None:
    before = process_memory()
    # Pages straight from the system: an allocator could reuse what other tests left.
    with mmap.mmap(-1, 64 * 2**20) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        after = process_memory()
    assert before is not None
    assert after is not None
    assert after["resident"] - before["resident"] > 48 * 2**20
    assert after["peak"] >= after["resident"]


def test_this_machine_is_described_in_json_with_real_versions() -> None:
    found = json.loads(json.dumps(environment(), allow_nan=False))
    assert found["packages"]["numpy"] == np.__version__
    assert found["python"] == sys.version.split()[0]
    assert found["cpu"]["cores"] >= 1


def test_reading_versions_imports_none_of_the_packages() -> None:
    code = (
        "import sys; from aeseg_edge.measure.machine import environment; environment(); "
        "print([m for m in ('cv2', 'torch', 'onnxruntime', 'onnx', 'sklearn', 'scipy', "
        "'tensorrt', 'pycuda') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert packages()["numpy"] == np.__version__


def test_a_command_gives_its_output_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    python = sys.executable
    assert run_command([python, "-c", "print('hello')"]) == "hello\n"
    assert run_command([python, "-c", "raise SystemExit(3)"]) is None
    assert run_command(["no-such-command-anywhere"]) is None
    monkeypatch.setattr("aeseg_edge.measure.machine._COMMAND_SECONDS", 0.2)
    assert run_command([python, "-c", "import time; time.sleep(60)"]) is None
