"""A window on the desktop."""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import TYPE_CHECKING

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import Asked, Sink
from aeseg_edge.sources.base import Frame
from aeseg_edge.support.require import import_cv2
from aeseg_edge.support.text import as_text

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation


class WindowSink(Sink):
    """A window on the desktop; q or Escape closes it. Its title is also its name, so one a window.

    Raises SinkError if there is no display, or OpenCV has no windows.
    """

    name = "window"

    on_main_thread = True

    def __init__(self, asked: Asked) -> None:
        alternatives = "Write a video (-o out.mp4) or images (-o out/%06d.png) instead."
        shown = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if sys.platform.startswith("linux") and not shown:
            raise SinkError("there is no display to open a window on", fix=alternatives)
        if not _display_answers(os.environ.get("DISPLAY", "")):
            raise SinkError(
                f"the display {os.environ['DISPLAY']} does not answer", fix=alternatives
            )
        cv2 = import_cv2()
        title = as_text(asked.title)
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise SinkError(
                "this OpenCV is built without windows",
                fix="pip uninstall opencv-python-headless; pip install opencv-python. "
                + alternatives,
            ) from error
        self._draw = asked.draw
        self._title = title
        self._open = True
        self._shown = False

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Show one frame."""
        if self.closed_by_user:
            return
        cv2 = import_cv2()
        cv2.imshow(self._title, self._draw(frame.image, result))
        self._shown = True
        self.idle()

    def idle(self) -> None:
        """Look at keys and the close button, also while no frame comes."""
        if not self._shown or self.closed_by_user:
            return
        cv2 = import_cv2()
        key = cv2.waitKey(1) & 0xFF
        # Below 1: somebody clicked the window away; imshow would bring it back.
        gone = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
        self.closed_by_user = gone or key in (ord("q"), 27)
        if gone:
            self._open = False

    def close(self) -> None:
        """Close the window."""
        if self._open:
            self._open = False
            import_cv2().destroyWindow(self._title)


def _display_answers(display: str) -> bool:
    """Knock at an X server (``[host]:number[.screen]``, X(7)): Qt aborts the process at a dead one.

    Names of another form are taken on trust.
    """
    match = re.fullmatch(r"(?:unix)?([^:/]*):(\d+)(?:\.\d+)?", display)
    if match is None:
        return True
    host, number = match[1], int(match[2])
    if host:
        try:
            socket.create_connection((host, 6000 + number), timeout=2).close()
        except (OSError, OverflowError):
            return False
        return True
    path = f"/tmp/.X11-unix/X{number}"
    for address in (path, "\0" + path):
        with socket.socket(socket.AF_UNIX) as knock:
            if knock.connect_ex(address) == 0:
                return True
    return False
