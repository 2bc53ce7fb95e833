"""Verbs for a device with TensorRT: build, doctor, selftest."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from aeseg_edge.cli.options import (
    Verbs,
    add_json,
    add_verb,
    bundle_or_pretrained,
    positive,
    share,
    size,
    write_json,
)

if TYPE_CHECKING:
    from aeseg_edge.bundle.archive import Bundle
    from aeseg_edge.export.engines.build import BuiltEngine

SELFTEST_FRAMES = 16


def add_verbs(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add this module's verbs."""
    build = add_verb(
        verbs,
        common,
        "build",
        _build,
        summary="build TensorRT engines of a bundle for this device",
        example="aeseg build street.aeseg --precision int8 --explain",
    )
    build.add_argument("bundle", type=Path)
    build.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8", "both"),
        default="both",
        help="both: fp16 and int8 (default)",
    )
    build.add_argument("--imgsz", type=size, metavar="WxH", help="default: the bundle's own")
    build.add_argument(
        "--workspace", type=positive, metavar="MIB", help="limit of scratch memory (default 512)"
    )
    build.add_argument("--force", action="store_true", help="build what the cache has, too")
    build.add_argument("--explain", action="store_true", help="say what each convolution became")
    _add_cache(build)
    add_json(build)

    doctor = add_verb(
        verbs,
        common,
        "doctor",
        _doctor,
        summary="check what this machine has and lacks for running bundles",
        example="aeseg doctor --backend tensorrt",
    )
    doctor.add_argument("--backend", choices=("auto", "onnxruntime", "tensorrt"), default="auto")
    _add_cache(doctor)
    add_json(doctor)

    selftest = add_verb(
        verbs,
        common,
        "selftest",
        _selftest,
        summary="build engines here and compare their labels with ONNX Runtime",
        example="aeseg selftest street.aeseg --source drive.mp4",
    )
    selftest.add_argument(
        "bundle", type=Path, nargs="?", help="default: the pretrained street bundle"
    )
    selftest.add_argument(
        "--source", default="test://640x480@30", help="frames; default: a drawn scene"
    )
    selftest.add_argument(
        "--frames", type=positive, default=1000, help="frames to run for memory (default 1000)"
    )
    selftest.add_argument(
        "--min-agreement",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="of labels with those of ONNX Runtime (default 0.95)",
    )
    _add_cache(selftest)
    add_json(selftest)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where engines are kept (default: ~/.cache/aeseg_edge)",
    )


def build_engines(
    bundle: Bundle,
    precisions: tuple[str, ...],
    *,
    cache_dir: Path | None,
    imgsz: tuple[int, int] | None = None,
    workspace: int | None = None,
    force: bool = False,
) -> list[BuiltEngine]:
    """Build with progress; shared with ``aeseg run``, which builds on first use."""
    from aeseg_edge.cli.progress import Progress
    from aeseg_edge.export.engines.build import build_bundle
    from aeseg_edge.export.engines.compile import BuildOptions

    options = BuildOptions() if workspace is None else BuildOptions(workspace=workspace << 20)
    with Progress() as progress:
        return build_bundle(
            bundle,
            precisions,
            cache_dir=cache_dir,
            size=imgsz,
            options=options,
            force=force,
            progress=progress.update,
            waiting=lambda: print("another process is building this engine", file=sys.stderr),
        )


def _build(options: argparse.Namespace) -> int:
    from aeseg_edge.bundle.archive import Bundle

    precisions = ("fp16", "int8") if options.precision == "both" else (options.precision,)
    built = build_engines(
        Bundle.open(options.bundle),
        precisions,
        cache_dir=options.cache_dir,
        imgsz=options.imgsz,
        workspace=options.workspace,
        force=options.force,
    )
    if options.json != "-":
        for engine in built:
            how = f"built in {engine.seconds:.0f} s" if engine.seconds else "was in the cache"
            kernels = "" if engine.kernels is None else f", {engine.kernels} kernels"
            print(f"{engine.precision}  {engine.size / 1e6:.2f} MB{kernels}, {how}: {engine.path}")
            if options.explain:
                for row in engine.convolutions:
                    fused = f" with {', '.join(row.fused)}" if row.fused else ""
                    print(f"  {row.precision:<8} {row.node}: {row.kernel}{fused}")
    write_json(options.json, [{**asdict(e), "path": str(e.path)} for e in built])
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from aeseg_edge.measure.doctor import diagnose, healthy

    checks = diagnose(options.backend, cache_dir=options.cache_dir)
    if options.json != "-":
        signs = {True: "ok  ", False: "FAIL", None: "-   "}
        for check in checks:
            print(f"{signs[check.ok]} {check.name:<22} {check.found}")
            if check.fix:
                print(f"     {'':<22} -> {check.fix}")
    write_json(options.json, [asdict(check) for check in checks])
    return 0 if healthy(checks) else 1


def _selftest(options: argparse.Namespace) -> int:
    from aeseg_edge.bundle.archive import Bundle
    from aeseg_edge.cli.progress import Progress
    from aeseg_edge.measure.selftest import run_selftest
    from aeseg_edge.sources import open_source

    bundle = Bundle.open(bundle_or_pretrained(options.bundle))
    frames = []
    manifest = bundle.manifest
    with open_source(
        options.source, channels=manifest.geometry.channels, modalities=manifest.modalities
    ) as source:
        for frame in source:
            frames.append(frame.image)
            if len(frames) == SELFTEST_FRAMES:
                break

    def build(precision: str) -> float | None:
        return build_engines(bundle, (precision,), cache_dir=options.cache_dir)[0].seconds

    with Progress(plain=True) as progress:
        result = run_selftest(
            bundle,
            frames,
            build,
            cache_dir=options.cache_dir,
            soak=options.frames,
            min_agreement=options.min_agreement,
            progress=progress.update,
        )
    if options.json != "-":
        print(result.report())
    write_json(options.json, asdict(result))
    return 0 if result.passed else 1
