"""What was written survives a kill, and nothing of it is left after a good end."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks import spool, video
from aeseg_edge.sinks.registry import open_sink
from tests.doubles.drawn import names, posix, read_video, write

cv2 = pytest.importorskip("cv2")

WRITES = """
import sys
from aeseg_edge.sinks.registry import open_sink
from tests.doubles.drawn import frame, result

sink = open_sink(sys.argv[1], fps=10, legend=False)
for index in range(int(sys.argv[2])):
    taken = frame(index)
    sink.write(taken, result(taken))
print("written", flush=True)
sys.stdin.read()
"""


def killed(repository: Path, target: Path, count: int) -> None:
    """Write some frames in a process that is killed then."""
    command = [sys.executable, "-c", WRITES, str(target), str(count)]
    with subprocess.Popen(
        command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)


@posix
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
@pytest.mark.parametrize(("count", "least"), [(19, 0), (21, 20), (75, 60)])
def test_all_but_the_last_two_seconds_survive_a_kill(
    tmp_path: Path, repository: Path, suffix: str, count: int, least: int
) -> None:
    killed(repository, tmp_path / f"out{suffix}", count)
    (left,) = tmp_path.glob(".out-*.raw-10.*")
    assert len(read_video(left)) == least if least else left.stat().st_size == 0
    if least:
        capture = cv2.VideoCapture(str(left), cv2.CAP_FFMPEG)
        assert capture.get(cv2.CAP_PROP_FRAME_WIDTH) == 64


@posix
@pytest.mark.parametrize("name", ["out.mp4", "[o*t?].mp4"])
def test_the_next_run_says_how_to_keep_what_a_killed_one_wrote(
    tmp_path: Path, repository: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    # As another would be found, were the name a pattern.
    other = tmp_path / ".o-12345678.raw-10.m4v"
    other.write_bytes(b"another's")
    killed(repository, tmp_path / name.replace("?", "!"), 21)
    with caplog.at_level(logging.WARNING):
        sink = open_sink(str(tmp_path / name.replace("?", "!")))
    other.unlink()
    (left,) = tmp_path.glob(".*.raw-10.m4v")
    assert f"was cut off; what it wrote is in {left}" in caplog.text
    command = caplog.text.partition("To keep it: ")[2].partition(";")[0]
    assert shlex.split(command)[:5] == ["ffmpeg", "-framerate", "10", "-i", str(left)]
    sink.abort()
    # The stream stays until somebody has taken it; what holds nothing goes.
    assert names(tmp_path) == [left.name]


KILLED_AT_THE_END = """
import os, signal, sys
from aeseg_edge.sinks.registry import open_sink
from aeseg_edge.sinks import video
from tests.doubles.drawn import write

video.{function} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with open_sink(sys.argv[1], fps=10, legend=False) as sink:
    write(sink, 33)
"""


@posix
@pytest.mark.parametrize("function", ["_count_frames", "move_into_place"])
def test_a_kill_while_the_video_is_made_loses_nothing(
    tmp_path: Path, repository: Path, function: str
) -> None:
    script = KILLED_AT_THE_END.format(function=function)
    command = [sys.executable, "-c", script, str(tmp_path / "out.mp4")]
    assert subprocess.run(command, cwd=repository, check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".out-*.raw-10.m4v")
    assert len(read_video(left)) == 33


def test_a_disk_too_full_for_the_finished_video_keeps_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = open_sink(str(tmp_path / "out.mp4"), fps=10, legend=False)
    write(sink, 33)
    monkeypatch.setattr(video, "_count_frames", lambda _: 7)
    with pytest.raises(
        SinkError, match=r"out\.mp4 cannot be finished.* all of it is in "
    ) as raised:
        sink.close()
    (left,) = tmp_path.iterdir()
    assert len(read_video(left)) == 33
    assert f"ffmpeg -framerate 10 -i {left} -c copy {tmp_path / 'out.mp4'}" in str(raised.value)


@posix
def test_the_stream_of_a_run_that_lives_is_no_leftover(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_sink(str(tmp_path / "out.mp4"), fps=5) as sink:
        write(sink, 20)
        before = names(tmp_path)
        with caplog.at_level(logging.WARNING):
            open_sink(str(tmp_path / "out.mp4")).abort()
        assert names(tmp_path) == before
    assert not caplog.records
    assert names(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v"])
def test_the_head_of_an_mp4_has_the_streams_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    with open_sink(str(path), fps=12.5) as sink:
        write(sink, 40)
    data = path.read_bytes()
    esds = data[data.rindex(b"esds") :]
    # Visual object sequence start code (ISO/IEC 14496-2, 6.2.2) in the DecoderSpecificInfo.
    assert esds[34:43] == b"\x05\x80\x80\x80" + esds[38:39] + b"\0\0\1\xb0"
    header = esds[39 : 39 + esds[38]]
    assert header in data[: data.rindex(b"moov")]
    assert esds[39 + esds[38]] == 6  # the next descriptor follows
    assert len(read_video(path)) == 40


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_an_opencv_that_takes_no_packets_writes_the_file_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.delattr(cv2, "VIDEOWRITER_PROP_KEY_FLAG")
    assert not spool.can_spool("mp4v")
    with open_sink(str(tmp_path / f"out{suffix}"), fps=10) as sink:
        write(sink, 25)
        assert not list(tmp_path.glob(".out-*.raw-10.*"))
    assert len(read_video(tmp_path / f"out{suffix}")) == 25
    assert names(tmp_path) == [f"out{suffix}"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_place_in_the_middle_is_found_again(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"out{suffix}"
    with open_sink(str(path), fps=12.5, legend=False) as sink:
        write(sink, 60)
    whole = read_video(path)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    for place in (0, 7, 26, 41, 59):
        capture.set(cv2.CAP_PROP_POS_FRAMES, place)
        good, found = capture.read()
        assert good
        assert (found == whole[place]).all()
    assert "no keyframe" not in capfd.readouterr().err
