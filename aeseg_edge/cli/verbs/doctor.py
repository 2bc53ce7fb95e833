"""``aeseg doctor``: what this machine has and lacks for running bundles."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from aeseg_edge.cli.options import add_cache, add_json
from aeseg_edge.cli.output import write_json
from aeseg_edge.measure.doctor import ASKED, diagnose, healthy

EXAMPLE = "aeseg doctor --backend tensorrt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("--backend", choices=ASKED, default=ASKED[0])
    add_cache(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    checks = diagnose(options.backend, cache_dir=options.cache_dir)
    if options.json != "-":
        signs = {True: "ok  ", False: "FAIL", None: "-   "}
        for check in checks:
            print(f"{signs[check.ok]} {check.name:<22} {check.found}")
            if check.fix:
                print(f"     {'':<22} -> {check.fix}")
    write_json(options, [asdict(check) for check in checks])
    return 0 if healthy(checks) else 1
