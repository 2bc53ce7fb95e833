"""The newest frame of a camera, whoever is slow; every frame of a recording."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aeseg_edge.errors import BackendError, SourceError, UsageError
from aeseg_edge.segment.newest import newest_frames
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.sources.base import Frame, Source

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

PATIENCE = 20.0
"""Seconds after which a thread of a test is given up; none is waited for in vain."""


class Camera(Source):
    """Frames when the test says so; `shown` waits until all of them were taken from it."""

    def __init__(self, *, live: bool = True, frames: int = 1 << 30, old: float = 0.0) -> None:
        self.name = "camera"
        self.live = live
        self.closed = threading.Event()
        self.error: Exception | None = None
        self._left = frames
        self._old = old
        self._turn = threading.Semaphore(0)
        self._asked = threading.Semaphore(0)

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self._left):
            self._asked.release()
            assert self._turn.acquire(timeout=PATIENCE)
            if self.closed.is_set() or self.error is not None:
                break
            yield Frame(
                np.zeros((64, 96, 3), np.uint8), index, time.monotonic() - self._old, self.name
            )
        if self.error is not None:
            raise self.error

    def show(self, frames: int = 1) -> None:
        """Let it give so many frames, and wait until it is asked for the next."""
        for _ in range(frames):
            assert self._asked.acquire(timeout=PATIENCE)
            self._turn.release()
        assert self._asked.acquire(timeout=PATIENCE)
        self._asked.release()

    def end(self) -> None:
        """Let it end at its next frame."""
        self._turn.release(2)

    def interrupt(self) -> None:
        self.closed.set()
        self.end()

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def segmenter(v1_bundle: Path) -> Iterator[Segmenter]:
    with Segmenter.load(v1_bundle, precision="fp32", backend="onnxruntime", threads=1) as opened:
        yield opened


def test_a_slow_caller_gets_the_newest_frame_of_a_camera_and_its_true_age(
    segmenter: Segmenter,
) -> None:
    camera = Camera(old=100.0)
    results = segmenter.stream(camera)
    threading.Thread(target=camera.show, daemon=True).start()
    first = next(results)
    camera.show(7)
    second = next(results)
    assert first.frame is not None
    assert second.frame is not None
    assert (first.frame.index, second.frame.index) == (0, 7)
    assert second.frame_age is not None
    assert 100 <= second.frame_age < 100 + PATIENCE
    results.close()  # type: ignore[attr-defined]
    assert camera.closed.wait(PATIENCE)


@pytest.mark.parametrize(
    ("live", "drop"), [(False, "auto"), (False, "none"), (True, "none")], ids=str
)
def test_nothing_is_lost_of_a_recording_nor_where_nothing_may_be(
    segmenter: Segmenter, live: bool, drop: str
) -> None:
    camera = Camera(live=live, frames=5)
    for _ in range(5):
        camera._turn.release()
    found = [result.frame.index for result in segmenter.stream(camera, drop=drop) if result.frame]
    assert found == [0, 1, 2, 3, 4]
    assert camera.closed.is_set()


def test_a_camera_that_ends_gives_its_last_frame_and_its_error(segmenter: Segmenter) -> None:
    camera = Camera()
    results = segmenter.stream(camera)
    threading.Thread(target=camera.show, daemon=True).start()
    next(results)
    camera.show(2)
    camera.error = SourceError("camera stopped", fix="Check it.")
    camera.end()
    last = next(results)
    assert last.frame is not None
    assert last.frame.index == 2
    with pytest.raises(SourceError, match="camera stopped"):
        next(results)
    assert camera.closed.is_set()


def test_a_driver_that_hangs_is_named_and_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aeseg_edge.segment.newest._PATIENCE", 0.01)
    monkeypatch.setattr(Camera, "interrupt", lambda self: None)
    camera = Camera()
    frames = newest_frames(camera)
    threading.Thread(target=camera.show, daemon=True).start()
    next(frames)
    frames.close()
    assert "camera: the driver hangs" in caplog.text
    camera.end()
    assert camera.closed.wait(PATIENCE)


@pytest.mark.parametrize("source", [None, True, -1, 1.5, np.zeros((4, 4, 3), np.uint8), b"a.mp4"])
def test_what_is_no_source_is_refused(segmenter: Segmenter, source: object) -> None:
    with pytest.raises(UsageError, match="is no source of frames"):
        next(segmenter.stream(source))  # type: ignore[arg-type]


def test_a_camera_number_and_a_path_are_sources(segmenter: Segmenter, tmp_path: Path) -> None:
    for source in (73, "73", tmp_path / "none.mp4"):
        with pytest.raises(SourceError, match=r"73|none\.mp4"):
            next(segmenter.stream(source))


def test_pictures_that_are_not_frames_are_refused(segmenter: Segmenter) -> None:
    pictures = (np.zeros((4, 4, 3), np.uint8) for _ in range(2))
    with pytest.raises(SourceError, match="gives ndarray, not Frame"):
        next(segmenter.stream(pictures))  # type: ignore[arg-type]


def test_an_unknown_way_to_drop_is_refused(segmenter: Segmenter) -> None:
    with pytest.raises(UsageError, match="drop 'all' is unknown"):
        next(segmenter.stream(Camera(), drop="all"))


@pytest.mark.parametrize("want", ["latents", ["latents"], {"latents"}, frozenset({"latents"})])
def test_one_output_or_several_are_wanted(segmenter: Segmenter, want: object) -> None:
    frame = np.zeros((64, 96, 3), np.uint8)
    assert segmenter(frame, want=want).latents is not None  # type: ignore[arg-type]
    assert segmenter.collect(segmenter.submit(frame), want).latents is not None  # type: ignore[arg-type]
    for result in segmenter.stream("test://96x64", want=want):  # type: ignore[arg-type]
        assert result.latents is not None
        break


def test_an_unknown_output_is_refused_before_a_frame_is_taken(segmenter: Segmenter) -> None:
    with pytest.raises(BackendError, match=r"\['latent'\] are unknown.*distance"):
        segmenter(np.zeros((64, 96, 3), np.uint8), want="latent")
    with pytest.raises(BackendError, match="unknown"):
        next(segmenter.stream("test://96x64", want="latent"))
    # The frame that was refused is not in the way of the next one.
    assert segmenter(np.zeros((64, 96, 3), np.uint8)).labels.shape == (64, 96)
