"""The command: help, exit codes, JSON, and the verbs that use a bundle."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.bundle.manifest import Modality  # noqa: E402
from aeseg_edge.cli import main  # noqa: E402
from aeseg_edge.cli.main import build_parser  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402
from aeseg_edge.version import __version__  # noqa: E402

WANTED = {"train", "export", "calibrate", "run", "info", "name", "eval", "bench"}


def list_verbs() -> list[str]:
    """The verbs of the parser, whichever modules add some."""
    actions = build_parser()._actions
    return next(list(a.choices) for a in actions if isinstance(a, argparse._SubParsersAction))


VERBS = list_verbs()

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labelled frames: images/, masks/ (0 above, 1 below, 9 ignored), classes.txt."""
    folder = tmp_path_factory.mktemp("street")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(6):
        mask = np.zeros((80, 120), np.uint8)
        mask[40:] = 1
        mask[:, :5] = 9
        cv2.imwrite(str(folder / "images" / f"{index}.png"), draw_scene(9 * index, 120, 80))
        cv2.imwrite(str(folder / "masks" / f"{index}.png"), mask)
    (folder / "classes.txt").write_text("above\nbelow\n")
    return folder


def evaluate(bundle: Path, street: Path, *more: str) -> int:
    where = ["--images", str(street / "images"), "--masks", str(street / "masks")]
    classes = ["--classes", str(street / "classes.txt"), "--ignore", "9"]
    return main(["eval", str(bundle), *where, *classes, "--threads", "1", *more])


def read(captured: Output) -> Any:
    """What is on standard output, all of it, is one JSON text."""
    return json.loads(captured.readouterr().out)


# --- help and exit codes --------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_ends_in_an_example(verb: str, capsys: Output) -> None:
    assert main([verb, "--help"]) == 0
    assert re.search(rf"example:\n  aeseg {verb} \S+.*\n$", capsys.readouterr().out)


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_in_the_help_is_a_command_that_parses(verb: str, capsys: Output) -> None:
    main([verb, "--help"])
    example = capsys.readouterr().out.rstrip().splitlines()[-1].split()
    assert build_parser().parse_args(example[1:]).verb == verb


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("bench B.aeseg --threads 1 clip.mp4", {"bundle": Path("B.aeseg"), "source": "clip.mp4"}),
        ("export N.train -o B.aeseg a.mp4 b.mp4", {"sources": ["a.mp4", "b.mp4"]}),
        ("calibrate B.aeseg a.mp4 -o C.aeseg b.mp4", {"sources": ["a.mp4", "b.mp4"]}),
        ("name B.aeseg --void 4 3=road", {"names": ["3=road"], "void": ["4"]}),
        ("run -o null:// -- -odd.mp4", {"source": ["-odd.mp4"]}),
    ],
)
def test_words_and_options_come_in_any_order(words: str, wanted: dict[str, Any]) -> None:
    found = vars(build_parser().parse_args(words.split()))
    assert {key: found[key] for key in wanted} == wanted


def test_the_help_lists_every_verb(capsys: Output) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert set(VERBS) >= WANTED
    assert all(re.search(rf"^ +{verb}\b", out, re.MULTILINE) for verb in VERBS)


