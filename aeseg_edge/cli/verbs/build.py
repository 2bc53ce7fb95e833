"""``aeseg build``: TensorRT engines of a bundle for this device."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.manifest import PRECISIONS as EVERY
from aeseg_edge.bundle.precisions import ENGINES
from aeseg_edge.cli.options import add_cache, add_imgsz, add_json
from aeseg_edge.cli.output import tell, write_json
from aeseg_edge.cli.progress import Progress
from aeseg_edge.support.options import positive

if TYPE_CHECKING:
    from aeseg_edge.export.engines.build import BuiltEngine

EXAMPLE = "aeseg build street.aeseg --precision int8 --explain"
BOTH = "both"
CHOICES = (*EVERY, BOTH)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--precision", choices=CHOICES, default=BOTH, help="both: fp16 and int8 (default)"
    )
    add_imgsz(parser, "default: the bundle's own")
    parser.add_argument(
        "--workspace", type=positive, metavar="MIB", help="limit of scratch memory (default 512)"
    )
    parser.add_argument("--force", action="store_true", help="build what the cache has, too")
    parser.add_argument("--explain", action="store_true", help="say what each convolution became")
    add_cache(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    precisions = ENGINES if options.precision == BOTH else (options.precision,)
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
    write_json(options, [{**asdict(e), "path": str(e.path)} for e in built])
    return 0


def build_engines(
    bundle: Bundle,
    precisions: Sequence[str],
    *,
    cache_dir: Path | None,
    imgsz: tuple[int, int] | None = None,
    workspace: int | None = None,
    force: bool = False,
) -> list[BuiltEngine]:
    """Build with progress; shared with ``aeseg run``, which builds on first use."""
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
            waiting=lambda: tell("another process is building this engine"),
        )
