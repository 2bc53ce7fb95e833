"""``aeseg run``: what it writes, and what it will not write over."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.cli import main  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402

Output = pytest.CaptureFixture[str]


def read(captured: Output) -> Any:
    """What is on standard output, all of it, is one JSON text."""
    return json.loads(captured.readouterr().out)


def frames_of(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        good, frame = capture.read()
        if not good:
            capture.release()
            return frames
        frames.append(frame)


def run_json(tmp_path: Path, *arguments: str) -> dict[str, object]:
    stats = tmp_path / "stats.json"
    assert main(["run", *arguments, "--stats", str(stats)]) == 0
    found: dict[str, object] = json.loads(stats.read_text())
    return found


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
    from aeseg_edge.sources import registry as sources

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


@pytest.mark.parametrize("option", ["--duration", "--stall"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_times_that_are_no_times_are_refused(
    option: str, value: str, v1_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "test://48x32", "-b", str(v1_bundle), f"{option}={value}"]) == 2
    assert "not a time in seconds above 0" in capsys.readouterr().err
