"""One row of docs/quality.md: trained, exported, named and scored, as a JSON file.

``python benchmarks/quality.py ROW --seed 0 --data camvid`` (or ``make quality ROW=... SEED=...
DATA=...``) runs the same commands that a user would type, keeps what they make in
build/quality/, and writes docs/quality/ROW-SEED.json. Interrupted, it goes on where it
stopped. ``--list`` names the rows.

Labels of train name clusters (and train the supervised rows); labels of test score, and
choose nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from aeseg_edge.segment.segmenter import Segmenter

ROOT = Path(__file__).resolve().parent.parent
NOISE = 5.0
"""Standard deviation in grey levels of the noise that labels should stand."""

DARKER = 0.7
SHIFT = 8
"""Factor of brightness, and pixels, that labels should stand too."""

FEW = 10
"""Labelled frames, evenly spaced in train."""


@dataclass(frozen=True)
class Row:
    """What a row of the table is made with.

    Attributes:
        title: As the table has it.
        train: Options of ``aeseg train`` beside footage, size, seed and output.
        supervised: Trained with labels.
        start: Row whose network of the same seed training starts from; made first.
        clustering: Options of every fit of clusters.
        little: Trained and clustered on a tenth of the frames; only the two label-free
            figures are made.
    """

    title: str
    train: tuple[str, ...]
    supervised: bool = False
    start: str = ""
    clustering: tuple[str, ...] = ()
    little: bool = False


LITTLE = ("--max-frames", "37", "--epochs", "150", "--threads", "1")
ROWS = {
    "edge": Row("`edge`, from scratch", ("--arch", "edge", "--epochs", "45", "--threads", "1")),
    "lite": Row(
        "`lite`, taught by EfficientNet-Lite0",
        ("--arch", "lite", "--epochs", "40", "--threads", "1"),
    ),
    "edge-taught": Row(
        "`edge`, taught by EfficientNet-Lite0",
        ("--arch", "edge", "--teacher", "efficientnet_lite0", "--epochs", "40", "--threads", "1"),
    ),
    "supervised-lite": Row(
        "`lite`, label-free first, then all of it with labels",
        ("--class-weights", "power", "--epochs", "30", "--threads", "1"),
        supervised=True,
        start="lite",
    ),
    "supervised-edge": Row(
        "`edge`, label-free first, then all of it with labels",
        ("--class-weights", "power", "--epochs", "90", "--threads", "1"),
        supervised=True,
        start="edge-taught",
    ),
    "shallow": Row(
        "`shallow` (article 1)",
        ("--arch", "shallow", "--epochs", "15", "--threads", "1"),
        clustering=("--clustering", "kmeans"),
    ),
    "deep": Row(
        "`deep` (article 2)",
        ("--arch", "deep", "--epochs", "10", "--threads", "1"),
        clustering=("--clustering", "kmeans"),
    ),
    "little-bare": Row(
        "`edge`, no augmentation", ("--arch", "edge", "--no-augment", *LITTLE), little=True
    ),
    "little-augmented": Row("`edge`", ("--arch", "edge", *LITTLE), little=True),
    "little-taught-bare": Row(
        "`edge`, teacher, no augmentation",
        ("--arch", "edge", "--teacher", "efficientnet_lite0", "--no-augment", *LITTLE),
        little=True,
    ),
    "little-taught": Row(
        "`edge`, teacher",
        ("--arch", "edge", "--teacher", "efficientnet_lite0", *LITTLE),
        little=True,
    ),
}


class Maker:
    """Makes one row: each command once, what it said kept.

    Args:
        name: A key of ``ROWS``.
        seed: Of training and clustering.
        data: CamVid.
        work: Where bundles and checkpoints go.
        target: JSON file of the row.
    """

    def __init__(self, name: str, seed: int, data: Path, work: Path, target: Path) -> None:
        self.name, self.row, self.seed = name, ROWS[name], seed
        self.data, self.work, self.target = data, work, target
        self.record: dict[str, Any] = {}
        if target.exists():
            self.record = json.loads(target.read_text())
        self.record.update(row=name, title=self.row.title, seed=seed, recipe=asdict(self.row))
        self.record.setdefault("commands", {})
        self.record.setdefault("figures", {})
        self.record.setdefault("seconds", {})

    def path(self, suffix: str) -> Path:
        """Name a file of this row."""
        return self.work / f"{self.name}-{self.seed}{suffix}"

    def save(self) -> None:
        """Write what is known so far."""
        self.record["machine"] = f"{platform.machine()}, {_processor()}"
        self.record["date"] = date.today().isoformat()
        self.target.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.target.with_suffix(".part")
        fresh.write_text(json.dumps(self.record, indent=1, sort_keys=True) + "\n")
        fresh.replace(self.target)

    def run(self, step: str, words: Sequence[str | Path], made: Path | None = None) -> None:
        """Run ``aeseg`` once; a step whose output is there is not run again."""
        if step in self.record["commands"] and (made is None or made.exists()):
            return
        plain = [str(word) for word in words]
        print("aeseg", shlex.join(plain), flush=True)
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "aeseg_edge.cli", *plain], check=True, cwd=ROOT)
        shown = shlex.join(plain).replace(str(self.data), "camvid")
        self.record["commands"][step] = "aeseg " + shown.replace(f"{self.work}/", "")
        self.record["seconds"][step] = round(time.monotonic() - started, 1)
        self.save()

    def figure(self, name: str, value: Any) -> None:
        """Keep a figure."""
        self.record["figures"][name] = value
        self.save()

    def has(self, name: str) -> bool:
        """Whether a figure is known."""
        return name in self.record["figures"]

    # The steps.

    def train(self) -> None:
        """Train, with 27 clusters."""
        words: list[str | Path] = ["train", self.data / "train", "-o", self.path(".aeseg")]
        words += [*self.row.train, "--seed", str(self.seed), *self.row.clustering]
        if self.row.start:
            words += ["--from", self.work / f"{self.row.start}-{self.seed}.train"]
        else:
            words += ["--imgsz", "480x360"]
        if self.row.supervised:
            words += ["--masks", self.data / "trainannot", *self.labels()]
        else:
            words += ["--clusters", "27"]
        self.run("train", words, self.path(".aeseg"))

    def labels(self) -> list[str | Path]:
        """Classes, and what is not scored."""
        return ["--classes", self.data / "classes.txt", "--ignore", "11"]

    def export(self, clusters: int, seed: int, suffix: str) -> Path:
        """Fit another number of clusters on the frames of the training."""
        made = self.path(suffix)
        words: list[str | Path] = ["export", self.path(".train")]
        if not self.row.little:
            words.append(self.data / "train")
        words += ["-o", made]
        words += ["--clusters", str(clusters), "--seed", str(seed), *self.row.clustering]
        self.run(f"export{suffix}", words, made)
        return made

    def score(
        self, figure: str, bundle: Path, *options: str | Path, emulated: bool = False
    ) -> None:
        """Score a bundle on test, in fp32, in int8, and in TensorRT's int8 graph if asked.

        On a CPU that graph is emulated, ten times slower than it should be.
        """
        graphs: dict[str, tuple[str, ...]] = {
            "fp32": ("--precision", "fp32"),
            "int8": ("--precision", "int8"),
        }
        if emulated:
            graphs["int8-tensorrt"] = ("--precision", "int8", "--graph", "tensorrt")
        for name, graph in graphs.items():
            if self.has(f"{figure}.{name}"):
                continue
            out = self.path(f".{figure}.{name}.json")
            words: list[str | Path] = ["eval", bundle, "--images", self.data / "test"]
            words += ["--masks", self.data / "testannot", *self.labels(), *options]
            words += ["--backend", "onnxruntime", *graph, "--json", out]
            self.run(f"{figure}.{name}", words, out)
            report = json.loads(out.read_text())
            kept = {
                key: {k: report[key][k] for k in ("miou", "pixel_accuracy", "iou")}
                for key in ("hungarian", "majority", "named")
                if key in report
            }
            self.figure(f"{figure}.{name}", kept)

    def label_free(self) -> None:
        """Score the ways from clusters to classes."""
        fit = ("--fit-images", self.data / "train", "--fit-masks", self.data / "trainannot")
        self.score("11", self.export(11, self.seed, "-11.aeseg"))
        emulated = not self.row.little
        self.score("27", self.path(".aeseg"), *fit, "--fit-every", "4", emulated=emulated)
        if self.row.little:
            return
        many = self.export(256, self.seed, "-256.aeseg")
        masks: list[str | Path] = ["--from-masks", self.data / "train", self.data / "trainannot"]
        masks += [*self.labels(), "--frames", str(FEW)]
        named = self.path("-256-named.aeseg")
        self.run("name-256", ["name", many, "-o", named, *masks], named)
        self.score("256-named", named)
        linear = self.path("-linear.aeseg")
        self.run(
            "linear", ["name", self.path(".aeseg"), "-o", linear, *masks, "--fit", "linear"], linear
        )
        self.score("linear", linear)

    def stability(self) -> None:
        """Compare labels under noise, and clusterings of two seeds."""
        frames = [_read(path) for path in sorted((self.data / "test").glob("*.jpg"))[::4]]
        if not self.has("steady"):
            random = np.random.default_rng(self.seed)
            with Segmenter.load(self.path(".aeseg"), precision="fp32", backend="onnxruntime") as s:
                found = [steadiness(s, frame, random) for frame in frames]
            shares = {name: 100 * float(np.mean([f[name] for f in found])) for name in found[0]}
            self.figure("steady", {name: round(share, 2) for name, share in shares.items()})
        if self.row.supervised or self.row.little or self.has("ari"):
            return
        other = self.export(11, self.seed + 100, "-11b.aeseg")
        found = []
        for path in (self.path("-11.aeseg"), other):
            with Segmenter.load(path, precision="fp32", backend="onnxruntime") as s:
                found.append(
                    np.concatenate([s(frame).labels[::8, ::8].ravel() for frame in frames])
                )
        self.figure("ari", round(float(adjusted_rand_score(*found)), 3))

    def speed(self) -> None:
        """Time one thread, both precisions in turn."""
        if self.has("milliseconds"):
            return
        times: dict[str, list[float]] = {"fp32": [], "int8": []}
        for _ in range(3):
            for precision, found in times.items():
                out = self.path(".bench.json")
                words = ["bench", self.path(".aeseg"), "--precision", precision, "--threads", "1"]
                words += ["--backend", "onnxruntime", "--frames", "100", "--json", out]
                self.record["commands"].pop("bench", None)
                self.run("bench", words)
                found.append(json.loads(out.read_text())["stages_ms"]["inference"]["p50"])
        self.figure("milliseconds", {name: round(min(found), 2) for name, found in times.items()})

    def make(self, *, timed: bool) -> None:
        """Do all of it."""
        self.train()
        if self.row.supervised:
            self.score("supervised", self.path(".aeseg"), emulated=True)
        else:
            self.label_free()
        self.stability()
        if timed:
            self.speed()
        size = self.path(".aeseg").stat().st_size / 1e6
        self.figure("megabytes", round(size, 2))


def steadiness(
    segmenter: Segmenter, frame: NDArray[np.uint8], random: np.random.Generator
) -> dict[str, float]:
    """Share of labels that stay the same when a frame changes a little.

    Args:
        segmenter: Gives labels.
        frame: uint8 [H, W, 3].
        random: For the noise.

    Returns:
        By kind of change: ``noise`` (sigma 5), ``brightness`` (times 0.7), ``shift`` (8 pixels
        down and right, where both frames show the same).
    """
    labels = segmenter(frame).labels
    noisy = np.clip((frame + random.normal(0, NOISE, frame.shape)).round(), 0, 255)
    darker = (frame * DARKER).round()
    moved = np.roll(frame, (SHIFT, SHIFT), (0, 1))
    return {
        "noise": float((labels == segmenter(noisy.astype(np.uint8)).labels).mean()),
        "brightness": float((labels == segmenter(darker.astype(np.uint8)).labels).mean()),
        "shift": float(
            (labels[:-SHIFT, :-SHIFT] == segmenter(moved).labels[SHIFT:, SHIFT:]).mean()
        ),
    }


def _read(path: Path) -> Any:
    return cv2.imread(str(path))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


def main() -> None:
    """Make one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=sorted(ROWS), nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="CamVid: train, trainannot, test, ...")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quality")
    parser.add_argument("--no-timing", action="store_true", help="other work runs beside it")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list or options.row is None:
        for name, row in ROWS.items():
            print(f"{name:<14} {row.title}: {shlex.join(row.train)}")
        return
    if options.data is None or not (options.data / "test").is_dir():
        print("SKIPPED: the labelled frames are not here (give --data FOLDER)")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    target = ROOT / "docs" / "quality" / f"{options.row}-{options.seed}.json"
    maker = Maker(options.row, options.seed, options.data.resolve(), options.work, target)
    maker.make(timed=not options.no_timing)
    print(f"{target}: {json.dumps(maker.record['figures'], indent=1)}")


if __name__ == "__main__":
    main()
