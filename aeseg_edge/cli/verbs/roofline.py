"""``aeseg roofline``: a lower bound on the latency of a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aeseg_edge.bundle.manifest import PRECISIONS
from aeseg_edge.cli.options import add_imgsz, add_json, needing, open_bundle
from aeseg_edge.cli.output import write_json
from aeseg_edge.cli.progress import Progress
from aeseg_edge.errors import UsageError

if TYPE_CHECKING:
    from aeseg_edge.calibration.report.cpu import CpuPeaks, CpuShare
    from aeseg_edge.calibration.report.roofline import Roofline

EXAMPLE = "aeseg roofline street.aeseg --device orin-nano --precision int8"
TARGET = 0.45
"""Share of the CPU's int8 bound that the encoder should reach."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    from aeseg_edge.calibration.report.devices import NAMES

    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--device",
        required=True,
        choices=NAMES,
        help="a Jetson, by its data sheet; or cpu: one thread of this machine, measured now "
        "(10 s), with the share of the bound that the int8 encoder reaches here",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="int8",
        help="of the layers that are listed; the totals are given for all (default int8)",
    )
    add_imgsz(parser, "at another size (default: the bundle's own)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    with needing("calibrate", "bounds are found with a package that is not importable"):
        from aeseg_edge.calibration.report import cpu as cpu_peak
        from aeseg_edge.calibration.report import roofline as bounds
    from aeseg_edge.calibration.report.devices import CPU, DEVICES

    bundle = open_bundle(options)
    peaks: CpuPeaks | None = None
    share: CpuShare | None = None
    if options.device == CPU:
        if options.precision == "fp16":
            raise UsageError(
                "ONNX Runtime runs no fp16 graph on a CPU", fix="Use --precision int8 or fp32."
            )
        with Progress() as progress:
            peaks = cpu_peak.measure_peaks(
                progress=lambda fraction: progress.update("measuring this CPU", fraction)
            )
        device = peaks.device()
    else:
        device = DEVICES[options.device]
    chosen = bounds.roofline(bundle, device, options.precision)
    every = bounds.rooflines(bundle, device)
    if peaks is not None and any(each.precision == "int8" for each in every):
        share = cpu_peak.cpu_share(bundle, peaks=peaks)
    if options.json != "-":
        geometry = bundle.manifest.geometry
        print(f"{options.bundle} at {geometry.width}x{geometry.height} on {device.title}")
        print("LOWER BOUNDS on latency, not predictions: real kernels reach neither peak.")
        _print_layers(chosen)
        _print_totals(every)
        if peaks is None:
            print("Nothing was run on a Jetson for this. Figures of the device:")
            print(f"  {device.source}")
        else:
            _print_cpu(peaks, share)
    write_json(
        options,
        {
            "bundle": str(options.bundle),
            "run_on_the_device": peaks is not None,
            **chosen.to_json(),
            "precisions": {
                each.precision: {
                    "bound_ms": each.milliseconds(),
                    "bound_fused_ms": each.fused_milliseconds(),
                }
                for each in every
            },
            "peaks": None if peaks is None else peaks.to_json(),
            "cpu_int8_encoder": None if share is None else {**share.to_json(), "target": TARGET},
        },
    )
    return 0


def _print_layers(found: Roofline) -> None:
    wide = max([len("layer"), *(len(each.layer.name) for each in found.layers)])
    print(
        f"\n{'layer':<{wide}}  {'runs in':<7}{'Mop':>9}{'kB':>9}{'by op us':>10}{'by bytes':>10}"
        f"{'bound us':>10}"
    )
    for each in found.layers:
        print(
            f"{each.layer.name:<{wide}}  {each.precision:<7}{each.layer.operations / 1e6:>9.1f}"
            f"{each.layer.bytes_at(each.precision) / 1e3:>9.1f}{1e3 * each.operations_ms:>10.2f}"
            f"{1e3 * each.bytes_ms:>10.2f}{1e3 * each.milliseconds:>10.2f}"
        )


def _print_totals(every: list[Roofline]) -> None:
    print(
        f"\n{'graph':<7}{'Gop':>7}{'MB':>8}{'bound ms':>11}{'encoder':>10}{'head':>9}"
        f"{'bound if all is fused ms':>27}"
    )
    for each in every:
        print(
            f"{each.precision:<7}{each.operations() / 1e9:>7.2f}{each.bytes() / 1e6:>8.2f}"
            f"{each.milliseconds():>11.3f}{each.milliseconds('encoder'):>10.3f}"
            f"{each.milliseconds('head'):>9.3f}{each.fused_milliseconds():>27.3f}"
        )
    print(
        "bound: each layer's operations or bytes, whichever take longer, activations read and\n"
        "written once a layer. If all is fused: only weights and the frame pass through memory."
    )


def _print_cpu(peaks: CpuPeaks, share: CpuShare | None) -> None:
    def shape(sizes: Any) -> str:
        return "x".join(str(each) for each in sizes)

    print(
        f"Measured on one thread: int8 {peaks.int8 / 1e9:.0f} Gop/s ({shape(peaks.int8_shape)}), "
        f"fp32 {peaks.fp32 / 1e9:.0f} ({shape(peaks.fp32_shape)}), ONNX Runtime {peaks.runtime};"
    )
    beyond = {
        True: "beyond the last-level cache",
        False: "NOT beyond the last-level cache, which is larger than this test may be",
        None: "the size of the last-level cache is not known",
    }[peaks.beyond_cache]
    print(
        f"  copies {peaks.cached / 1e9:.1f} GB/s within the cache and {peaks.memory / 1e9:.1f} "
        f"({peaks.copied >> 20} MiB; {beyond}). The bound uses the faster."
    )
    if share is not None:
        print(
            f"share of the measured CPU int8 bound reached by the encoder of the CPU int8 graph: "
            f"{100 * share.share:.1f} %\n  (bound {share.bound_ms:.2f} ms, measured "
            f"{share.measured_ms:.2f} ms by ONNX Runtime's profile, median; target "
            f"{100 * TARGET:.0f} %;\n  fastest frame {share.fastest_ms:.2f} ms, "
            f"{100 * share.fastest_share:.1f} %: if that is much more, other programs are running)"
        )
