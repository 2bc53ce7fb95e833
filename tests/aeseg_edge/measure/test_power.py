"""Power and temperature during a run, on made-up machines."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from aeseg_edge.measure.power import PowerRecord, PowerRecorder

MONITOR = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
ORIN_NANO = {
    f"{MONITOR}/in1_label": "VDD_IN",
    f"{MONITOR}/in1_input": "5000",
    f"{MONITOR}/curr1_input": "1000",
    f"{MONITOR}/in2_label": "VDD_CPU_GPU_CV",
    f"{MONITOR}/in2_input": "5000",
    f"{MONITOR}/curr2_input": "400",
    "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "50000",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "7",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "0",
    "sys/class/thermal/cooling_device4/type": "gpu-throttle-alert",
    "sys/class/thermal/cooling_device4/cur_state": "0",
    "sys/class/thermal/cooling_device5/type": "pwm-fan",
    "sys/class/thermal/cooling_device5/cur_state": "2",
}


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    for name, text in ORIN_NANO.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return tmp_path


def run(recorder: PowerRecorder, *changes: tuple[Path, str]) -> PowerRecord:
    with recorder:
        for path, text in changes:
            path.write_text(text)
    return recorder.record()


def test_power_and_temperature_are_read_before_and_after_the_run(jetson: Path) -> None:
    zone, current = "sys/class/thermal/thermal_zone0/temp", f"{MONITOR}/curr1_input"
    found = run(
        PowerRecorder(jetson, period=60), (jetson / current, "2000"), (jetson / zone, "61500")
    )
    assert found.watts["VDD_IN"] == (5.0, 10.0)
    assert found.degrees == {"gpu-thermal": (50.0, 61.5)}
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["rails_watts"]["VDD_IN"] == {"first": 5.0, "mean": 7.5, "max": 10.0, "last": 10.0}
    assert len(data["samples"]["seconds"]) == 2


def test_the_total_is_the_modules_input_and_counts_no_rail_twice(jetson: Path) -> None:
    found = run(PowerRecorder(jetson, period=60))
    assert (found.total_watts, found.total_of) == (5.0, ("VDD_IN",))


def test_a_module_without_an_input_rail_adds_its_rails_up(jetson: Path) -> None:
    (jetson / MONITOR / "in1_label").write_text("VDD_GPU_SOC")
    found = run(PowerRecorder(jetson, period=60))
    assert found.total_watts == pytest.approx(7.0)
    assert found.to_json()["total_of"] == ["VDD_GPU_SOC", "VDD_CPU_GPU_CV"]
    assert "power 7.00 W (VDD_GPU_SOC + VDD_CPU_GPU_CV)" in found.lines()


def test_readings_go_on_while_the_work_runs(jetson: Path) -> None:
    current = jetson / MONITOR / "curr1_input"
    waiting = threading.Event()
    recorder = PowerRecorder(jetson, period=0.001)
    with recorder:
        current.write_text("9000")
        for _ in range(5000):
            if any(watts.get("VDD_IN") == 45.0 for _, watts, _ in recorder._readings):
                break
            waiting.wait(0.001)
        current.write_text("1000")
    found = recorder.record()
    assert max(found.watts["VDD_IN"]) == 45.0
    assert found.watts["VDD_IN"][-1] == 5.0
    assert list(found.seconds) == sorted(found.seconds)


def test_throttling_during_the_run_is_told_and_what_was_before_is_not(jetson: Path) -> None:
    events = jetson / "sys/class/hwmon/hwmon3/oc1_event_cnt"
    assert run(PowerRecorder(jetson, period=60)).throttled == {
        "oc1_event_cnt": 0,
        "oc3_event_cnt": 0,
        "gpu-throttle-alert": 0,
    }
    found = run(PowerRecorder(jetson, period=60), (events, "9"))
    assert found.throttled is not None
    assert found.throttled["oc1_event_cnt"] == 2
    assert "THROTTLED during the run: oc1_event_cnt 2" in found.lines()


def test_an_alert_that_comes_and_goes_during_the_run_is_seen(jetson: Path) -> None:
    alert = jetson / "sys/class/thermal/cooling_device4/cur_state"
    recorder = PowerRecorder(jetson, period=0.001)
    waiting = threading.Event()
    with recorder:
        alert.write_text("1")
        for _ in range(2000):
            if recorder._peak["gpu-throttle-alert"]:
                break
            waiting.wait(0.001)
        alert.write_text("0")
    found = recorder.record().throttled
    assert found is not None
    assert found["gpu-throttle-alert"] == 1


def test_a_machine_without_monitors_has_no_figures_and_no_thread(tmp_path: Path) -> None:
    with PowerRecorder(tmp_path) as recorder:
        assert "power" not in {thread.name for thread in threading.enumerate()}
    found = recorder.record()
    assert found == PowerRecord((), {}, {}, None)
    assert found.total_watts is None
    assert found.lines() == []
    assert found.to_json()["total_watts"] is None
    assert found.to_json()["throttled"] is None


def test_a_zone_that_is_switched_off_on_the_way_keeps_its_readings(jetson: Path) -> None:
    zone = jetson / "sys/class/thermal/thermal_zone0/temp"
    assert run(PowerRecorder(jetson, period=60), (zone, "")).degrees == {"gpu-thermal": (50.0,)}
