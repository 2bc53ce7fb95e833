"""What devices can do at most, by their data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_MODULES = "NVIDIA Jetson Orin Nano Series Data Sheet, DS-11105-001 v1.1 (April 26, 2023)"
_SUPER = (
    "NVIDIA, Jetson Orin Nano Developer Kit Gets a 'Super' Boost (December 2024): 33 TOPS dense, "
    "17 FP16 TFLOPs, 1,020 MHz, 102 GB/s"
)
_AGX = "NVIDIA Jetson AGX Orin Series Modules Data Sheet, DS-10662-001 v1.6 (December 5, 2024)"


@dataclass(frozen=True)
class Device:
    """What a device can do at most.

    Attributes:
        name: As ``--device`` has it.
        title: For people.
        operations: Peak operations a second (two a multiply-accumulate) by precision, dense.
        bandwidth: Peak bytes a second to and from memory.
        source: Where the figures are from.
    """

    name: str
    title: str
    operations: Mapping[str, float]
    bandwidth: float
    source: str


DEVICES = {
    each.name: each
    for each in (
        Device(
            "orin-nano",
            "Jetson Orin Nano 8GB, GPU at 625 MHz",
            # fp16 at half of int8, as NVIDIA's table for the developer kit has it (10 TFLOPs);
            # fp32 on 1024 CUDA cores, 2 operations a clock: TF32 is off in these engines.
            {"int8": 20e12, "fp16": 10e12, "fp32": 1024 * 2 * 625e6},
            # 128 bits at 2133 MHz, two transfers a clock.
            128 / 8 * 2 * 2133e6,
            f"{_MODULES}: 20 (dense) INT8 TOPs, 1024 CUDA cores at up to 625 MHz, 128-bit LPDDR5 "
            "at up to 2133 MHz; fp16 as in NVIDIA's table for the developer kit, 10 TFLOPs",
        ),
        Device(
            "orin-nano-super",
            "Jetson Orin Nano 8GB in MAXN SUPER, GPU at 1020 MHz",
            {"int8": 33e12, "fp16": 17e12, "fp32": 1024 * 2 * 1020e6},
            102e9,
            _SUPER,
        ),
        Device(
            "agx-orin",
            "Jetson AGX Orin 64GB, GPU at 1.3 GHz (without its DLA cores)",
            # The sheet states sparse figures; sparsity doubles throughput.
            {"int8": 170e12 / 2, "fp16": 85e12 / 2, "fp32": 5.32e12},
            204.8e9,
            f"{_AGX}, tables 1-2 and 1-3: 170 INT8 sparse TOPS and 85 FP16 sparse TFLOPS (Tensor "
            "Cores), halved for dense; 5.32 FP32 TFLOPS (CUDA cores); 204.8 GB/s",
        ),
    )
}

CPU = "cpu"
"""In the place of a device's name: this machine, measured."""

NAMES = (*DEVICES, CPU)
