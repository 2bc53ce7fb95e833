"""What the rows of targets.py measure; each takes a Run and gives what it Found."""

from __future__ import annotations

import itertools
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from stand_ins import random_codebook, with_output_stride

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.geometry import fit_frame
from aeseg_edge.calibration.report.cpu import cpu_share
from aeseg_edge.calibration.report.stages import SMOOTH_SPLIT, SPLIT, split_paths
from aeseg_edge.errors import UsageError
from aeseg_edge.measure.against import INFERENCE, WHOLE, inference_of, side_by_side, threads_held
from aeseg_edge.measure.bench import Comparison, Ratio, alternate, bench
from aeseg_edge.measure.profile import profile_nodes
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.sources.scene import draw_scene

ROOT = Path(__file__).resolve().parent.parent
FRAME = (480, 360)
SIZES = ((240, 180), (480, 360), (960, 540), (1920, 1080))
CLUSTERS = (16, 256)
TYPICAL = 27
START_SECONDS = 60.0

MEMORY = """
import json, sys
import numpy as np
from aeseg_edge.measure.machine import process_memory
from aeseg_edge.segment.segmenter import Segmenter

frame = np.load(sys.argv[2])
with Segmenter.load(sys.argv[1], precision="int8", backend="onnxruntime", threads=1) as segmenter:
    for _ in range(int(sys.argv[3])):
        segmenter(frame)
    print(json.dumps(process_memory()))
"""


