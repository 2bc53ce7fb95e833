"""A window is closed by its user, and says why it cannot be opened."""

from __future__ import annotations

import socket
import sys

import numpy as np
import pytest

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks import window
from aeseg_edge.sinks.registry import open_sink
from tests.doubles.drawn import write

cv2 = pytest.importorskip("cv2")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DISPLAY is X11's")
def test_a_window_without_a_display_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(SinkError, match=r"no display to open a window on\. Write a video"):
        open_sink("window")


class FakeWindows:
    """OpenCV's windows: what is shown, and what the user does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[np.ndarray] = []
        self.key, self.visible, self.destroyed = -1, 1.0, 0
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr(window, "_display_answers", lambda _: True)
        monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
        monkeypatch.setattr(cv2, "imshow", lambda _, image: self.shown.append(image))
        monkeypatch.setattr(cv2, "waitKey", lambda _: self.key)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: self.visible)
        monkeypatch.setattr(cv2, "destroyWindow", self.destroy)

    def destroy(self, _: str) -> None:
        self.destroyed += 1


@pytest.mark.parametrize(("key", "closes"), [(ord("q"), True), (27, True), (ord("x"), False)])
def test_q_and_escape_close_the_window(
    monkeypatch: pytest.MonkeyPatch, key: int, closes: bool
) -> None:
    windows = FakeWindows(monkeypatch)
    sink = open_sink("window")
    drawn = write(sink, 1)
    assert not sink.closed_by_user
    windows.key = key
    write(sink, 1)
    assert sink.closed_by_user == closes
    np.testing.assert_array_equal(windows.shown[0], drawn[0])
    sink.close()
    sink.abort()
    assert windows.destroyed == 1


def test_a_window_clicked_away_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = FakeWindows(monkeypatch)
    sink = open_sink("window")
    windows.visible = 0.0
    write(sink, 1)
    assert sink.closed_by_user
    write(sink, 1)
    sink.close()
    assert len(windows.shown) == 1
    assert windows.destroyed == 0


def test_an_opencv_without_windows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeWindows(monkeypatch)

    def refuse(*_: object) -> None:
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "namedWindow", refuse)
    with pytest.raises(SinkError, match="built without windows"):
        open_sink("window")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DISPLAY is X11's")
@pytest.mark.parametrize("display", [":4711", "unix:4711.0", "localhost:4711", "localhost:99999"])
def test_a_display_that_does_not_answer_is_refused(
    monkeypatch: pytest.MonkeyPatch, display: str
) -> None:
    monkeypatch.setenv("DISPLAY", display)
    with pytest.raises(SinkError, match=f"the display {display} does not answer"):
        open_sink("window")


def test_a_display_that_listens_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1] - 6000
        assert window._display_answers(f"127.0.0.1:{number}.0")
