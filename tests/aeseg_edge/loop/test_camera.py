"""Live sources: the newest frame wins, a slow part slows itself only, and all is counted."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from aeseg_edge.errors import SinkError, SourceError, UsageError
from aeseg_edge.loop import camera as loop_module
from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import Input
from aeseg_edge.loop.rate import RunTotals
from aeseg_edge.loop.watchdog import Patience
from aeseg_edge.sinks.base import Routed, Sink
from aeseg_edge.sinks.counters import LoopCounters
from aeseg_edge.sources.base import Frame, Source
from tests.doubles.loop import (
    END,
    LOST,
    Camera,
    Clock,
    Collecting,
    Engine,
    Failing,
    wait_for,
)

QUICK = Patience(backoff=0.001, most=0.001)


def balanced(counters: LoopCounters) -> bool:
    """Every frame was segmented or dropped, and every result delivered or dropped."""
    frames = all(
        each.frames_in == each.segmented + each.dropped["capture"] for each in counters.sources
    )
    segmented = sum(each.segmented for each in counters.sources)
    return frames and all(each.delivered + each.dropped == segmented for each in counters.sinks)


def test_a_frame_that_waits_is_replaced_by_a_newer_one() -> None:
    busy = threading.Event()
    camera = Camera([1, 2, 3, 4, END])
    sink = Collecting()

    def engine(image: np.ndarray) -> None:
        if image[0, 0, 0] == 1:
            busy.set()
            wait_for(lambda: loop.counters().sources[0].state == "ended")

    def before(index: int) -> None:
        # The engine has the first frame before the second one comes.
        assert index == 0 or busy.wait(20)

    camera.before = before
    loop = CameraLoop(Engine(engine), [Input(camera, reopen=lambda: camera)], [sink])
    totals = loop.run()
    assert sink.values == [1, 4]
    assert [frame.index for frame in sink.frames] == [0, 3]
    assert (totals.frames, totals.drops) == (2, 2)
    assert loop.counters().sources[0].dropped == {"capture": 2}
    assert balanced(loop.counters())


def test_a_slow_sink_slows_neither_capture_nor_the_other_sinks() -> None:
    release = threading.Event()
    slow, quick = Collecting(lambda _: release.wait(20) and None), Collecting()  # type: ignore[func-returns-value]
    slow.backlog = 1

    def before(index: int) -> None:
        # The next frame is given when the quick sink has the last one.
        wait_for(lambda: len(quick.frames) == index)
        if index == 9:
            release.set()

    camera = Camera([*range(10), END], before=before)
    loop = CameraLoop(Engine(), [Input(camera)], [slow, quick], drop="latest")
    loop.run()
    assert quick.values == list(range(10))
    assert slow.values == [0, 9] or slow.values == [0, 8, 9]
    counters = loop.counters()
    assert counters.sinks[0].dropped == 10 - len(slow.values)
    assert balanced(counters)
    assert [sink.ended[0] for sink in (slow, quick)] == ["closed", "closed"]


def test_a_sink_that_keeps_results_has_a_backlog() -> None:
    release = threading.Event()
    slow, quick = Collecting(lambda _: release.wait(20) and None), Collecting()  # type: ignore[func-returns-value]

    def before(index: int) -> None:
        wait_for(lambda: len(quick.frames) == index)
        if index == 9:
            release.set()

    camera = Camera([*range(10), END], before=before)
    CameraLoop(Engine(), [Input(camera)], [slow, quick], drop="latest").run()
    assert slow.values == list(range(10))


def test_nothing_is_lost_where_nothing_may_be() -> None:
    sink = Collecting(lambda frame: threading.Event().wait(0.001) and None)  # type: ignore[func-returns-value]
    engine = Engine()
    loop = CameraLoop(engine, [Input(Camera([*range(40), END]))], [sink], drop="none")
    assert loop.run().frames == 40
    assert sink.values == list(range(40))
    assert balanced(loop.counters())


def test_a_queued_frame_is_submitted_before_the_last_one_is_collected() -> None:
    engine = Engine()
    camera = Camera([1, 2, 3, END])
    loop = CameraLoop(engine, [Input(camera)], [], drop="none")
    loop._feeds[0].start()
    wait_for(lambda: len(loop._box._items[0]) == 2)
    loop._feeds[0].start = lambda: None  # type: ignore[method-assign]
    loop.run()
    assert engine.calls[1:4] == ["submit 1", "submit 2", "collect 1"]
    assert engine.calls[-1] == "collect 3"


def test_sources_share_the_engine_in_turn_and_name_their_results() -> None:
    order: list[str] = []
    cameras = [Camera([10, 11, 12, END], name="a"), Camera([20, 21, 22, END], name="b")]
    sink = Collecting(lambda frame: order.append(frame.source))
    left, right = Collecting(), Collecting()
    loop = CameraLoop(
        Engine(),
        [Input(camera) for camera in cameras],
        [sink, Routed(left, "a"), Routed(right, "b")],
        drop="none",
    )
    for feed in loop._feeds:
        feed.start()
        feed.start = lambda: None  # type: ignore[method-assign]
    wait_for(lambda: [len(items) for items in loop._box._items] == [2, 2])
    loop.run()
    assert order[:4] == ["a", "b", "a", "b"]
    assert (left.values, right.values) == ([10, 11, 12], [20, 21, 22])
    assert len(sink.values) == 6
    assert [each.segmented for each in loop.counters().sources] == [3, 3]


def test_one_camera_that_is_away_does_not_hold_the_other_up() -> None:
    def gone() -> Camera:
        raise SourceError("nobody answers", fix="Wait.")

    sink = Collecting()
    stop = threading.Event()

    def before(index: int) -> None:
        wait_for(lambda: len(sink.frames) == index)
        if index == 19:
            wait_for(lambda: loop.counters().sources[0].reconnects > 2)
            stop.set()

    lost, good = Camera([LOST], name="a"), Camera([*range(20)], name="b", before=before)
    loop = CameraLoop(
        Engine(), [Input(lost, reopen=gone), Input(good, reopen=gone)], [sink], patience=QUICK
    )
    good.wake.set()
    loop.run(stop)
    assert sink.values[:19] == list(range(19))
    assert loop.counters().sources[0].problem == "nobody answers"


def test_smoothing_forgets_what_was_before_a_reconnect() -> None:
    first, second = Camera([1, LOST]), Camera([2, END], size=(8, 4))
    engine, sink = Engine(), Collecting()
    given = Input(first, reopen=lambda: second)
    loop = CameraLoop(engine, [given], [sink], patience=QUICK)
    loop.run()
    calls = ["reset None", "submit 1", "collect 1", "reset 0", "submit 2", "collect 2"]
    assert engine.calls == calls
    assert [frame.image.shape for frame in sink.frames] == [(4, 6, 3), (8, 4, 3)]
    assert loop.counters().sources[0].size == (4, 8)


def test_a_camera_that_is_given_up_leaves_whole_files_and_an_error() -> None:
    sink = Collecting()
    patience = Patience(backoff=0.001, restarts=1)
    cameras = [Camera([2, LOST])]
    loop = CameraLoop(
        Engine(), [Input(Camera([1, LOST]), reopen=cameras.pop)], [sink], patience=patience
    )
    with pytest.raises(SourceError, match="lost again and again"):
        loop.run()
    assert sink.values == [1, 2]
    assert sink.ended[0] == "closed"


def test_a_run_ends_when_its_time_is_up() -> None:
    clock, sink = Clock(), Collecting()

    def before(index: int) -> None:
        wait_for(lambda: len(sink.frames) == index)
        clock.now += 1.0

    camera = Camera([1, 2, 3, 4], before=before)
    loop = CameraLoop(Engine(), [Input(camera)], [sink], drop="latest", duration=4.0, clock=clock)
    camera.wake.set()
    loop.run()
    assert sink.values[:3] == [1, 2, 3]
    assert loop.counters().seconds == 4.0


def test_a_limit_of_frames_counts_what_was_segmented() -> None:
    def before(index: int) -> None:
        wait_for(lambda: loop.counters().sources[0].segmented >= min(index, 3))

    camera = Camera([*range(200)], before=before)
    loop = CameraLoop(Engine(), [Input(camera)], [sink := Collecting()], drop="latest", frames=3)
    assert loop.run().frames == 3
    assert len(sink.frames) + loop.counters().sinks[0].dropped == 3
    assert balanced(loop.counters())


def test_what_sinks_want_of_this_moment_is_asked_of_the_engine() -> None:
    moments = iter([frozenset(), frozenset({"margin"}), frozenset()])

    class Wanting(Collecting):
        @property
        def wants(self) -> frozenset[str]:
            return next(moments)

    class Plain(Collecting):
        wants = frozenset({"latents"})

    engine, camera = Engine(), Camera([*range(3), END])
    sinks = [Wanting(), Plain()]
    CameraLoop(engine, [Input(camera)], sinks, drop="none", drift_every=0).run()
    assert engine.wants == [{"latents"}, {"latents", "margin"}, {"latents"}]


def test_smoothing_does_not_reach_from_one_recording_into_the_next() -> None:
    class Tape(Source):
        name = "tape"

        def __iter__(self) -> Iterator[Frame]:
            for index, recording in enumerate("aab"):
                image = np.full((4, 6, 3), index, np.uint8)
                yield Frame(image, index, time.monotonic(), self.name, None, recording)

    engine = Engine()
    CameraLoop(engine, [Input(Tape())], [Collecting()]).run()
    calls = [call for call in engine.calls if "collect" not in call]
    assert calls == ["reset None", "submit 0", "submit 1", "reset 0", "submit 2"]


def test_a_window_is_served_on_the_main_thread_and_told_to_stay_awake() -> None:
    threads, idle = set(), []

    class Window(Collecting):
        on_main_thread = True

        def write(self, frame: Frame, result: object) -> None:
            threads.add(threading.current_thread())
            super().write(frame, result)  # type: ignore[arg-type]

        def idle(self) -> None:
            idle.append(True)

    window = Window()
    CameraLoop(Engine(), [Input(Camera([*range(20), END]))], [window], drop="none").run()
    assert threads == {threading.current_thread()}
    assert window.values == list(range(20))
    assert idle


def test_a_sink_that_watches_gets_counters_of_this_moment() -> None:
    @dataclass
    class Page(Collecting):
        seen: list[LoopCounters] = field(default_factory=list)

        def __post_init__(self) -> None:
            super().__init__()

        def watch(self, counters: Callable[[], LoopCounters]) -> None:
            self.counters = counters

        def write(self, frame: Frame, result: object) -> None:
            self.seen.append(self.counters())

    page = Page()
    CameraLoop(Engine(), [Input(Camera([1, END], size=(4, 6)))], [page]).run()
    (source,) = page.seen[0].sources
    assert (source.name, source.frames_in, source.segmented, source.size) == ("cam", 1, 1, (6, 4))
    assert source.age is not None
    assert page.seen[0].to_json()["sources"][0]["age_ms"]["count"] == 1


def test_a_failing_sink_ends_a_live_run_and_aborts_the_others() -> None:
    sinks = [Collecting(), Failing()]
    camera = Camera([1, 2, 3])
    camera.wake.set()
    with pytest.raises(SinkError, match="the disk is full"):
        CameraLoop(Engine(), [Input(camera)], sinks, drop="latest").run()
    assert [sink.ended for sink in sinks] == [["aborted"], ["aborted"]]
    assert camera.closed == 1


def test_a_failing_engine_ends_the_run() -> None:
    def fail(image: np.ndarray) -> None:
        raise ZeroDivisionError

    sink, camera = Collecting(), Camera([1, END])
    with pytest.raises(ZeroDivisionError):
        CameraLoop(Engine(fail), [Input(camera)], [sink]).run()
    assert sink.ended == ["aborted"]


def test_a_fault_in_a_source_ends_the_run() -> None:
    def fault(index: int) -> None:
        raise ZeroDivisionError

    sink = Collecting()
    with pytest.raises(ZeroDivisionError):
        CameraLoop(Engine(), [Input(Camera([1], before=fault))], [sink]).run()
    assert sink.ended == ["aborted"]


@pytest.mark.parametrize("can_be_woken", [True, False])
def test_a_sink_that_hangs_is_left_and_the_others_are_whole(
    monkeypatch: pytest.MonkeyPatch, can_be_woken: bool
) -> None:
    release, ended = threading.Event(), []
    for name in ("_STUCK", "_PATIENCE_AT_END"):
        monkeypatch.setattr(loop_module, name, 0.1)

    class Named(Collecting):
        def close(self) -> None:
            ended.append(f"{self.name} closed")

        def abort(self) -> None:
            ended.append(f"{self.name} aborted")

    good, stuck = Named(), Named(lambda _: release.wait(20) and None)  # type: ignore[func-returns-value]
    good.name, stuck.name = "good", "stuck"
    if can_be_woken:
        wake = lambda: bool((release.set(), wait_for(lambda: stuck.frames)))  # noqa: E731
        stuck.interrupt = wake  # type: ignore[attr-defined]
    with pytest.raises(SinkError, match=r"^stuck took no result for"):
        CameraLoop(Engine(), [Input(Camera([1, END]))], [stuck, good], drop="latest").run()
    # A file that is being written is not closed by another thread.
    expected = ["good closed", "stuck aborted", "good aborted"]
    assert ended == [each for each in expected if can_be_woken or each != "stuck aborted"]
    release.set()


@pytest.mark.parametrize(
    ("drop", "moves", "left"), [("latest", 0, 1), ("latest", 1, 0), ("none", 0, 0)]
)
def test_a_sink_is_waited_for_while_it_takes_results_or_where_none_may_be_lost(
    drop: str, moves: int, left: int
) -> None:
    clock = Clock()

    class Slow:
        delivered = joins = 0

        def finish(self) -> None:
            pass

        def join(self, timeout: float) -> bool:
            clock.now += 6.0
            self.joins += 1
            self.delivered += moves
            return self.joins == 9

    loop = CameraLoop(Engine(), [Input(Camera([END]))], [], drop=drop, clock=clock)
    slow = Slow()
    loop._deliveries = [slow]  # type: ignore[list-item]
    assert loop._drain() == [slow][:left]
    assert slow.joins == (2 if left else 9)


def start(names: Sequence[str], drop: str = "auto") -> CameraLoop:
    inputs = [Input(Camera([END], name=name)) for name in names]
    return CameraLoop(Engine(), inputs, [], drop=drop)


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(UsageError, match="sources share a name"):
        start(["a", "a"])
    with pytest.raises(UsageError, match="drop 'oldest' is unknown"):
        start(["a"], drop="oldest")


@pytest.mark.parametrize("frames", [1, 90])  # the engine is done before, or waits for the sink
@pytest.mark.parametrize("how", ["signal", "duration"])
def test_a_sink_that_hangs_does_not_outlive_the_order_to_end(
    monkeypatch: pytest.MonkeyPatch, how: str, frames: int
) -> None:
    for name in ("_STUCK", "_PATIENCE_AT_END"):
        monkeypatch.setattr(loop_module, name, 0.1)

    class Recording(Camera):
        live = False

    class Hanging(Collecting):
        name, backlog = "hanging", 1

        def interrupt(self) -> bool:
            release.set()
            return True

    stop, release = threading.Event(), threading.Event()

    def hang(_: Frame) -> None:
        stop.set()
        release.wait(60)

    inputs, sink = [Input(Recording([*range(frames), END]))], Hanging(hang)
    loop = CameraLoop(
        Engine(),
        inputs,
        [sink],
        duration=100.0 if how == "duration" else None,
        # Time is up once the sink hangs, however slow this machine is.
        clock=lambda: time.monotonic() + 100 * stop.is_set(),
    )
    with pytest.raises(SinkError, match="hanging took no result for"):
        loop.run(stop=stop if how == "signal" else None)
    assert release.is_set()


def test_what_is_left_of_recordings_at_a_limit_is_not_lost() -> None:
    class Recording(Camera):
        live = False

    inputs = [Input(Recording([*range(30), END], name=name)) for name in "ab"]
    loop = CameraLoop(Engine(), inputs, [Collecting()], frames=3)
    totals = loop.run()
    counters = loop.counters()
    assert [each.dropped["capture"] for each in counters.sources] == [0, 0]
    assert [each.live for each in counters.sources] == [False, False]
    assert (totals.frames, totals.drops) == (3, 0)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_counted_twice_whatever_the_order(seed: int) -> None:
    """Many short runs with random ends, losses and limits; each balances to the frame."""
    chance = random.Random(seed)
    for _ in range(10):
        cameras = [
            Camera([*range(chance.randrange(30)), chance.choice([LOST, END])], name=name)
            for name in "abc"
        ]
        again = [Camera([*range(9), END], name="again") for _ in range(3)]
        sinks: list[Sink] = [Collecting(), Collecting()]
        loop = CameraLoop(
            Engine(),
            [Input(camera, reopen=again.pop) for camera in cameras],
            sinks,
            drop=chance.choice(["latest", "none"]),
            frames=chance.choice([None, 5, 20]),
            patience=QUICK,
            chance=chance,
        )
        totals: RunTotals = loop.run()
        assert balanced(loop.counters())
        assert totals.frames == sum(each.segmented for each in loop.counters().sources)
        assert loop.counters().lost_wakeups == 0
