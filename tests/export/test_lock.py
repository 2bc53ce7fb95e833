"""One training at a time in a folder, and no obstacle after one that was killed."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aeseg_edge.errors import TrainingError
from aeseg_edge.export.lock import reading_of, training_in

HOLD = """
import sys, pathlib
from aeseg_edge.export.lock import training_in
with training_in(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_second_training_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "cam.train"
    with holder(folder) as child:
        for use in (training_in, reading_of):
            with (
                pytest.raises(TrainingError, match=f"process {child.pid} on") as caught,
                use(folder),
            ):
                raise AssertionError("let in")
            assert "another name" in caught.value.fix
        assert (folder / "lock").exists()
        child.communicate("")
    assert not folder.exists()


def test_a_killed_training_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "cam.train"
    with holder(folder) as child:
        child.send_signal(signal.SIGKILL)
    assert (folder / "lock").exists()
    with reading_of(folder):
        pass
    with training_in(folder):
        assert str(os.getpid()) in (folder / "lock").read_text()
    assert list(folder.iterdir()) == []


def test_readers_do_not_keep_one_another_out_and_leave_nothing(tmp_path: Path) -> None:
    with reading_of(tmp_path), reading_of(tmp_path):
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "lock").touch()
    with reading_of(tmp_path), reading_of(tmp_path):
        pass


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    folder = tmp_path / "cam.train"
    with training_in(folder):
        (folder / "model.json").touch()
    assert [path.name for path in folder.iterdir()] == ["model.json"]


def test_a_file_system_without_locks_is_trained_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), training_in(tmp_path / "cam.train"):
        pass
    assert "let no two trainings run in it" in caplog.text


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "cam.train").touch()
    with (
        pytest.raises(TrainingError, match=r"cam\.train cannot be written"),
        training_in(tmp_path / "cam.train"),
    ):
        pass
