"""File names that are not UTF-8 are refused where OpenCV would crash, and nowhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import ClassInfo, palette
from aeseg_edge.errors import SinkError, SourceError
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.sinks.registry import open_sink
from aeseg_edge.sinks.unix import HEADER, pack
from aeseg_edge.sources.base import Frame
from aeseg_edge.sources.registry import open_source
from aeseg_edge.support.text import as_text, check_name, is_utf8, to_json, without_password

cv2 = pytest.importorskip("cv2")

ODD = os.fsdecode(b"caf\xe9")
CLASSES = (ClassInfo(0, "sky", (80, 160, 240)),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name is Latin-1."""
    made = tmp_path / ODD
    try:
        made.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    return made


def result() -> Segmentation:
    return Segmentation(np.zeros((4, 6), np.uint8), CLASSES, palette(CLASSES))


def frame() -> Frame:
    return Frame(np.zeros((4, 6, 3), np.uint8), 0, 0.0, ODD)


def test_names_of_all_scripts_pass_and_odd_bytes_do_not() -> None:
    check_name("東/Straße.mp4", error=SourceError)
    assert is_utf8("東")
    assert not is_utf8(ODD)
    with pytest.raises(SinkError, match=r"is not UTF-8.*Rename"):
        check_name(Path("x") / ODD, error=SinkError)
    assert (as_text("é"), as_text(ODD)) == ("é", "caf?")


def test_json_is_as_it_was_but_for_odd_bytes_and_comes_back() -> None:
    assert to_json({"a": "東"}, indent=1) == '{\n "a": "東"\n}'
    text = to_json({"a": ["東", ODD]})
    assert json.loads(text.encode()) == {"a": ["東", ODD]}


@pytest.mark.parametrize(
    "uri", ["{0}/a.mp4", "file://{0}/a.mp4", "v4l2://{0}/video0", "rtsp://{0}"]
)
def test_a_source_that_opencv_would_crash_on_is_refused(folder: Path, uri: str) -> None:
    (folder / "a.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match="is not UTF-8"):
        open_source(uri.format(folder))


def test_a_password_is_not_shown_with_an_odd_address() -> None:
    with pytest.raises(SourceError) as caught:
        open_source(f"rtsp://me:secret@host/{ODD}")
    assert "secret" not in str(caught.value)


def test_pictures_are_read_under_any_name(folder: Path) -> None:
    picture = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
    (folder / f"{ODD}.png").write_bytes(picture)
    for uri in (folder, folder / f"{ODD}.png"):
        with open_source(str(uri)) as source:
            assert [each.image.shape for each in source] == [(4, 6, 3)]


@pytest.mark.parametrize(
    "uri", ["{0}/a.avi", "{0}/../link.avi", "gst://appsrc ! filesink location={0}"]
)
def test_a_sink_that_opencv_would_crash_on_is_refused(folder: Path, uri: str) -> None:
    (folder.parent / "link.avi").symlink_to(folder / "b.avi")
    with pytest.raises(SinkError, match="is not UTF-8"):
        open_sink(uri.format(folder))
    assert list(folder.iterdir()) == []


def test_sinks_of_python_take_any_name(folder: Path) -> None:
    for uri in (f"{folder}/%d.png", f"json:{folder}/a.jsonl"):
        with open_sink(uri) as sink:
            sink.write(frame(), result())
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "a.jsonl"]
    assert json.loads((folder / "a.jsonl").read_bytes())["source"] == ODD
    message = pack(frame(), result())
    length = HEADER.unpack_from(message)[1]
    text = message[HEADER.size : HEADER.size + length]
    assert json.loads(text)["source"] == ODD


RAW = [
    "pa#ss",
    "pa/ss",
    "pa?ss",
    "p@ss",
    "p@ss/w",
    "1234/5",
    "12#34",
    "a:b/c",
    "#",
    "pass word",
    "p%40ss",
    "a//b",
    "x=1&y=2",
    "/etc",
    "p@s.s",
]


@pytest.mark.parametrize("password", RAW)
@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http", "HTTPS", "rtmp", "srt"])
def test_no_password_is_shown_whatever_is_in_it(scheme: str, password: str) -> None:
    address = f"{scheme}://admin:{password}@10.0.0.7:554/live/1?ch=2"
    shown = f"{scheme}://10.0.0.7:554/live/1?ch=2"
    assert without_password(address) == shown
    if " " not in password:
        assert (
            without_password(f"{address} cannot be opened: no") == f"{shown} cannot be opened: no"
        )
    assert without_password(shown) == shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://cam.local/x?mail=a@b", "http://cam.local/x?mail=a@b"),
        ("rtsp://10.0.0.7:554/x:1@y", "rtsp://10.0.0.7:554/x:1@y"),
        ("rtsp://[fe80::1]:554/x@y", "rtsp://[fe80::1]:554/x@y"),
        ("http://me@mail.org:pa/ss@cam/1", "http://cam/1"),
        ("http://cam/v.cgi?usr=me&pwd=s3cret&x=1", "http://cam/v.cgi?usr=me&pwd=...&x=1"),
        ("http://cam/v?loginpas=s3cret", "http://cam/v?loginpas=..."),
        ("cannot read file:///data/a@b.mp4", "cannot read file:///data/a@b.mp4"),
        ("test://640x480@30 and rtsp://u:p/w@h", "test://640x480@30 and rtsp://h"),
        ('no gst://souphttpsrc user-pw="a\\"b" ! x', "no gst://souphttpsrc ! x"),
        ("C:/film@home.mp4", "C:/film@home.mp4"),
        ("mail me@host.org", "mail me@host.org"),
    ],
)
def test_what_is_no_password_stays(address: str, shown: str) -> None:
    assert without_password(address) == shown
