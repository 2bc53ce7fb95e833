"""Nothing is written over what is read, and no two outputs are one file: in every verb."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

from aeseg_edge.cli import main  # noqa: E402
from aeseg_edge.sources.registry import files_of  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402
from aeseg_edge.support.files import identity  # noqa: E402

Output = pytest.CaptureFixture[str]


def listing(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, v1_bundle: Path) -> Path:
    """Where everything lies: b.aeseg, photos/, masks/, classes.txt, cam.train/frames/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.aeseg").write_bytes(v1_bundle.read_bytes())
    for name in ("photos", "cam.train/frames"):
        (tmp_path / name).mkdir(parents=True)
        for index in range(3):
            cv2.imwrite(f"{name}/{index}.png", draw_scene(index, 64, 48))
    (tmp_path / "masks").mkdir()
    for index in range(3):
        cv2.imwrite(f"masks/{index}.png", np.full((48, 64), index % 2, np.uint8))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "cam.train" / "model.json").write_text("{}")
    (tmp_path / "link.aeseg").symlink_to("b.aeseg")
    os.link("b.aeseg", "hard.aeseg")
    return tmp_path


EVAL = "eval b.aeseg --images photos --masks masks --classes classes.txt"
REFUSED = [
    # Footage inside NAME.train, whose frames a training replaces.
    "train cam.train/frames -o cam.aeseg",
    "train cam.train -o cam.aeseg",
    "train photos cam.train/frames/0.png -o ./cam.aeseg",
    "train cam.train/frames/*.png -o cam.aeseg",
    "train cam.train/../cam.train/frames -o cam.aeseg",
    "train into -o cam.aeseg",
    "train photos --roi cam.train/frames/0.png -o cam.aeseg",
    "train photos --masks cam.train/frames --classes classes.txt -o cam.aeseg",
    "train photos --masks masks --classes classes.txt --from cam.train -o cam.aeseg",
    "train --modalities visible=photos,thermal=cam.train/frames -o cam.aeseg",
    "train photos -o cam.aeseg --json cam.train/model.json",
    "train photos -o new.aeseg --json new.train/model.json",
    # A report in the place of the result.
    "train photos -o new.aeseg --json new.aeseg",
    "train photos -o new.aeseg --json ./photos/../new.aeseg",
    "train photos -o new.aeseg --clusters auto --json new.clusters.json",
    "train photos -o new.aeseg --latent-dim auto --json new.latents.json",
    "calibrate b.aeseg photos -o q.aeseg --json q.aeseg",
    "export cam.train -o new.aeseg --json new.aeseg",
    "name b.aeseg 0=road -o q.aeseg --json q.aeseg",
    "name b.aeseg 0=road --sheet s.png photos --json s.png",
    "report b.aeseg photos -o r.html --json r.html",
    "bench b.aeseg --sweep --out t --json t.json",
    "compare b.aeseg b.aeseg photos --sheet s.png --json s.png",
    # An output in the place of what is read.
    "calibrate b.aeseg photos -o q.aeseg --json b.aeseg",
    "calibrate b.aeseg photos -o q.aeseg --json photos/1.png",
    "calibrate b.aeseg photos --names-from hard.aeseg -o q.aeseg --json link.aeseg",
    "export cam.train -o q.aeseg --json cam.train/model.json",
    "name b.aeseg 0=road --json b.aeseg",
    "name b.aeseg 0=road --sheet photos/0.png photos",
    "name b.aeseg --from-masks photos masks --classes classes.txt --json masks/0.png",
    "name b.aeseg --from-masks photos masks --classes classes.txt -o q.aeseg --json classes.txt",
    f"{EVAL} --json classes.txt",
    f"{EVAL} --json masks/2.png",
    f"{EVAL} --fit-images photos --fit-masks masks --json photos/2.png",
    "bench b.aeseg photos --json photos/0.png",
    "bench b.aeseg --against hard.aeseg --json link.aeseg",
    "compare b.aeseg link.aeseg photos --sheet photos/0.png",
    "run photos -b b.aeseg -o null:// --stats link.aeseg",
    "run photos -b b.aeseg -o json:hard.aeseg",
    "run photos/0.png -b b.aeseg --frames 1 -o 'gst://appsrc ! filesink location=photos/0.png'",
]


@pytest.mark.parametrize("command", REFUSED)
def test_what_would_be_lost_is_refused_before_any_work(
    command: str, place: Path, capsys: Output
) -> None:
    import shlex

    (place / "into").symlink_to("cam.train/frames")
    before = listing(place)
    assert main(shlex.split(command)) in (1, 2)
    err = capsys.readouterr().err
    assert "would destroy it" in err or "one file" in err or " lies in " in err, err
    assert listing(place) == before


@pytest.mark.parametrize(
    "outputs",
    ["-o a.mp4 -o a.mp4", "-o json:a.json --stats a.json", "-o one/a.mp4 -o two/a.mp4"],
)
def test_two_outputs_of_a_run_are_two_files(outputs: str, place: Path, capsys: Output) -> None:
    (place / "one").mkdir()
    (place / "two").symlink_to("one")
    before = listing(place)
    command = ["run", "test://64x48", "-b", "b.aeseg", "--frames", "1", *outputs.split()]
    assert main(command) == 1
    assert "one file" in capsys.readouterr().err
    assert listing(place) == before


def test_a_bundle_takes_its_new_name_or_calibration_in_place(place: Path, capsys: Output) -> None:
    assert main(["name", "b.aeseg", "0=road"]) == 0
    assert "road" in capsys.readouterr().out
    again = ["calibrate", "link.aeseg", "photos", "--clusters", "2", "--restarts", "1"]
    assert main([*again, "-o", "link.aeseg"]) == 0
    assert main(["info", "b.aeseg"]) == 0
    assert "2 clusters" in capsys.readouterr().out


@pytest.mark.parametrize("sink", ["photos/out%06d.png", "photos/deep/out.avi"])
def test_results_in_the_footage_are_said(
    sink: str, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (place / "photos" / "deep").mkdir()
    with caplog.at_level(logging.WARNING):
        assert main(["run", "photos", "-b", "b.aeseg", "-o", sink]) == 0
    assert "is written into the footage" in caplog.text
    caplog.clear()
    assert main(["run", "photos/0.png", "-b", "b.aeseg", "-o", "other_%d.png"]) == 0
    assert "footage" not in caplog.text


def test_frames_that_a_training_has_kept_are_no_footage_again(place: Path) -> None:
    found = [str(path) for path in files_of(".")]
    assert sorted(found) == [f"{each}/{i}.png" for each in ("masks", "photos") for i in range(3)]
    assert len(files_of("cam.train/frames")) == 3


def test_names_that_differ_in_case_alone_are_one_where_the_folder_says_so(tmp_path: Path) -> None:
    assert identity(tmp_path / "a.mp4") != identity(tmp_path / "A.mp4")
    # What a folder of another system looks like: one file answers to both.
    (tmp_path / "b").write_text("")
    os.link(tmp_path / "b", tmp_path / "B")
    assert identity(tmp_path / "a.mp4") == identity(tmp_path / "A.mp4")
    assert identity(tmp_path / "a.mp4") != identity(tmp_path / "c.mp4")
