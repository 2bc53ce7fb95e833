"""No file is written by two sinks, and none that is read is written over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aeseg_edge.errors import SinkError, UsageError
from aeseg_edge.sinks.names import name_each
from aeseg_edge.sinks.overwrites import refuse_inputs, refuse_shared, target_of
from aeseg_edge.sources.registry import files_of


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("a.mp4?view=mask", "a.mp4"),
        ("file:///x/%06d.png?view=labels", "/x/%06d.png"),
        ("json:a.jsonl?append=1", "a.jsonl"),
        ("json:///x/a", "/x/a"),
        ("json:-", None),
        ("unix:/tmp/s", "/tmp/s"),
        ("window?view=both", None),
        ("null://", None),
        ("http://127.0.0.1:8080", None),
        ("gst://appsrc ! filesink location=a.mp4", None),
    ],
)
def test_the_file_of_a_sink_is_known_before_it_is_open(uri: str, target: str | None) -> None:
    assert target_of(uri) == (None if target is None else Path(target))


def test_two_sinks_of_one_file_are_refused_whatever_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for other in (f"{tmp_path}/a.mp4", f"file://{tmp_path}/b/../a.mp4", f"{tmp_path}/link/a.mp4"):
        with pytest.raises(SinkError, match="would be one file"):
            refuse_shared([f"{tmp_path}/a.mp4?view=mask", other])
    refuse_shared([f"{tmp_path}/a.mp4", f"{tmp_path}/a.avi", "null://", "null://", "window"])
    refuse_shared(["json:/dev/null", "json:/dev/null"])
    refuse_shared(name_each(f"{tmp_path}/{{source}}.mp4", ["!", "?"]))


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize("target", ["clip.mp4", "sub/../clip.mp4", "soft.mp4", "hard.mp4"])
def test_an_output_that_is_an_input_is_refused_under_any_name(tmp_path: Path, target: str) -> None:
    fill(tmp_path, "clip.mp4")
    (tmp_path / "sub").mkdir()
    (tmp_path / "soft.mp4").symlink_to(tmp_path / "clip.mp4")
    os.link(tmp_path / "clip.mp4", tmp_path / "hard.mp4")
    with pytest.raises(UsageError, match=r"is the input .*clip\.mp4, and would destroy it"):
        refuse_inputs([tmp_path / target], files_of(f"file://{tmp_path}/clip.mp4"))


@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        ("%06d.png", True),
        ("%d.png", False),  # It would write 7.png, not 000007.png.
        ("%04d.png", False),
        ("%06d.jpg", False),
        ("mask_%06d.png", False),
        ("frame%d.png", True),
        ("{name}.png", True),
        ("{name}.jpg", False),
        ("{name}%d.png", True),
        ("{name}_mask.png", False),
        ("%06d.avi", False),  # A video of this name, not a pattern.
    ],
)
@pytest.mark.parametrize("source", ["{0}", "{0}/*.png", "pairs://a={0},b={0}"])
def test_a_pattern_that_would_write_over_its_pictures_is_refused(
    tmp_path: Path, pattern: str, refused: bool, source: str
) -> None:
    folder = tmp_path / "photos"
    fill(folder, "000007.png", "frame12.png", "0x.png")
    fill(tmp_path / "new", "000007.png", "frame12.png")
    inputs = files_of(source.format(folder))
    refuse_inputs([tmp_path / "new" / pattern, tmp_path / "none" / pattern], inputs)
    if refused:
        with pytest.raises(UsageError, match="would destroy it"):
            refuse_inputs([folder / pattern], inputs)
    else:
        refuse_inputs([folder / pattern], inputs)


@pytest.mark.parametrize("uri", ["0", "rtsp://host/a", "test://64x48", "nothing.mp4", "no/*.png"])
def test_cameras_and_what_is_not_there_have_no_files(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert files_of(uri) == []
