"""``aeseg info``: what is in a bundle."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from aeseg_edge.cli.options import add_json, open_bundle
from aeseg_edge.cli.output import entries_table, write_json
from aeseg_edge.segment.smoothing import default_strength
from aeseg_edge.sources.pairs import describe

EXAMPLE = "aeseg info street.aeseg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("bundle", type=Path)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run this verb."""
    bundle = open_bundle(options)
    manifest = bundle.manifest
    if options.json != "-":
        geometry = manifest.geometry
        print(
            f"{options.bundle}  ({options.bundle.stat().st_size / 1e6:.2f} MB, "
            f"schema {manifest.schema_version}, {manifest.created_with})"
        )
        print(
            f"input    {geometry.width}x{geometry.height}, {geometry.channels} channels, "
            f"{geometry.resize}; labels at 1/{manifest.output_stride}"
        )
        if manifest.modalities:
            print(f"frames   {describe(manifest.modalities)}")
        print(f"latents  {manifest.latent_dim} channels at 1/{manifest.stride}")
        print(
            f"codebook {manifest.clusters} clusters ({manifest.method}), "
            f"{len(manifest.classes)} classes"
        )
        stability = manifest.training.get("calibration", {}).get("stability", {})
        for title, key in (("starts", "restarts"), ("halves of the footage", "halves")):
            if stability.get(key) is not None:
                low = " (low)" if stability[key] < stability.get("low_below", 0) else ""
                print(f"         stability between {title}: ARI {stability[key]:.2f}{low}")
        if (decoder := manifest.decoder) is not None:
            size_mb = manifest.files[decoder.graph].size / 1e6
            print(
                f"decoder  {size_mb:.2f} MB; reconstruction error of {decoder.frames} frames: "
                f"median {decoder.median:.1f}, p99 {decoder.p99:.1f} grey levels"
            )
        gate = "plain" if manifest.gate is None else f"gated at {manifest.gate:.3g}"
        print(f"smooth   {gate}; --smooth alone means {default_strength(manifest):g}")
        spread = manifest.spread
        print(
            "drift    not measured: no distances in this bundle"
            if spread is None or bundle.codebook.centres is None
            else f"drift    by {spread.measure} distance to the centre, usual up to "
            f"{spread.usual:.2f}"
        )
        print("graphs")
        for line in entries_table(manifest):
            print(f"  {line}")
        for entry in manifest.entries:
            if entry.note:
                print(f"  {entry.precision} for {entry.backend}: {entry.note}")
        print("classes")
        for item in manifest.classes:
            print(
                f"  {item.id:3d}  #{item.color[0]:02x}{item.color[1]:02x}{item.color[2]:02x}"
                f"  {item.name}"
            )
        for title, values in (("training", manifest.training), ("provenance", manifest.provenance)):
            print(title)
            for key, value in values.items():
                print(f"  {key:<14} {_words(value)}")
    write_json(options, asdict(manifest))
    return 0


def _words(value: object) -> str:
    """One value of the manifest as a person would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(_words(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
