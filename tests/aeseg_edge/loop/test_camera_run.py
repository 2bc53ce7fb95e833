"""Every frame reaches every sink, and however the run ends, files are whole or absent."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.bundle.codebook import default_classes, palette
from aeseg_edge.errors import SinkError, SourceError
from aeseg_edge.loop import camera as loop
from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import Input
from aeseg_edge.loop.rate import RateLine, RunTotals
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.segment.segmenter import Segmenter as RealSegmenter
from aeseg_edge.sinks import base as sinks
from aeseg_edge.sources import base as sources
from aeseg_edge.sources.base import Frame
from aeseg_edge.sources.registry import open_source
from aeseg_edge.support.signals import stop_on_signals


class Source(sources.Source):
    """Frames out of nothing; may fail after some."""

    name = "made"

    def __init__(self, count: int, fails: bool = False) -> None:
        self.count, self.fails = count, fails
        self.given = self.closed = 0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count):
            self.given += 1
            yield Frame(np.zeros((4, 6, 3), np.uint8), index, time.monotonic(), self.name)
        if self.fails:
            raise SourceError("the cable is out", fix="Put it back.")

    def close(self) -> None:
        self.closed += 1


class Sink(sinks.Sink):
    """Remembers what it got; may fail at a frame or on closing."""

    name = "made"

    def __init__(self, fails_at: int | None = None, fails_closing: bool = False) -> None:
        self.frames: list[int] = []
        self.results: list[Segmentation] = []
        self.ended: list[str] = []
        self.fails_at, self.fails_closing = fails_at, fails_closing

    def write(self, frame: Frame, result: Segmentation) -> None:
        if frame.index == self.fails_at:
            raise SinkError("the disk is full", fix="Free some space.")
        self.frames.append(frame.index)
        self.results.append(result)

    def close(self) -> None:
        if self.fails_closing:
            raise SinkError("the disk was full", fix="Free some space.")
        self.ended.append("closed")

    def abort(self) -> None:
        self.ended.append("aborted")


class Segmenter:
    """Everything is class 0."""

    smooth = 0.0

    def reset(self, stream: int | None = None) -> None:
        pass

    def submit(
        self, image: np.ndarray, *, captured: float | None = None, stream: int = 0
    ) -> tuple[np.ndarray, float | None]:
        return image, captured

    def collect(
        self, submitted: tuple[np.ndarray, float | None], want: frozenset[str] = frozenset()
    ) -> Segmentation:
        image, captured = submitted
        classes = default_classes(1)
        labels = np.zeros(image.shape[:2], np.uint8)
        age = None if captured is None else time.monotonic() - captured
        return Segmentation(labels, classes, palette(classes), frame_age=age)


def run_loop(
    segmenter: object,
    source: sources.Source,
    sinks: list[Sink],
    *,
    frames: int | None = None,
    stop: threading.Event | None = None,
    on_line: Callable[[RateLine], None] | None = None,
) -> RunTotals:
    """One source through one segmenter."""
    loop = CameraLoop(segmenter, [Input(source)], sinks, frames=frames)
    return loop.run(stop=stop, on_line=on_line)


def test_every_frame_reaches_every_sink_with_its_frame_and_age() -> None:
    source, sinks = Source(5), [Sink(), Sink()]
    totals = run_loop(Segmenter(), source, sinks)
    assert [sink.frames for sink in sinks] == [[0, 1, 2, 3, 4]] * 2
    result = sinks[0].results[3]
    assert result.frame is not None
    assert result.frame.index == 3
    assert result.frame_age is not None
    assert result.frame_age >= 0
    assert totals.frames == 5
    assert totals.latency is not None
    assert totals.latency.count == 5
    assert source.closed == 1
    assert [sink.ended[0] for sink in sinks] == ["closed"] * 2


def test_smoothing_does_not_reach_from_one_run_into_the_next(v1_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")

    def first_labels(uri: str, frames: int) -> np.ndarray:
        run_loop(segmenter, open_source(uri), [sink := Sink()], frames=frames)
        return sink.results[0].labels

    with RealSegmenter.load(v1_bundle, backend="onnxruntime", threads=1, smooth=0.9) as segmenter:
        alone = first_labels("test://64x96@30", 1)
        first_labels("test://96x64@30", 5)
        np.testing.assert_array_equal(first_labels("test://64x96@30", 1), alone)


def test_no_frame_beyond_the_last_one_wanted_is_read() -> None:
    source = Source(100)
    assert run_loop(Segmenter(), source, [Sink()], frames=3).frames == 3
    assert source.given == 3


def test_a_source_without_frames_ends_cleanly() -> None:
    sink = Sink()
    totals = run_loop(Segmenter(), Source(0), [sink])
    assert (totals.frames, totals.latency) == (0, None)
    assert sink.ended[0] == "closed"


def test_a_stop_ends_the_run_and_what_was_segmented_is_delivered() -> None:
    stop, sink = threading.Event(), Sink()

    class Stopping(Sink):
        def write(self, frame: Frame, result: Segmentation) -> None:
            if frame.index == 2:
                stop.set()
            time.sleep(0.001)

    totals = run_loop(Segmenter(), Source(1000), [Stopping(), sink], stop=stop)
    assert 3 <= totals.frames < 1000
    assert sink.frames == list(range(totals.frames))
    assert sink.ended[0] == "closed"


def test_a_window_closed_by_the_user_ends_the_run() -> None:
    class Window(Sink):
        def write(self, frame: Frame, result: Segmentation) -> None:
            self.closed_by_user = frame.index >= 1
            time.sleep(0.001)

    sink = Sink()
    assert 2 <= run_loop(Segmenter(), Source(1000), [Window(), sink]).frames < 1000
    assert sink.ended[0] == "closed"


def test_a_source_that_fails_aborts_every_sink() -> None:
    source, sinks = Source(2, fails=True), [Sink(), Sink()]
    with pytest.raises(SourceError, match="the cable is out"):
        run_loop(Segmenter(), source, sinks)
    assert [sink.ended for sink in sinks] == [["aborted"]] * 2
    assert source.closed == 1


def test_a_sink_that_fails_aborts_the_others_too() -> None:
    source, sinks = Source(9), [Sink(), Sink(fails_at=4)]
    with pytest.raises(SinkError, match="the disk is full"):
        run_loop(Segmenter(), source, sinks)
    assert [sink.ended for sink in sinks] == [["aborted"]] * 2
    assert source.closed == 1


def test_a_sink_that_cannot_be_finished_does_not_spoil_the_others() -> None:
    sinks = [Sink(), Sink(fails_closing=True), Sink(), Sink(fails_closing=True)]
    with pytest.raises(SinkError, match="the disk was full"):
        run_loop(Segmenter(), Source(2), sinks)
    assert [sink.ended[0] for sink in sinks] == ["closed", "aborted", "closed", "aborted"]


def test_a_line_comes_whenever_the_reporter_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.RateReporter
    monkeypatch.setattr(loop, "RateReporter", lambda period, clock: real(period=0.0, clock=clock))
    lines: list[int] = []

    class Waiting(Source):
        def __iter__(self) -> Iterator[Frame]:
            for frame in super().__iter__():
                wait_for(lambda at=frame.index: at in lines)
                yield frame

    run_loop(Segmenter(), Waiting(4), [], on_line=lambda line: lines.append(line.frames))
    assert sorted(set(lines)) == [0, 1, 2, 3, 4]


def wait_for(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Fail, rather than hang, where something never happens."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are a POSIX thing")


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_insists(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def send() -> None:
        signal.raise_signal(number)

    with stop_on_signals() as stop:
        assert not stop.is_set()
        send()
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            send()
    assert signal.getsignal(number) is before


def test_other_threads_get_an_event_that_stays_unset() -> None:
    seen = []

    def run() -> None:
        with stop_on_signals() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


RUN = """
import sys, time
from aeseg_edge.sinks.registry import open_sink
from aeseg_edge.sources.registry import open_source
from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import Input
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.support.signals import stop_on_signals

