"""Label maps reach every reader of the socket, whole."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.unix import UnixSink, pack
from tests.doubles.labelled import quarters, result
from tests.doubles.loop import wait_for


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    # Names of sockets end at about 107 bytes; pytest's folders may be longer.
    return Path(os.path.relpath(tmp_path / "s"))


def connect(sink: UnixSink, path: Path) -> socket.socket:
    before = len(sink._readers)
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(20)
    link.connect(str(path))
    wait_for(lambda: len(sink._readers) == before + 1)
    return link


def read(link: socket.socket) -> tuple[dict[str, object], np.ndarray]:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = link.recv(count - len(data))
            assert part, "the sink hung up"
            data += part
        return data

    magic, length, height, width = struct.unpack("<4sIII", exactly(16))
    assert magic == b"AES1"
    about = json.loads(exactly(length))
    return about, np.frombuffer(exactly(height * width), np.uint8).reshape(height, width)


def test_labels_reach_every_reader(socket_path: Path) -> None:
    sink = UnixSink(socket_path)
    sink.write(*result(quarters()))
    links = [connect(sink, socket_path) for _ in range(3)]
    frame, segmentation = result(quarters())
    sink.write(replace(frame, index=8), segmentation)
    for link in links:
        about, labels = read(link)
        assert (about["source"], about["index"], about["captured"]) == ("csi://0", 8, 100.0)
        assert about["age_ms"] == 18.4
        assert about["classes"]["1"] == {"name": "straße", "color": [90, 90, 90]}  # type: ignore[index]
        np.testing.assert_array_equal(labels, quarters())
        link.close()
    sink.close()
    sink.close()
    assert not socket_path.exists()


def test_a_reader_that_does_not_read_slows_nobody_and_gets_the_newest_next(
    socket_path: Path,
) -> None:
    sink = UnixSink(socket_path)
    slow, quick = connect(sink, socket_path), connect(sink, socket_path)
    frame, segmentation = result(np.zeros((1000, 1000), np.uint8))
    for index in range(20):
        sink.write(replace(frame, index=index), segmentation)
        assert read(quick)[0]["index"] == index
        if index == 0:
            # The slow one's thread has it, which is larger than a socket's buffer.
            wait_for(lambda: not any(sink._readers[0].box._items))
    # One message was on its way already; all between it and the last were dropped.
    first, last = read(slow)[0]["index"], read(slow)[0]["index"]
    assert (first, last) == (0, 19)
    slow.close()
    quick.close()
    sink.close()


def test_a_message_says_which_picture_or_moment_it_is_of() -> None:
    frame, segmentation = result(quarters())

    def told(**where: object) -> dict[str, object]:
        message = pack(replace(frame, **where), segmentation)
        found: dict[str, object] = json.loads(
            message[16 : 16 + int.from_bytes(message[4:8], "little")]
        )
        return found

    assert told(timestamp=3.25)["position"] == 3.25
    assert told(path=Path("a/b.png"))["path"] == "a/b.png"
    assert not {"path", "position"} & set(told())


def test_a_reader_that_goes_away_is_forgotten(socket_path: Path) -> None:
    sink = UnixSink(socket_path)
    connect(sink, socket_path).close()
    wait_for(lambda: sink.write(*result(quarters())) or not sink._readers)
    link = connect(sink, socket_path)
    sink.write(*result(quarters()))
    assert read(link)[0]["index"] == 7
    link.close()
    sink.close()


def test_the_last_message_is_delivered_before_hanging_up(socket_path: Path) -> None:
    sink = UnixSink(socket_path)
    link = connect(sink, socket_path)
    sink.write(*result(quarters()))
    sink.close()
    assert read(link)[0]["index"] == 7
    assert link.recv(1) == b""
    link.close()


def test_a_socket_in_use_is_left_alone_and_a_dead_one_is_replaced(socket_path: Path) -> None:
    sink = UnixSink(socket_path)
    with pytest.raises(SinkError, match="in use by another process"):
        UnixSink(socket_path)
    sink.close()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    assert socket_path.exists()
    UnixSink(socket_path).close()
    socket_path.write_text("mine")
    with pytest.raises(SinkError, match="is no socket"):
        UnixSink(socket_path)
    assert socket_path.read_text() == "mine"


def test_the_reader_in_the_documentation_works(socket_path: Path, repository: Path) -> None:
    text = (repository / "docs" / "sinks.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(script.splitlines()) <= 20
    sink = UnixSink(socket_path)
    reader = subprocess.Popen(
        [sys.executable, "-X", "utf8", "-c", script, str(socket_path)],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    wait_for(lambda: sink._readers)
    sink.write(*result(np.ones((4, 6), np.uint8)))
    sink.close()
    out, _ = reader.communicate(timeout=30)
    assert out == "csi://0 7 6x4 straße\n"
    assert reader.returncode == 0
