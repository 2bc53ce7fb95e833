"""What a loop takes for a sink, and what it says of anything else."""

from __future__ import annotations

import numpy as np
import pytest

from aeseg_edge.errors import UsageError
from aeseg_edge.loop.camera import CameraLoop
from aeseg_edge.loop.feed import Input
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.sinks.base import NullSink, Routed, as_sinks
from aeseg_edge.sources.base import Frame
from tests.doubles.loop import END, Camera, Engine


class Writer:
    """No subclass of anything."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.closed = 0

    def write(self, frame: Frame, result: Segmentation) -> None:
        self.got.append(int(frame.image[0, 0, 0]) + int(result.labels[0, 0]))

    def close(self) -> None:
        self.closed += 1


def run(sinks: object) -> None:
    inputs = [Input(Camera([3, 4, END]))]
    CameraLoop(Engine(), inputs, sinks, drop="none").run()  # type: ignore[arg-type]


def test_a_function_is_a_sink() -> None:
    got: list[tuple[int, tuple[int, ...]]] = []

    def keep(frame: Frame, result: Segmentation) -> None:
        got.append((int(frame.image[0, 0, 0]), result.labels.shape))

    run([keep])
    assert got == [(3, (4, 6)), (4, (4, 6))]


def test_an_object_that_has_only_write_is_a_sink_and_is_closed_once() -> None:
    writer = Writer()
    run((writer,))
    assert writer.got == [3, 4]
    assert writer.closed == 1


def test_what_a_function_raises_is_raised_by_the_run() -> None:
    def fail(frame: Frame, result: Segmentation) -> None:
        raise KeyError(frame.index)

    with pytest.raises(KeyError):
        run([fail])


@pytest.mark.parametrize(
    "wrong", [["out.mp4"], [None], [Writer], [NullSink], [np.zeros(3)], "out.mp4", print, 3]
)
def test_anything_else_is_refused_at_once(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"is no (list of )?sink"):
        run(wrong)


def test_sinks_stay_what_they_are() -> None:
    given = [NullSink(), Routed(NullSink(), "a")]
    assert as_sinks(given) == given