bundle, video, images = sys.argv[1:]
with Segmenter.load(bundle, precision="fp32", backend="onnxruntime", threads=1) as segmenter:
    with stop_on_signals() as stop, open_source("test://96x64@25") as source:
        sinks = [open_sink(video, fps=25), open_sink(images)]
        write = sinks[1].write

        def tell(frame, result):
            write(frame, result)
            if frame.index == 3:
                print("running", flush=True)
            time.sleep(0.01)

        sinks[1].write = tell
        totals = CameraLoop(segmenter, [Input(source)], sinks).run(stop=stop)
print(totals.frames)
"""


def start(repository: Path, folder: Path, bundle: Path, script: str = RUN) -> subprocess.Popen[str]:
    run = subprocess.Popen(
        [
            sys.executable,
            "-c",
            script,
            str(bundle),
            str(folder / "out.mp4"),
            str(folder / "%d.png"),
        ],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "running\n"
    return run


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_whole_video_of_what_was_done(
    tmp_path: Path, repository: Path, v1_bundle: Path, number: signal.Signals
) -> None:
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("onnxruntime")
    run = start(repository, tmp_path, v1_bundle)
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    frames = int(out)
    assert frames >= 4
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"), cv2.CAP_FFMPEG)
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == frames
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == frames
    expected = {"out.mp4", *(f"{index}.png" for index in range(frames))}
    assert {path.name for path in tmp_path.iterdir()} == expected


@posix
def test_a_second_signal_ends_at_once_and_leaves_no_half_video(
    tmp_path: Path, repository: Path, v1_bundle: Path
) -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("onnxruntime")
    slow = RUN.replace("time.sleep(0.01)", "time.sleep(60 if frame.index == 3 else 0)")
    run = start(repository, tmp_path, v1_bundle, slow)
    run.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert run.poll() is None  # the first one only asks
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "KeyboardInterrupt" in err
    assert {path.name for path in tmp_path.iterdir()} == {f"{i}.png" for i in range(4)}
