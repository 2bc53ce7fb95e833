"""Sources of a loop are opened side by side; one that is not there does not stop the others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from aeseg_edge.errors import SourceError
from aeseg_edge.loop import inputs as module
from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import OPEN_AT_ONCE
from aeseg_edge.loop.inputs import Later, Pending, open_inputs
from aeseg_edge.loop.watchdog import Patience
from aeseg_edge.sinks.base import Routed
from aeseg_edge.sources.base import Absent, Source
from aeseg_edge.sources.registry import open_source
from tests.doubles.loop import END, Camera, Collecting, Engine, wait_for
from tests.doubles.pictures import write_video

cv2 = pytest.importorskip("cv2")


def opener(cameras: dict[str, Callable[[], Source]]) -> Callable[[str], Source]:
    return lambda uri: cameras[uri]()


def absent() -> Source:
    raise Absent("http://b cannot be opened: Connection refused", fix="Switch it on.")


@pytest.fixture
def hanging() -> Callable[[], Source]:
    """An opening that never ends."""
    return lambda: threading.Event().wait(60) and absent()  # type: ignore[return-value]


def test_a_camera_that_is_off_at_the_start_does_not_stop_the_others() -> None:
    tries: list[str] = []

    def second() -> Source:
        tries.append("b")
        return absent() if len(tries) < 3 else Camera([7, 8, END], name="http://b")

    first = Camera([1, 2, 3, END], name="http://a")
    opens = opener({"http://a": lambda: first, "http://b": second})
    given = open_inputs(["http://a", "http://b"], opens)
    assert [(each.source.live, each.name) for each in given] == [
        (True, "http://a"),
        (True, "http://b"),
    ]
    sink = Collecting()
    CameraLoop(Engine(), given, [sink], drop="none", patience=Patience(backoff=0.001)).run()
    assert sorted(sink.values) == [1, 2, 3, 7, 8]
    assert tries == ["b"] * 3


def test_cameras_that_are_all_off_are_refused() -> None:
    opens = opener({"http://b": absent, "http://c": absent})
    for uris in (["http://b"], ["http://b", "http://c"]):
        with pytest.raises(SourceError, match="Connection refused"):
            open_inputs(uris, opens)


def test_what_is_written_wrong_is_refused_beside_others() -> None:
    opened = Camera([1], name="http://a")
    opens = opener({"http://a": lambda: opened, "0?size=big": lambda: open_source("0?size=big")})
    with pytest.raises(SourceError, match="asks for no size"):
        open_inputs(["http://a", "0?size=big"], opens)
    wait_for(lambda: opened.closed)


def test_a_hanging_camera_is_waited_for_no_longer_than_the_run(
    hanging: Callable[[], Source],
) -> None:
    with pytest.raises(SourceError, match=r"http://h is not open after 0 s"):
        open_inputs(["http://h"], opener({"http://h": hanging}), duration=0.1)


def test_the_end_of_a_run_is_not_kept_waiting_by_an_opening(hanging: Callable[[], Source]) -> None:
    stop = threading.Event()
    stop.set()
    given = open_inputs(["http://h"], opener({"http://h": hanging}), stop=stop)
    totals = CameraLoop(Engine(), given, []).run(stop=stop)
    assert totals.frames == 0


def test_others_begin_while_a_camera_is_still_being_opened(
    hanging: Callable[[], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.01)
    opens = opener({"http://a": lambda: Camera([1], name="http://a"), "http://h": hanging})
    first, second = open_inputs(["http://a", "http://h"], opens)
    assert isinstance(first.source, Camera)
    assert isinstance(second.source, Pending)
    second.source.interrupt()
    assert list(second.source) == []


def test_a_source_that_is_opened_too_late_is_closed() -> None:
    go, camera = threading.Event(), Camera([1])

    def opens() -> Source:
        go.wait(20)
        return camera

    pending = Pending("a", opens)
    pending.close()
    go.set()
    wait_for(lambda: camera.closed)


def test_one_bad_recording_of_several_is_said_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [str(write_video(tmp_path / f"{name}.avi", 2)) for name in "ac"]
    bad = tmp_path / "b.mp4"
    bad.write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        given = open_inputs([good[0], str(bad), good[1]], open_source)
    assert [each.name for each in given] == good
    assert f"{bad} is skipped: {bad} cannot be opened as a video" in caplog.text
    with pytest.raises(SourceError, match="cannot be opened as a video"):
        open_inputs([str(bad)], open_source)
    with pytest.raises(SourceError, match=r"none\.mp4 does not exist"):
        open_inputs([good[0], str(tmp_path / "none.mp4")], open_source)


def test_many_recordings_are_open_a_few_at_a_time(tmp_path: Path) -> None:
    uris = [str(write_video(tmp_path / f"{number}.avi", 2)) for number in range(9)]
    lock, open_now, most = threading.Lock(), [0], [0]

    def opens(uri: str) -> Source:
        source = open_source(uri)
        with lock:
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])
        close = source.close
        done: list[bool] = []

        def closes() -> None:
            close()
            with lock:
                if not done:
                    done.append(True)
                    open_now[0] -= 1

        source.close = closes  # type: ignore[method-assign]
        return source

    given = open_inputs(uris, opens)
    assert all(isinstance(each.source, Later) for each in given)
    assert (open_now, most) == ([0], [1])
    sink = Collecting()
    totals = CameraLoop(Engine(), given, [sink]).run()
    assert (totals.frames, totals.drops) == (18, 0)
    assert sorted({frame.source for frame in sink.frames}) == uris
    assert open_now == [0]
    assert most[0] <= OPEN_AT_ONCE


def test_what_a_recording_alone_goes_into_is_closed_at_its_end(tmp_path: Path) -> None:
    uris = [str(write_video(tmp_path / f"{number}.avi", 3)) for number in range(8)]
    sinks = [Collecting() for _ in uris]
    # The last one takes its first frame only when the first is closed.
    sinks[-1].before = lambda _: wait_for(lambda: sinks[0].ended == ["closed"])
    routed = [Routed(sink, uri) for sink, uri in zip(sinks, uris, strict=True)]
    CameraLoop(Engine(), open_inputs(uris, open_source), routed).run()
    assert [len(each.frames) for each in sinks] == [3] * 8
    assert {tuple(each.ended) for each in sinks} == {("closed", "aborted")}


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.avi", 2))
    given = open_inputs([path, path], open_source)
    assert [each.name for each in given] == [path, f"{path} (2)"]
    for each in given:
        each.source.close()


def test_what_is_read_beyond_the_last_frame_wanted_is_not_called_dropped(tmp_path: Path) -> None:
    given = open_inputs([str(write_video(tmp_path / "a.avi", 12))], open_source)
    loop = CameraLoop(Engine(), given, [Collecting()], frames=3)
    assert loop.run().drops == 0
    (counters,) = loop.counters().sources
    assert (counters.frames_in, counters.segmented, counters.dropped) == (3, 3, {"capture": 0})


def test_a_test_scene_is_paced_where_it_is_played_in_real_time() -> None:
    """By frames that say when they are due, not by a stopwatch."""
    (given,) = open_inputs(["test://8x8@20"], lambda uri: open_source(uri, realtime=True))
    frames = iter(given.source)
    first, second = next(frames).captured, next(frames).captured
    assert second - first == pytest.approx(0.05)
    given.source.close()