def test_the_version_is_the_packages(capsys: Output) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aeseg_edge {__version__}\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ([], "required: VERB"),
        (["fly"], "invalid choice: 'fly'"),
        (["info"], "required: bundle"),
        (["train", "x.mp4"], "required: -o/--output"),
        (["train", "x.mp4", "-o", "a.aeseg", "--imgsz", "480"], "'480' is not a size such as"),
        (["train", "x.mp4", "-o", "a.aeseg", "--imgsz", "0x360"], "'0x360' is not a size"),
        (["train", "x.mp4", "-o", "a.aeseg", "--clusters", "-3"], "not a whole number of at least"),
        (["train", "x.mp4", "-o", "a.aeseg", "--arch", "unet"], "invalid choice: 'unet'"),
        (["train", "x", "-o", "a.aeseg", "--epochs", "1", "--minutes", "2"], "not allowed with"),
        (["run", "x.mp4", "-b", "a.aeseg", "--alpha", "2"], "'2' is not within 0..1"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(
    command: list[str], says: str, capsys: Output
) -> None:
    assert main(command) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


def test_an_output_of_another_kind_is_wrong_usage(tmp_path: Path, capsys: Output) -> None:
    pytest.importorskip("torch")
    assert main(["train", "x.mp4", "-o", str(tmp_path / "a.onnx")]) == 2
    assert "does not end in .aeseg" in capsys.readouterr().err


def test_a_failure_exits_with_1_and_gives_the_fix_on_a_line_of_its_own(
    tmp_path: Path, capsys: Output
) -> None:
    assert main(["info", str(tmp_path / "gone.aeseg")]) == 1
    problem, fix = capsys.readouterr().err.splitlines()
    assert problem == f"aeseg: error: {tmp_path / 'gone.aeseg'}: there is no such file."
    assert re.fullmatch(r"  [A-Z].*\.", fix)


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    gone = str(tmp_path / "gone" / "x.json")
    assert evaluate(v1_bundle, street, "--json", gone) == 1
    captured = capsys.readouterr()
    assert "Make the folder first" in captured.err
    assert captured.out == ""
    command = ["run", "test://64x48", "-b", str(v1_bundle), "--stats", gone, "--frames", "1"]
    assert main(command) == 1
    assert "frames in" not in capsys.readouterr().err


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/fd/{0}", "fifo"])
def test_a_report_goes_into_a_pipe(
    target: str, v1_bundle: Path, tmp_path: Path, repository: Path
) -> None:
    read, write = os.pipe()
    where = target.format(write)
    if target == "fifo":
        where = str(tmp_path / "fifo")
        os.mkfifo(where)
        os.close(read)
        read = os.open(where, os.O_RDONLY | os.O_NONBLOCK)
    out = write if target == "/dev/stdout" else subprocess.DEVNULL
    command = [sys.executable, "-m", "aeseg_edge.cli", "info", str(v1_bundle), "--json", where]
    done = subprocess.run(command, cwd=repository, stdout=out, pass_fds=(write,))
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    assert done.returncode == 0
    found, _ = json.JSONDecoder().raw_decode(text, text.index("{\n"))
    assert found["latent_dim"] == 8


# --- info -----------------------------------------------------------------------------------------


def test_info_says_what_is_in_a_bundle(v1_bundle: Path, capsys: Output) -> None:
    assert main(["info", str(v1_bundle)]) == 0
    out = capsys.readouterr().out
    assert "96x64, 3 channels, stretch" in out
    assert "5 clusters" in out
    assert "int8  onnxruntime" in out
    assert "class 4" in out


def test_info_as_json_is_the_manifest(v1_bundle: Path, tmp_path: Path, capsys: Output) -> None:
    assert main(["info", str(v1_bundle), "--json", "-"]) == 0
    manifest = read(capsys)
    assert manifest["geometry"]["width"] == 96
    assert manifest["clusters"] == 5
    assert main(["info", str(v1_bundle), "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text()) == manifest
    assert "96x64" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error(v1_bundle: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "aeseg_edge.cli", "info", str(v1_bundle)]
    child = subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait(timeout=60) in (0, 1)


# --- bench ----------------------------------------------------------------------------------------


def test_bench_gives_percentiles_of_every_stage(v1_bundle: Path, capsys: Output) -> None:
    command = ["bench", str(v1_bundle), "--frames", "10", "--warmup", "0", "--threads", "1"]
    assert main([*command, "--json", "-"]) == 0
    report = read(capsys)
    assert report["frames"] == 10
    stages = ["preprocess", "copy_in", "inference", "copy_out", "postprocess", "total"]
    assert list(report["stages_ms"]) == stages
    for summary in report["stages_ms"].values():
        assert {"p50", "p90", "p95", "p99", "mean", "max"} <= set(summary)
        assert summary["p50"] <= summary["p99"] <= summary["max"]
    assert report["fps"] > 0
    assert report["precision"] == "int8"
    assert report["settings"]["threads"] == 1


def test_bench_takes_a_source_and_a_precision(
    v1_bundle: Path, street: Path, capsys: Output
) -> None:
    command = ["bench", str(v1_bundle), str(street / "images"), "--frames", "4", "--warmup", "0"]
    assert main([*command, "--precision", "fp32"]) == 0
    out = capsys.readouterr().out
    assert "fp32 on onnxruntime" in out
    assert "120x80" in out


# --- eval -----------------------------------------------------------------------------------------


def test_eval_writes_exactly_these_keys(v1_bundle: Path, street: Path, capsys: Output) -> None:
    assert evaluate(v1_bundle, street, "--json", "-") == 0
    report = read(capsys)
    assert set(report) == {"frames", "clusters", "classes", "hungarian"}
    assert (report["frames"], report["clusters"]) == (6, 5)
    assert report["classes"] == ["above", "below"]
    assert set(report["hungarian"]) == {"miou", "pixel_accuracy", "iou"}
    assert len(report["hungarian"]["iou"]) == 2
    assert 0 < report["hungarian"]["miou"] <= report["hungarian"]["pixel_accuracy"] <= 100


@pytest.mark.parametrize("verb", ["eval", "compare"])
def test_a_missing_scipy_is_named_before_any_frame_is_read(
    verb: str, v1_bundle: Path, street: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a frame was segmented")

    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    monkeypatch.setattr("aeseg_edge.segment.segmenter.Segmenter.clusters", never)
    if verb == "eval":
        assert evaluate(v1_bundle, street) == 1
    else:
        assert main(["compare", str(v1_bundle), str(v1_bundle), "no such file.mp4"]) == 1
    err = capsys.readouterr().err
    assert "scipy is not importable" in err
    assert "pip install 'aeseg_edge[calibrate]'" in err
    assert "Traceback" not in err


def test_flicker_of_what_has_no_end_wants_a_number_of_frames(
    v1_bundle: Path, capsys: Output
) -> None:
    assert main(["flicker", str(v1_bundle), "test://64x48@30"]) == 2
    assert "test://64x48@30 has no end" in capsys.readouterr().err
    assert main(["flicker", str(v1_bundle), "test://64x48@30", "--frames", "2"]) == 0


def test_flicker_takes_frames_of_several_modalities(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    bundle = tmp_path / "grey.aeseg"
    modalities = tuple(Modality(name, 1) for name in "abc")
    Bundle.open(v1_bundle).with_modalities(modalities).write(bundle)
    source = "pairs://" + ",".join(f"{name}:1={street / 'images'}" for name in "abc")
    assert main(["flicker", str(bundle), source]) == 0
    assert "6 frames" in capsys.readouterr().out


def test_eval_names_clusters_by_majority_where_there_are_fit_frames(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    fit = ["--fit-images", str(street / "images"), "--fit-masks", str(street / "masks")]
    target = tmp_path / "report.json"
    assert evaluate(v1_bundle, street, *fit, "--fit-every", "2", "--json", str(target)) == 0
    assert "majority" in capsys.readouterr().out
    report = json.loads(target.read_text())
    assert set(report) == {"frames", "clusters", "classes", "hungarian", "majority"}
    # Five clusters share two classes, so nothing is left unmatched; and most are right.
    assert report["majority"]["pixel_accuracy"] > 80
    assert report["majority"]["pixel_accuracy"] > report["hungarian"]["pixel_accuracy"]


def test_eval_scores_the_bundles_own_names_where_they_occur(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "classes.txt").write_text("Class 0\nclass 1\n")
    named = ["--classes", str(tmp_path / "classes.txt")]
    assert evaluate(v1_bundle, street, *named, "--json", "-") == 0
    report = read(capsys)
    assert set(report) == {"frames", "clusters", "classes", "hungarian", "named"}
    assert set(report["named"]) == {"miou", "pixel_accuracy", "iou"}


def test_eval_wants_both_folders_of_fit_frames(
    v1_bundle: Path, street: Path, capsys: Output
) -> None:
    assert evaluate(v1_bundle, street, "--fit-images", str(street / "images")) == 2
    assert "--fit-images and --fit-masks go together" in capsys.readouterr().err


def test_a_full_covariance_is_refused_with_the_reason_before_any_footage_is_read(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    command = ["calibrate", str(v1_bundle), "no-such-footage", "-o", str(tmp_path / "a.aeseg")]
    assert main([*command, "--clustering", "gmm", "--covariance", "full"]) == 2
    told = capsys.readouterr().err
    assert "products of two different channels" in told
    assert "tied" in told


def test_calibrate_chooses_the_number_of_clusters_and_writes_the_curve(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    output = tmp_path / "a.aeseg"
    command = ["calibrate", str(v1_bundle), str(street / "images"), "-o", str(output)]
    options = ["--clusters", "auto:2-4", "--restarts", "2", "--threads", "1"]
    assert main([*command, *options, "--balance", "regions"]) == 0
    told = capsys.readouterr().out
    chosen = json.loads((tmp_path / "a.clusters.json").read_text())
    assert [item["clusters"] for item in chosen["candidates"]] == [2, 3, 4]
    assert f"{chosen['chosen']} clusters" in told
    assert "between halves of the footage" in told
    assert f"curve: {tmp_path / 'a.clusters.json'}" in told
    assert main(["info", str(output)]) == 0
    assert "stability between halves of the footage: ARI" in capsys.readouterr().out


def test_calibrate_keeps_the_names_unless_told_otherwise(
    v1_bundle: Path, street: Path, tmp_path: Path, capsys: Output
) -> None:
    named = tmp_path / "named.aeseg"
    assert main(["name", str(v1_bundle), "0=road", "-o", str(named)]) == 0
    command = ["calibrate", str(named), str(street / "images"), "--restarts", "2"]
    for options, names in (([], True), (["--names-from", "none"], False)):
        output = tmp_path / "out.aeseg"
        capsys.readouterr()
        assert main([*command, "-o", str(output), "--threads", "1", *options]) == 0
        assert ("clusters keep their names" in capsys.readouterr().out) == names
        calibration = Bundle.open(output).manifest.training["calibration"]
        assert ("names" in calibration) == names
    missing = ["--names-from", str(tmp_path / "gone.aeseg")]
    assert main([*command, "-o", str(output), *missing]) == 1
    assert "gone.aeseg: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["auto:9-4", "auto:4", "some", "0"])
def test_a_range_of_clusters_that_makes_no_sense_is_refused(
    v1_bundle: Path, tmp_path: Path, capsys: Output, text: str
) -> None:
    command = ["calibrate", str(v1_bundle), "no-such-footage", "-o", str(tmp_path / "a.aeseg")]
    try:
        code = main([*command, "--clusters", text])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2
    assert "auto:4-40" in capsys.readouterr().err


# --- run ------------------------------------------------------------------------------------------


def frames_of(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        good, frame = capture.read()
        if not good:
            capture.release()
            return frames
        frames.append(frame)


def test_run_writes_a_video_images_and_statistics_at_once(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    sinks = ["-o", str(tmp_path / "out.mp4"), "-o", str(tmp_path / "out" / "%03d.png?view=labels")]
    command = ["run", "test://120x80@10", "-b", str(v1_bundle), "--frames", "5", *sinks]
    assert main([*command, "--threads", "1", "--stats", "-"]) == 0
    captured = capsys.readouterr()
    stats = json.loads(captured.out)
    assert (stats["frames"], stats["drops"], stats["stopped_by_signal"]) == (5, 0, False)
    assert (stats["precision"], stats["backend"]) == ("int8", "onnxruntime")
    assert re.search(r"5 frames in .* fps, p50 .* ms, p95 .* ms", captured.err)
    assert len(frames_of(tmp_path / "out.mp4")) == 5
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [f"{index:03d}.png" for index in range(5)]
    labels = cv2.imread(str(tmp_path / "out" / "000.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (80, 120)
    assert labels.max() < 5


def test_run_shows_frame_and_mask_side_by_side(
    v1_bundle: Path, street: Path, tmp_path: Path
) -> None:
    for view in ("mask", "both"):
        sink = str(tmp_path / f"{view}_%d.png")
        command = ["run", str(street / "images"), "-b", str(v1_bundle), "-o", sink]
        assert main([*command, "--view", view, "--no-legend"]) == 0
    mask = cv2.imread(str(tmp_path / "mask_5.png"))
    both = cv2.imread(str(tmp_path / "both_5.png"))
    assert mask.shape == (80, 120, 3)
    assert both.shape[1] >= 2 * mask.shape[1]


def test_run_leaves_what_is_outside_the_region_void(v1_bundle: Path, tmp_path: Path) -> None:
    roi = np.zeros((40, 60), np.uint8)
    roi[:, 30:] = 255
    cv2.imwrite(str(tmp_path / "roi.png"), roi)
    sink = str(tmp_path / "%d.png?view=labels")
    command = ["run", "test://120x80", "-b", str(v1_bundle), "-o", sink, "--frames", "1"]
    assert main([*command, "--roi", str(tmp_path / "roi.png")]) == 0
    labels = cv2.imread(str(tmp_path / "0.png"), cv2.IMREAD_UNCHANGED)
    assert (labels[:, :60] == 255).all()
    assert (labels[:, 60:] < 5).all()


def test_run_stops_at_the_end_of_its_source(v1_bundle: Path, street: Path, capsys: Output) -> None:
    source = str(street / "images" / "*.png")
    assert main(["run", source, "-b", str(v1_bundle), "--stats", "-"]) == 0
    assert read(capsys)["frames"] == 6


def run_json(tmp_path: Path, *arguments: str) -> dict[str, object]:
    stats = tmp_path / "stats.json"
    assert main(["run", *arguments, "--stats", str(stats)]) == 0
    found: dict[str, object] = json.loads(stats.read_text())
    return found


@pytest.mark.parametrize(
    "verb",
    [
        ["run", "--frames", "3", "--stats", "-"],
        ["bench", "--frames", "3", "--warmup", "0", "--json", "-"],
        ["flicker", "--frames", "3", "--json", "-"],
        ["report", "--frames", "3", "--no-layers", "-o", "report.html", "--json", "-"],
    ],
    ids=lambda verb: verb[0],
)
def test_a_password_is_part_of_no_result(
    v1_bundle: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
    verb: list[str],
) -> None:
    from aeseg_edge import sources

    monkeypatch.chdir(tmp_path)
    real = sources.open_source
    monkeypatch.setattr(sources, "open_source", lambda uri, **more: real("test://96x64", **more))
    name, *options = verb
    bundle = ["-b", str(v1_bundle)] if name == "run" else [str(v1_bundle)]
    assert main([name, *bundle, "http://admin:secret@cam/1", *options, "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["source"] == "http://cam/1"
    pages = [path.read_text() for path in tmp_path.iterdir()]
    assert "secret" not in "".join([captured.out, captured.err, *pages])


def test_several_sources_share_an_engine_and_have_a_file_each(
    v1_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = ["test://96x64@25", "test://96x64@25"]
    output = ["-o", str(tmp_path / "{source}.avi"), "-o", f"json:{tmp_path}/all.jsonl"]
    stats = run_json(tmp_path, *two, "-b", str(v1_bundle), "--frames", "10", *output)
    names = ["test://96x64@25", "test://96x64@25 (2)"]
    assert [each["name"] for each in stats["sources"]] == names  # type: ignore[attr-defined]
    counts = [each["segmented"] for each in stats["sources"]]  # type: ignore[attr-defined]
    assert sum(counts) == 10
    # In turn; which of them is ready first is the scheduler's.
    assert min(counts) >= 2
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    taken = [json.loads(line)["source"] for line in lines]
    assert [taken.count(name) for name in names] == counts
    for name, count in zip(("test-96x64-25.avi", "test-96x64-25-2.avi"), counts, strict=True):
        capture = cv2.VideoCapture(str(tmp_path / name), cv2.CAP_FFMPEG)
        assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == count
    assert "test://96x64@25 (2): " in capsys.readouterr().err


def test_a_recording_at_its_own_rate_ends_after_its_duration(
    v1_bundle: Path, tmp_path: Path
) -> None:
    stats = run_json(
        tmp_path, "test://48x32@50", "-b", str(v1_bundle), "--realtime", "--duration", "0.4"
    )
    # At full speed it would be hundreds; how many of the 20 a busy machine drops is its own.
    (source,) = stats["sources"]  # type: ignore[misc]
    assert 2 <= source["frames_in"] <= 22
    assert source["state"] == "ended"


def test_sources_that_would_share_a_video_are_refused(
    v1_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mp4"
    command = ["run", "test://48x32", "test://64x32", "-b", str(v1_bundle), "-o", str(output)]
    assert main(command) == 1
    assert "{source}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "output",
    [
        ("-o", "{folder}/clip.avi"),
        ("-o", "json:{folder}/clip.avi"),
        ("-o", "{source}", "--stats", "-"),
        ("--stats", "{folder}/clip.avi"),
        ("-o", "json:{folder}/b.aeseg"),
        ("-o", "{folder}/%d.png", "--roi", "{folder}/0.png"),
    ],
)
def test_run_writes_over_none_of_its_inputs(
    output: tuple[str, ...],
    v1_bundle: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.aeseg").write_bytes(v1_bundle.read_bytes())
    cv2.imwrite("0.png", np.full((8, 8), 255, np.uint8))
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for index in range(3):
        writer.write(draw_scene(index, 64, 48))
    writer.release()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    where = [each.replace("{folder}", str(tmp_path)) for each in output]
    assert main(["run", "clip.avi", "-b", "b.aeseg", "--frames", "2", *where]) == 2
    assert "would destroy it" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_pictures_are_not_written_over_by_their_own_segmentation(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    cv2.imwrite(str(tmp_path / "000000.png"), draw_scene(0, 64, 48))
    before = (tmp_path / "000000.png").read_bytes()
    command = ["run", str(tmp_path), "-b", str(v1_bundle), "-o"]
    assert main([*command, str(tmp_path / "%06d.png")]) == 2
    assert "would destroy it" in capsys.readouterr().err
    assert (tmp_path / "000000.png").read_bytes() == before
    assert main([*command, str(tmp_path / "mask_%06d.png")]) == 0


def test_a_report_in_the_place_of_what_is_read_is_refused(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    bundle = tmp_path / "b.aeseg"
    bundle.write_bytes(v1_bundle.read_bytes())
    assert main(["info", str(bundle), "--json", str(bundle)]) == 2
    assert "would destroy it" in capsys.readouterr().err
    assert bundle.read_bytes() == v1_bundle.read_bytes()


def test_sources_that_would_have_one_name_on_the_disk_lose_nothing(
    v1_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("!", 2), ("?", 1)):
        (tmp_path / name).mkdir()
        for index in range(count):
            cv2.imwrite(f"{name}/{index}.png", draw_scene(index, 64, 48))
    command = ["run", "!", "?", "-b", str(v1_bundle)]
    assert main([*command, "-o", "{source}.avi"]) == 0
    assert [len(frames_of(Path(f"{name}.avi"))) for name in ("source", "source-2")] == [2, 1]


@pytest.mark.parametrize("outputs", [("a.mp4", "a.mp4"), ("./a.jpg", "a.jpg?view=mask")])
def test_two_outputs_of_one_name_are_refused(
    outputs: tuple[str, str],
    v1_bundle: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["run", "test://64x48", "-b", str(v1_bundle), "--frames", "1"]
    assert main([*command, "-o", outputs[0], "-o", outputs[1]]) == 1
    assert "would be one file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_named_in_utf8_is_read_reported_and_shown(
    v1_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    bundle, roi, stats = folder / "b.aeseg", folder / "roi.png", folder / "s.json"
    bundle.write_bytes(v1_bundle.read_bytes())
    white = cv2.imencode(".png", np.full((8, 8), 255, np.uint8))[1].tobytes()
    roi.write_bytes(white)
    (folder / "frame.png").write_bytes(white)
    command = ["run", str(folder), "-b", str(bundle), "--roi", str(roi), "--frames", "1"]
    assert main([*command, "--stats", str(stats), "-o", f"json:{folder}/a.jsonl"]) == 0
    assert json.loads(stats.read_bytes())["source"] == str(folder)
    shown = subprocess.run(
        [sys.executable, "-m", "aeseg_edge.cli", "info", str(bundle)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"b.aeseg" in shown.stdout


@pytest.mark.parametrize("option", ["--duration", "--stall"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_times_that_are_no_times_are_refused(
    option: str, value: str, v1_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "test://48x32", "-b", str(v1_bundle), f"{option}={value}"]) == 2
    assert "not a time in seconds above 0" in capsys.readouterr().err
