"""A sink is found by how it is written, and ends as its block ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import Routed
from aeseg_edge.sinks.registry import SINKS, Kind, needs_decoder, open_sink, open_sinks
from aeseg_edge.support.lazy import load
from tests.doubles.drawn import names, read_video, write
from tests.doubles.labelled import TWO

cv2 = pytest.importorskip("cv2")


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    with open_sink(f"file://{tmp_path}/out.avi") as sink:
        write(sink, 1)
    assert names(tmp_path) == ["out.avi"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("out.xyz", r"is no sink: \.xyz is not known\. Give a video"),
        ("out", "no suffix is not known"),
        ("gopher://out.mp4", "unknown scheme"),
        ("null://?view=depth", "view 'depth' is unknown"),
        ("null://?size=3", r"unknown options \['size'\]"),
        ("out.mp4?view", "view '' is unknown"),
        ("{name}.mp4", r"\{name\} stands for a picture's file\. Write \{source\}"),
        ("json:{name}.jsonl", "stands for a picture's file"),
        ("out.mp4?legend", r"unknown options \['legend'\]"),
        ("json:a?append", "asks for append=."),
    ],
)
def test_what_is_no_sink_is_refused(uri: str, message: str) -> None:
    with pytest.raises(SinkError, match=message):
        open_sink(uri)


def test_null_takes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_sink("null://") as sink:
        write(sink, 3)
    assert names(tmp_path) == []


def test_ctrl_c_in_a_with_block_keeps_what_was_written(tmp_path: Path) -> None:
    def run() -> None:
        with open_sink(str(tmp_path / "out.mp4")) as sink:
            write(sink, 7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert names(tmp_path) == ["out.mp4"]
    assert len(read_video(tmp_path / "out.mp4")) == 7


def test_an_error_in_a_with_block_leaves_nothing(tmp_path: Path) -> None:
    def run() -> None:
        with open_sink(str(tmp_path / "out.mp4")) as sink:
            write(sink, 7)
            raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        run()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("json:", "names no file"),
        ("unix:", "names no file"),
        ("json:a?view=mask", "unknown options"),
        ("unix:a?append=1", "unknown options"),
        ("json:/nowhere/at/all.jsonl", "cannot be written"),
        ("unix:/nowhere/at/all.sock", "cannot be written"),
        ("unix:/tmp/" + "x" * 120, "too long"),
    ],
)
def test_what_cannot_be_a_file_or_socket_is_refused(uri: str, problem: str) -> None:
    with pytest.raises(SinkError, match=problem):
        open_sink(uri)


def test_a_sink_with_the_source_in_its_name_is_one_for_each(tmp_path: Path) -> None:
    sinks = open_sinks(f"{tmp_path}/out-{{source}}.mp4", TWO)
    assert [each.source for each in sinks if isinstance(each, Routed)] == ["csi://0", "csi://1"]
    names = [each.sink.name for each in sinks if isinstance(each, Routed)]
    assert names == [f"{tmp_path}/out-csi-0.mp4", f"{tmp_path}/out-csi-1.mp4"]
    for each in sinks:
        assert isinstance(each, Routed)
        each.sink.abort()


@pytest.mark.parametrize("uri", ["null://", "json:{folder}/a.jsonl"])
def test_what_names_the_source_of_each_result_takes_all(uri: str, tmp_path: Path) -> None:
    (sink,) = open_sinks(uri.replace("{folder}", str(tmp_path)), TWO)
    assert not isinstance(sink, Routed)
    sink.close()


@pytest.mark.parametrize("uri", ["out.mp4", "out/%d.png", "gst://appsrc ! fakesink"])
def test_pictures_of_several_sources_are_not_mixed(uri: str) -> None:
    with pytest.raises(SinkError, match=r"mix the pictures of 2 sources\. Put \{source\}"):
        open_sinks(uri, TWO)


def test_one_source_needs_no_routing(tmp_path: Path) -> None:
    (sink,) = open_sinks(f"{tmp_path}/{{source}}.avi", TWO[:1])
    assert not isinstance(sink, Routed)
    assert sink.name.endswith("csi-0.avi")
    sink.abort()


@pytest.mark.parametrize("kind", SINKS, ids=[kind.form for kind in SINKS])
def test_every_sink_names_code_that_is_there(kind: Kind) -> None:
    assert callable(load(kind.opens))


@pytest.mark.parametrize(
    ("uri", "view", "needed"),
    [
        ("a.mp4", "overlay", False),
        ("a.mp4", "decoded", True),
        ("a.mp4?view=mask", "decoded", False),
        ("%d.png?view=error", "overlay", True),
        ("json:a", "error", True),
        ("gst://appsrc ! udpsink host=a?view=decoded", "overlay", False),
    ],
)
def test_a_decoder_is_needed_by_what_draws_with_it(uri: str, view: str, needed: bool) -> None:
    assert needs_decoder(uri, view) == needed


@pytest.mark.parametrize("name", ["2026-01-01T12:00:00.mp4", "json.mp4", "a:b.mkv", "C:d.avi"])
def test_a_name_with_a_colon_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_sink(name) as sink:
        write(sink, 2)
    assert names(tmp_path) == [name]
    assert len(read_video(tmp_path / name)) == 2


@pytest.mark.parametrize(
    "uri",
    [
        "rtmp://me:secret@host/live",
        "http://me:secret@127.0.0.1:80",
        "http://me:secret@127.0.0.1:x",
        "gst://filesink location=rtsp://me:secret@host",
    ],
)
def test_a_refused_sink_does_not_tell_its_password(uri: str) -> None:
    with pytest.raises(SinkError) as refused:
        open_sink(uri)
    assert "secret" not in str(refused.value)
    with pytest.raises(SinkError) as refused:
        open_sinks(uri, TWO)
    assert "secret" not in str(refused.value)
