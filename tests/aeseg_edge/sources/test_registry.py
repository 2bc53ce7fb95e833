"""A source is found by how it is written, and named without its password."""

from __future__ import annotations

from pathlib import Path

import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.sinks import gstreamer as gst_sink
from aeseg_edge.sinks.base import Asked
from aeseg_edge.sources import gstreamer
from aeseg_edge.sources.registry import SCHEMES, open_source
from aeseg_edge.support.lazy import load
from aeseg_edge.support.text import without_password
from tests.doubles.pictures import plain, write_image

cv2 = pytest.importorskip("cv2")


def test_a_wrong_path_is_named_with_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.mp4 does not exist\. Give a video, an image"):
        open_source(str(tmp_path / "none.mp4"))


@pytest.mark.parametrize("uri", ["gopher://host/a", "://", "rtp:///x", "file://", "test://"])
def test_an_unknown_scheme_is_refused(uri: str) -> None:
    with pytest.raises(SourceError, match="unknown scheme"):
        open_source(uri)


def test_an_empty_source_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.png", plain(1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="the source is empty"):
        open_source("")


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("v4l2:///dev/video0?size=big", "no size or rate"),
        ("v4l2:///dev/video0?size=0x480", "no size or rate"),
        ("0?fps=0", "no size or rate"),
        ("0?format=JPEG2", "the format 'JPEG2'"),
        ("0?rate=30", r"unknown options \['rate'\]"),
        ("csi://x", "no sensor number"),
        ("csi://0?flip=9", "no sensor number"),
        ("csi://0?format=MJPG", r"unknown options \['format'\]"),
        ("gst://videotestsrc ! fakesink", "does not end in appsink"),
        ('rtsp://host/a"b', "characters that an address cannot have"),
        ("rtsps://host", "unknown scheme"),
    ],
)
def test_a_uri_that_says_nothing_sensible_is_refused(uri: str, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        open_source(uri)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://u:p@h:554/a?b=1", "rtsp://h:554/a?b=1"),
        ("http://h/a", "http://h/a"),
        ("http://u:p%40x@h", "http://h"),
        ("test://640x480@30", "test://640x480@30"),
        ("pairs://visible=a@b,thermal=c", "pairs://visible=a@b,thermal=c"),
        (
            "gst://rtspsrc location=rtsp://u:p@h/1 ! appsink",
            "gst://rtspsrc location=rtsp://h/1 ! appsink",
        ),
        (
            "gst://rtspsrc user-id=u user-pw='p w' location=rtsp://h ! a",
            "gst://rtspsrc location=rtsp://h ! a",
        ),
        ("gst://x name=a@b ! appsink", "gst://x name=a@b ! appsink"),
        ("cannot open http://u:p@h/a", "cannot open http://h/a"),
    ],
)
def test_a_password_is_never_part_of_a_name(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


def test_a_password_in_a_pipeline_is_no_part_of_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    monkeypatch.setattr(gstreamer, "open_pipeline", lambda *given: opened.append(given))
    text = "rtspsrc location=rtsp://u:se!cret@h/1 ! decodebin ! appsink"
    open_source(f"gst://{text}")
    assert opened == [("gst://rtspsrc location=rtsp://h/1", text, 3)]


def test_a_password_in_a_pipeline_is_no_part_of_the_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gst_sink, "opencv_has_gstreamer", lambda: True)
    text = "appsrc ! rtspclientsink location=rtsp://u:secret@h/1"
    sink = gst_sink.GstSink(Asked(f"gst://{text}", text, view="mask", legend=False))
    assert sink.name == "gst://appsrc ! rtspclientsink location=rtsp://h/1"


def test_an_address_of_an_unknown_kind_is_named_without_its_password() -> None:
    with pytest.raises(SourceError, match="rtsps://host/1 has an unknown scheme"):
        open_source("rtsps://u:secret@host/1")


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_names_code_that_is_there(name: str) -> None:
    assert callable(load(SCHEMES[name].opens))
    assert not SCHEMES[name].files or callable(load(SCHEMES[name].files))