@dataclass(frozen=True)
class Found:
    """What was measured for one row.

    Attributes:
        value: In the row's unit; None where it is not measured here.
        low: Smallest value of any round.
        high: Largest.
        note: What the value is, or why there is none.
        details: Everything behind it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What all rows share.

    Attributes:
        bundle: The one that is measured.
        path: Its file.
        peers: Folder of the peers.
        rounds: Of every comparison.
        frames: Of each candidate in a round.
        starts: Fresh processes for the start.
    """

    bundle: Bundle
    path: Path
    peers: Path
    rounds: int
    frames: int
    starts: int

    @property
    def picture(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A drawn street, uint8 [360, 480, C]."""
        drawn = draw_scene(40, *FRAME)
        channels = self.bundle.manifest.geometry.channels
        return np.ascontiguousarray(drawn.repeat(-(-channels // 3), axis=2)[..., :channels])


def measure_peer(run: Run, name: str) -> Found:
    """The faster of a peer's two models over the bundle's inference; the whole path beside it."""
    models = [run.peers / f"{name}-{precision}.onnx" for precision in ("fp32", "int8")]
    missing = [path.name for path in models if not path.is_file()]
    if missing:
        return Found(None, note=f"no {' and no '.join(missing)} in {run.peers.name}: make peers")
    found = side_by_side(
        run.bundle,
        models,
        precision="int8",
        rounds=run.rounds,
        frames=run.frames,
        source_frames=[run.picture],
    )
    times = found.comparison.milliseconds
    peer = min(found.others, key=lambda other: statistics.median(times[other]))
    whole, bare = (mine(found.first, part) for part in (WHOLE, INFERENCE))
    ratio, path = (found.comparison.ratio(peer, each) for each in (bare, whole))
    return as_ratio(
        ratio,
        f"{peer}, inference against inference; against the whole path {path.median:.2f}",
        {"whole_path": asdict(path), **found.comparison.to_json()},
    )


def measure_int8(run: Run) -> Found:
    """fp32 over int8, inference alone."""
    with ExitStack() as stack:
        stack.enter_context(threads_held(1))
        candidates = {
            precision: inference_of(
                stack.enter_context(
                    Segmenter.load(
                        run.bundle, precision=precision, backend="onnxruntime", threads=1
                    )
                )
            )
            for precision in ("fp32", "int8")
        }
        found = alternate(candidates, [run.picture] * run.frames, run.rounds)
    return as_ratio(found.ratio("fp32", "int8"), "inference alone", found.to_json())


def measure_rest(run: Run) -> Found:
    """Share of each frame's total that is not inference."""
    with (
        threads_held(1),
        Segmenter.load(run.bundle, precision="int8", backend="onnxruntime", threads=1) as segmenter,
    ):
        report = bench(
            segmenter, [run.picture], frames=run.rounds * run.frames, source="drawn street"
        )
    shares = [
        100 * (1 - inference / total)
        for inference, total in zip(
            report.samples["inference"], report.samples["total"], strict=True
        )
    ]
    details = {stage: summary.to_json() for stage, summary in report.stages.items()}
    sizes = f"frames {FRAME[0]}x{FRAME[1]} in, labels of that size out"
    low, middle, high = (float(v) for v in np.percentile(shares, (5, 50, 95)))
    return Found(middle, low, high, f"median of the frames, p5 to p95; {sizes}", details)


def measure_head(run: Run) -> Found:
    """Nodes of the head over all nodes, in ONNX Runtime's profile of a fresh session a round."""
    manifest = run.bundle.manifest
    frame = fit_frame(run.picture, manifest.geometry)
    bundle = run.bundle
    if manifest.clusters != TYPICAL:
        bundle = bundle.with_codebook(random_codebook(TYPICAL, manifest.latent_dim))
    profiles = [
        profile_nodes(bundle, frame, precision="int8", frames=5 * run.frames)
        for _ in range(max(1, run.rounds // 5))
    ]
    shares = [100 * profile.head_share for profile in profiles]
    whole = profile_nodes(
        bundle, frame, precision="int8", frames=5 * run.frames, everything=True
    ).head_share
    note = (
        f"K = {TYPICAL}, labels alone; {100 * whole:.1f} % with smoothing and margin; per-node "
        "profile, the profiler's own cost on both sides"
    )
    middle = profiles[shares.index(statistics.median_low(shares))]
    return Found(statistics.median(shares), min(shares), max(shares), note, middle.to_json())


def measure_roofline(run: Run) -> Found:
    """The encoder's bound on this CPU over its time, both measured here."""
    found = cpu_share(run.bundle, runs=5 * run.frames)
    note = (
        f"bound {found.bound_ms:.2f} ms from {found.peaks.int8 / 1e12:.2f} Top/s; median frame "
        f"{found.measured_ms:.2f} ms, fastest {100 * found.fastest_share:.0f} %"
    )
    return Found(100 * found.share, note=note, details=found.to_json())


def measure_split(run: Run) -> Found:
    """The split path over the fused one: frame in, full-size labels out, both."""
    found = side_by_side(
        run.bundle,
        more=split_paths(run.bundle, precision="int8", threads=1),
        precision="int8",
        rounds=run.rounds,
        frames=run.frames,
        source_frames=[run.picture],
    )
    whole = mine(found.first, WHOLE)
    note = "KMeans.predict, then a nearest resize of the labels"
    if SMOOTH_SPLIT in found.others:
        smooth = found.comparison.ratio(SMOOTH_SPLIT, whole)
        note += f"; with the fused graph's smooth borders {smooth.median:.2f}"
    return as_ratio(found.comparison.ratio(SPLIT, whole), note, found.comparison.to_json())


def measure_start(run: Run) -> Found:
    """Fresh processes: from before the fork until the first frame's result is read."""
    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "clip.mp4")
        times = [first_result(run.path, clip, Path(folder)) for _ in range(run.starts + 1)]
    measured = [seconds for seconds, _ in times[1:]]  # the first one warms the disk
    memory = [resident for _, resident in times[1:] if resident is not None]
    return Found(
        statistics.median(measured),
        min(measured),
        max(measured),
        f"median of {run.starts} processes after one that warms the disk; {FRAME[0]}x{FRAME[1]}",
        {
            "seconds": [round(value, 4) for value in measured],
            "resident_mb_then": statistics.median(memory) if memory else None,
        },
    )


def measure_memory(run: Run) -> Found:
    """A fresh process that loads the bundle and segments frames through the Python interface."""
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.npy"
        np.save(frame, run.picture)
        command = [sys.executable, "-c", MEMORY, str(run.path), str(frame), "100"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        return Found(None, note=f"the process failed: {done.stderr.strip().splitlines()[-1]}")
    memory = json.loads(done.stdout)
    if memory is None:
        return Found(None, note="this system does not say")
    resident, peak = memory["resident"] / 1e6, memory["peak"] / 1e6
    note = (
        f"K = {run.bundle.manifest.clusters}, one thread, after 100 frames; at most {peak:.0f} MB"
    )
    return Found(resident, note=note, details=memory)


def measure_pixels(run: Run) -> Found:
    """Inference at four sizes in turn; of any two sizes, the dearer pixel over the cheaper."""
    multiple = run.bundle.manifest.multiple
    sizes = [
        (max(round(w / multiple), 1) * multiple, max(round(h / multiple), 1) * multiple)
        for w, h in SIZES
    ]
    found = alternate_sizes(run, sizes)
    pixels = {f"{width}x{height}": width * height for width, height in sizes}
    cost = Comparison(
        {
            name: tuple(1e6 * time / pixels[name] for time in times)
            for name, times in found.milliseconds.items()
        },
        found.frames,
    )
    pairs = {pair: cost.ratio(*pair) for pair in itertools.permutations(pixels, 2)}
    worst = max(pairs, key=lambda pair: pairs[pair].median)
    growth = [100 * (value - 1) for value in astuple(pairs[worst])]
    medians = {name: statistics.median(each) for name, each in cost.milliseconds.items()}
    shown = ", ".join(f"{name} {value:.1f}" for name, value in medians.items())
    return Found(
        growth[0],
        growth[1],
        growth[2],
        f"a pixel of {worst[0]} over one of {worst[1]}, inference alone; ms a megapixel: {shown}",
        {"ms_per_megapixel": medians, **found.to_json()},
    )


def measure_clusters(run: Run) -> Found:
    """Inference with 256 clusters over that with 16, labels at the encoder's own stride."""
    manifest = run.bundle.manifest
    coarse = with_output_stride(run.bundle, manifest.stride)
    with ExitStack() as stack:
        stack.enter_context(threads_held(1))
        candidates = {
            f"K={count}": inference_of(
                stack.enter_context(
                    Segmenter.load(
                        coarse.with_codebook(random_codebook(count, manifest.latent_dim)),
                        precision="int8",
                        backend="onnxruntime",
                        threads=1,
                    )
                )
            )
            for count in CLUSTERS
        }
        found = alternate(candidates, [run.picture] * run.frames, run.rounds)
    few, many = (f"K={count}" for count in CLUSTERS)
    ratio = found.ratio(many, few)
    growth = [100 * (value - 1) for value in astuple(ratio)]
    note = f"inference alone, labels at stride {manifest.stride}"
    return Found(growth[0], growth[1], growth[2], note, found.to_json())


def as_ratio(ratio: Ratio, note: str, details: Mapping[str, Any]) -> Found:
    """A ratio as a row's value."""
    return Found(ratio.median, ratio.low, ratio.high, note, details)


def mine(names: Sequence[str], part: str) -> str:
    """The bundle's candidate that is timed so."""
    return next(name for name in names if name.endswith(part))


def alternate_sizes(run: Run, sizes: Sequence[tuple[int, int]]) -> Comparison:
    """Time inference at several sizes in turn, each on a frame of its own size."""
    channels = run.bundle.manifest.geometry.channels
    with ExitStack() as stack:
        stack.enter_context(threads_held(1))
        candidates = {}
        for width, height in sizes:
            segmenter = stack.enter_context(
                Segmenter.load(
                    run.bundle,
                    precision="int8",
                    backend="onnxruntime",
                    threads=1,
                    imgsz=(width, height),
                )
            )
            picture = draw_scene(40, width, height).repeat(-(-channels // 3), axis=2)
            frame = np.ascontiguousarray(picture[..., :channels])
            call = inference_of(segmenter)
            candidates[f"{width}x{height}"] = lambda _, call=call, frame=frame: call(frame)
        return alternate(candidates, [run.picture] * max(run.frames // 4, 1), run.rounds)


def write_clip(path: Path) -> Path:
    """A clip of ten drawn frames."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, FRAME)
    for index in range(10):
        writer.write(draw_scene(3 * index, *FRAME))
    writer.release()
    if not path.is_file() or not path.stat().st_size:
        raise UsageError("this OpenCV writes no mp4v clips", fix="Install opencv-python-headless.")
    return path


def first_result(bundle: Path, clip: Path, folder: Path) -> tuple[float, float | None]:
    """Run `aeseg run` once; seconds until its first line of JSON, and its resident MB then."""
    pipe = folder / "results"
    if not pipe.exists():
        os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        command = [sys.executable, "-m", "aeseg_edge.cli", "run", str(clip), "-b", str(bundle)]
        command += ["-o", f"json:{pipe}", "--precision", "int8", "--backend", "onnxruntime"]
        start = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as child:
            ready, _, _ = select.select([reader], [], [], START_SECONDS)
            seconds = time.perf_counter() - start
            first = os.read(reader, 1) if ready else b""
            resident = resident_mb(child.pid)
            _, complaint = child.communicate()
        if first != b"{":
            raise UsageError(
                f"aeseg run gave no label map: {complaint.decode(errors='replace').strip()}",
                fix="Run it by hand.",
            )
    finally:
        os.close(reader)
    return seconds, resident


def resident_mb(process: int) -> float | None:
    """Resident MB of a process; None where Linux's /proc is absent or it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(kilobytes[0]) * 1024 / 1e6 if kilobytes else None


MEASURES: dict[str, Callable[[Run], Found]] = {
    "fcn": lambda run: measure_peer(run, "fcn-resnet18"),
    "lraspp": lambda run: measure_peer(run, "lraspp-mobilenetv3"),
    "int8": measure_int8,
    "roofline": measure_roofline,
    "rest": measure_rest,
    "head": measure_head,
    "split": measure_split,
    "start": measure_start,
    "memory": measure_memory,
    "pixels": measure_pixels,
    "clusters": measure_clusters,
    "quality": lambda run: Found(None, note="see docs/quality.md"),
}
