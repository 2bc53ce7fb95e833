"""What the tests of the live page share: a sink on a free port, results to put in, requests."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aeseg_edge.bundle.classes import Edit
from aeseg_edge.bundle.codebook import ClassInfo, Codebook, palette
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.page.sink import WebSink
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.sources.base import Frame

CLASSES = (ClassInfo(0, "sky", (80, 160, 240)), ClassInfo(1, "grass", (30, 140, 40)))


def frame(index: int, height: int = 48, width: int = 64) -> Frame:
    """Plain, and brighter from one index to the next."""
    image = np.full((height, width, 3), 20 + 20 * (index % 11), np.uint8)
    return Frame(image, index, time.monotonic(), "rtsp://me:secret@10.0.0.7/cam")


def result(taken: Frame, **more: Any) -> Segmentation:
    """Sky above, grass below."""
    labels = np.zeros(taken.image.shape[:2], np.uint8)
    labels[labels.shape[0] // 2 :] = 1
    times = {"inference": 4.0, "total": 5.0}
    return Segmentation(labels, CLASSES, palette(CLASSES), times, 0.006, **more)


def put(sink: WebSink, count: int = 1, start: int = 0) -> None:
    for index in range(start, start + count):
        taken = frame(index)
        sink.write(taken, result(taken))


@dataclass
class Editor:
    """A class editor over a codebook in memory; counts what it is asked for."""

    book: Codebook = field(
        default_factory=lambda: Codebook.from_centres(np.eye(2, dtype=np.float32), classes=CLASSES)
    )
    saves: int = 0
    drafts: int = 0
    kept: int = 0
    before: list[Codebook] = field(default_factory=list)
    geometry: Geometry = field(default_factory=lambda: Geometry(64, 48))
    title: str = "street"

    @property
    def unsaved(self) -> bool:
        return len(self.before) > self.saves

    @property
    def can_undo(self) -> bool:
        return bool(self.before)

    def current(self) -> Codebook:
        return self.book

    def apply(self, edit: Edit) -> Codebook:
        after = edit(self.book)
        self.before.append(self.book)
        self.book = after
        return after

    def undo(self) -> Codebook:
        self.book = self.before.pop()
        return self.book

    def save(self) -> None:
        self.saves += 1

    def keep_edits(self) -> None:
        self.kept += 1

    def keep_draft(self) -> None:
        self.drafts += 1


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)


def ask(
    sink: WebSink, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> Reply:
    """Send one request; headers are given with _ for -, and an empty one is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", sink.port, timeout=10)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host="Host" in sent)
        if body is not None:
            sent.setdefault("Content-Length", str(len(body)))
        for name, value in sent.items():
            if value:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())
    finally:
        connection.close()


def send(sink: WebSink, path: str, data: object, **headers: str) -> Reply:
    """Send JSON as the page does."""
    own = {"Content_Type": "application/json", "Origin": f"http://127.0.0.1:{sink.port}"}
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return ask(sink, path, method="POST", body=body, **{**own, **headers})
