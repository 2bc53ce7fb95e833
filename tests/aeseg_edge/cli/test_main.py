"""The command: help, exit codes, JSON, and what every verb does alike."""

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

from aeseg_edge.cli import main, verbs  # noqa: E402
from aeseg_edge.cli.main import build_parser  # noqa: E402
from aeseg_edge.version import __version__  # noqa: E402

WANTED = {"train", "export", "calibrate", "run", "info", "name", "eval", "bench"}


def list_verbs() -> list[str]:
    """The verbs of the parser, whichever modules add some."""
    actions = build_parser()._actions
    return next(list(a.choices) for a in actions if isinstance(a, argparse._SubParsersAction))


VERBS = list_verbs()

Output = pytest.CaptureFixture[str]


def evaluate(bundle: Path, street: Path, *more: str) -> int:
    where = ["--images", str(street / "images"), "--masks", str(street / "masks")]
    classes = ["--classes", str(street / "classes.txt"), "--ignore", "9"]
    return main(["eval", str(bundle), *where, *classes, "--threads", "1", *more])


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


def test_every_verb_is_a_module_of_its_name() -> None:
    folder = Path(verbs.__file__).parent
    assert set(VERBS) == {p.stem for p in folder.glob("*.py") if "\nEXAMPLE" in p.read_text()}


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


def test_a_report_in_the_place_of_what_is_read_is_refused(
    v1_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    bundle = tmp_path / "b.aeseg"
    bundle.write_bytes(v1_bundle.read_bytes())
    assert main(["info", str(bundle), "--json", str(bundle)]) == 2
    assert "would destroy it" in capsys.readouterr().err
    assert bundle.read_bytes() == v1_bundle.read_bytes()


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
