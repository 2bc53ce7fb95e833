"""The live page over real HTTP: what it serves, that nobody slows the loop, that it ends."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from aeseg_edge.errors import MissingDependency, SinkError  # noqa: E402
from aeseg_edge.page import app  # noqa: E402
from aeseg_edge.page.encoding import Scale  # noqa: E402
from aeseg_edge.page.guard import FILES, SCRIPTS  # noqa: E402
from aeseg_edge.page.sink import WATCHED, Live, WebSink  # noqa: E402
from aeseg_edge.sinks.registry import open_sink  # noqa: E402
from aeseg_edge.support.text import without_password  # noqa: E402
from tests.doubles.loop import wait_for  # noqa: E402
from tests.doubles.web import Editor, ask, frame, put, result, send  # noqa: E402


@pytest.fixture
def editor() -> Editor:
    return Editor()


@pytest.fixture
def sink(editor: Editor) -> Iterator[WebSink]:
    status = {"dropped": {"capture": 3, "delivery": 0}, "reconnects_total": 2, "state": "ok"}

    class Told(WebSink):
        def figures(self) -> dict[str, object]:
            return status

    with Told("http://127.0.0.1:0", Live(editor=editor)) as opened:
        yield opened


def packet(body: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Take a packet apart."""
    (length,) = struct.unpack_from("<I", body)
    head = json.loads(body[4 : 4 + length])
    parts, start = {}, 4 + length
    for name, size in head["parts"].items():
        parts[name] = body[start : start + size]
        start += size
    assert start == len(body)
    return head, parts


def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- what is served -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        ("/", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/page.css", "text/css; charset=utf-8", b"prefers-color-scheme: dark"),
        ("/main.js", "text/javascript; charset=utf-8", b'from "./stream.js"'),
        ("/state.js", "text/javascript; charset=utf-8", b"export const page"),
    ],
)
def test_the_page_and_its_files_are_served(
    sink: WebSink, path: str, kind: str, says: bytes
) -> None:
    reply = ask(sink, path)
    assert (reply.status, reply.headers["content-type"]) == (200, kind)
    assert says in reply.body


def test_what_is_served_is_what_lies_in_the_folder_and_scripts_import_one_way(
    sink: WebSink, repository: Path
) -> None:
    folder = repository / "aeseg_edge" / "page" / "static"
    assert sorted(name for name, _ in FILES.values()) == sorted(
        path.name for path in folder.iterdir()
    )
    imports = {
        name: re.findall(
            r'^import .*?"\./(\w+)\.js";$', ask(sink, f"/{name}.js").body.decode(), re.M
        )
        for name in SCRIPTS
    }
    # A circle would raise; main, which nobody imports, reaches all.
    assert set(TopologicalSorter(imports).static_order()) == set(SCRIPTS)
    assert {name for names in imports.values() for name in names} == set(SCRIPTS) - {"main"}


def test_the_page_asks_nobody_else_for_anything(sink: WebSink) -> None:
    for path in FILES:
        text = ask(sink, path).body.decode()
        addresses = [word for word in text.split('"') if "//" in word and word.startswith("http")]
        assert addresses == []
    html = ask(sink, "/").body.decode()
    assert " style=" not in html
    assert "<style" not in html
    assert " onclick=" not in html


def test_a_packet_holds_the_frame_its_labels_and_its_times(sink: WebSink) -> None:
    put(sink, 3)
    reply = ask(sink, "/api/frame?after=0")
    assert reply.status == 200
    head, parts = packet(reply.body)
    assert (head["number"], head["frame"], head["width"], head["height"]) == (3, 2, 64, 48)
    assert head["shares"] == {"0": 0.5, "1": 0.5}
    assert head["milliseconds"]["total"] == 5.0
    assert head["age"] == 0.006
    labels = np.frombuffer(zlib.decompress(parts["labels"]), np.uint8).reshape(48, 64)
    np.testing.assert_array_equal(labels, result(frame(2)).labels)
    image = cv2.imdecode(np.frombuffer(parts["image"], np.uint8), cv2.IMREAD_COLOR)
    assert abs(float(image.mean()) - 60) < 3


def test_a_wide_frame_is_sent_smaller_and_its_labels_with_it() -> None:
    with WebSink("http://127.0.0.1:0?width=64") as sink:
        taken = frame(0, 96, 256)
        sink.write(taken, result(taken))
        head, parts = packet(ask(sink, "/api/frame").body)
        assert (head["width"], head["height"]) == (64, 24)
        assert (head["frame_width"], head["frame_height"]) == (256, 96)
        assert len(zlib.decompress(parts["labels"])) == 64 * 24
        assert cv2.imdecode(np.frombuffer(ask(sink, "/labels.png").body, np.uint8), -1).shape == (
            96,
            256,
        )


def test_margins_are_sent_as_uncertainty_where_the_run_has_them(sink: WebSink) -> None:
    taken = frame(0)
    margin = np.full((12, 16), 4.0, np.float32)
    margin[0, 0] = 0.0
    sink.write(taken, result(taken, margin=margin))
    head, parts = packet(ask(sink, "/api/frame").body)
    assert (head["rows"], head["columns"]) == (12, 16)
    found = np.frombuffer(zlib.decompress(parts["uncertainty"]), np.uint8).reshape(12, 16)
    assert found[0, 0] == 255
    assert found[5, 5] == 0


def test_connections_that_ask_nothing_keep_nobody_out(sink: WebSink) -> None:
    put(sink)
    silent = [socket.create_connection(("127.0.0.1", sink.port)) for _ in range(200)]
    assert [ask(sink, "/healthz").status for _ in range(3)] == [200] * 3
    # A request that was begun and never ended asks nothing either.
    for link in silent[-30:]:
        link.sendall(b"GET /healthz HTTP/1.1\r\nHost: localh")
    more = [socket.create_connection(("127.0.0.1", sink.port)) for _ in range(70)]
    assert ask(sink, "/healthz").status == 200
    for link in (*silent, *more):
        link.close()


def test_a_body_that_does_not_come_ends(sink: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "PATIENCE", 0.01)
    link = socket.create_connection(("127.0.0.1", sink.port), timeout=20)
    host = f"127.0.0.1:{sink.port}"
    link.sendall(
        f"POST /api/login HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
        "Content-Type: application/json\r\nContent-Length: 9\r\n"
        "Connection: close\r\n\r\n{".encode()
    )
    assert b"the body did not come within" in link.makefile("rb").read()
    link.close()


def test_an_edit_is_put_on_the_disk(sink: WebSink, editor: Editor) -> None:
    body = {"action": "rename", "id": 1, "name": "meadow"}
    assert send(sink, "/api/edit", body).status == 200
    wait_for(lambda: editor.kept == 1)
    assert send(sink, "/api/undo", {}).status == 200
    wait_for(lambda: editor.kept == 2)


def test_uncertainty_follows_the_unit_of_the_scores() -> None:
    small, large = Scale(), Scale()
    margin = np.random.default_rng(0).exponential(1.0, (20, 20)).astype(np.float32)
    np.testing.assert_allclose(
        small.uncertainty(margin).astype(int), large.uncertainty(1000 * margin), atol=1
    )
    assert np.isfinite(Scale().uncertainty(np.zeros((2, 2), np.float32))).all()
    # One class alone is in no doubt, and leaves the scale as it was.
    assert not small.uncertainty(np.full((2, 2), 1e30, np.float32)).any()
    np.testing.assert_allclose(
        small.uncertainty(margin).astype(int), large.uncertainty(1000 * margin), atol=1
    )


def test_a_viewer_waits_for_the_next_frame(sink: WebSink) -> None:
    put(sink)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, sink, "/api/frame?after=1")
        time.sleep(0.1)
        assert not waiting.done()
        put(sink, start=7)
        head, _ = packet(waiting.result().body)
    assert (head["number"], head["frame"]) == (2, 7)


def test_the_state_has_classes_counters_and_times(sink: WebSink) -> None:
    assert ask(sink, "/api/state").data["source"]["state"] == "waiting"
    put(sink, 4)
    state = ask(sink, "/api/state?history").data
    assert state["title"] == "street"
    assert [c["name"] for c in state["classes"]] == ["sky", "grass"]
    assert state["classes"][0]["color"] == "#50a0f0"
    assert state["classes"][1]["clusters"] == [1]
    assert state["counters"] == {
        "frames": 4,
        "viewers": 0,
        "dropped": {"capture": 3, "delivery": 0},
        "reconnects_total": 2,
        "state": "ok",
    }
    assert state["source"]["state"] == "live"
    assert [row[1:] for row in state["history"]] == [[5.0, 6.0]] * 4


def test_no_answer_tells_the_password_of_a_camera(sink: WebSink) -> None:
    put(sink)
    for path in ("/api/state", "/api/frame", "/metrics"):
        body = ask(sink, path).body
        assert b"secret" not in body
        assert b"10.0.0.7/cam" in body
    assert without_password("rtsp://a:b%40c@host:5/x@y") == "rtsp://host:5/x@y"
    assert without_password("C:/film@home.mp4") == "C:/film@home.mp4"


def test_a_snapshot_and_the_labels_are_pictures_of_the_newest_frame(sink: WebSink) -> None:
    assert ask(sink, "/labels.png").status == 503
    put(sink, 2)
    labels = ask(sink, "/labels.png")
    assert labels.headers["content-type"] == "image/png"
    found = cv2.imdecode(np.frombuffer(labels.body, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, result(frame(0)).labels)
    for view, shape in (("overlay", (48, 64, 3)), ("mask", (48, 64, 3)), ("both", (48, 128, 3))):
        reply = ask(sink, f"/snapshot.jpg?view={view}")
        assert reply.headers["content-type"] == "image/jpeg"
        assert cv2.imdecode(np.frombuffer(reply.body, np.uint8), -1).shape == shape
    put(sink, start=9)
    newest = cv2.imdecode(np.frombuffer(ask(sink, "/snapshot.jpg").body, np.uint8), -1)
    old = cv2.imdecode(np.frombuffer(reply.body, np.uint8), -1)[:, :64]
    assert newest.mean() > old.mean() + 20
    taken = frame(10)
    labelled = replace(result(taken), labels=np.ones((48, 64), np.uint8))
    sink.write(taken, labelled)
    assert cv2.imdecode(np.frombuffer(ask(sink, "/labels.png").body, np.uint8), -1).min() == 1


def test_the_stream_is_motion_jpeg_that_goes_on(sink: WebSink) -> None:
    put(sink)
    with socket.create_connection(("127.0.0.1", sink.port), timeout=10) as wire:
        wire.sendall(b"GET /stream.mjpg?view=mask HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read = b""
        for index in range(1, 4):
            while read.count(b"Content-Type: image/jpeg") < index:
                piece = wire.recv(65536)
                assert piece
                read += piece
            put(sink, start=index)
    assert b"multipart/x-mixed-replace; boundary=" in read


def test_metrics_are_in_the_form_that_prometheus_reads(sink: WebSink) -> None:
    put(sink, 3)
    reply = ask(sink, "/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = reply.body.decode()
    assert "# TYPE aeseg_frames_total counter\naeseg_frames_total 3\n" in text
    assert 'aeseg_latency_seconds{stage="total"} 0.005\n' in text
    assert 'aeseg_class_share{id="1",name="grass"} 0.5\n' in text
    assert 'aeseg_loop_dropped{kind="capture"} 3\n' in text
    assert "# TYPE aeseg_loop_reconnects_total counter\naeseg_loop_reconnects_total 2\n" in text
    assert "aeseg_frame_age_seconds 0.006\n" in text
    assert "aeseg_loop_state" not in text


def test_health_follows_the_frames(sink: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    put(sink)
    reply = ask(sink, "/healthz")
    assert (reply.status, reply.data) == (200, {"status": "live"})
    monkeypatch.setattr("aeseg_edge.page.app.STALLED", 0.0)
    reply = ask(sink, "/healthz")
    assert (reply.status, reply.data) == (503, {"status": "stalled"})


def test_a_point_is_answered_with_its_class_and_its_cluster(sink: WebSink, editor: Editor) -> None:
    assert ask(sink, "/api/at?x=0.5&y=0.5").status == 503
    taken = frame(0)
    latents = np.zeros((2, 12, 16), np.float32)
    latents[0, :6], latents[1, 6:] = 2.0, 2.0
    sink.write(taken, result(taken, latents=latents))
    assert packet(ask(sink, "/api/frame").body)[0]["number"] == 1
    found = ask(sink, "/api/at?number=1&x=0.5&y=0.1").data
    assert (found["class"], found["cluster"], found["share"]) == (0, 0, 0.5)
    put(sink)
    found = ask(sink, "/api/at?number=1&x=1&y=1").data
    assert (found["class"], found["cluster"]) == (1, 1)
    assert (found["x"], found["y"]) == (63, 47)


@pytest.mark.parametrize(
    "path",
    [
        "/api/at?x=2&y=0",
        "/api/at?x=nan&y=0",
        "/api/at?y=0.5",
        "/api/frame?after=-1",
        "/api/frame?after=1e9",
        "/api/frame?after=9999999999999999999999",
        "/snapshot.jpg?view=../../etc/passwd",
        "/stream.mjpg?view=x",
    ],
)
def test_a_wrong_question_is_a_400_that_says_why(sink: WebSink, path: str) -> None:
    put(sink)
    reply = ask(sink, path)
    assert reply.status == 400
    assert reply.data["problem"]


# --- edits ----------------------------------------------------------------------------------------


def test_an_edit_is_applied_and_the_new_classes_come_back(sink: WebSink, editor: Editor) -> None:
    reply = send(sink, "/api/edit", {"action": "rename", "id": 1, "name": "road"})
    assert reply.status == 200
    assert [c["name"] for c in reply.data["classes"]] == ["sky", "road"]
    assert reply.data["unsaved"]
    assert reply.data["can_undo"]
    assert editor.book.classes[1].name == "road"
    reply = send(sink, "/api/save", {})
    assert (editor.saves, reply.data["unsaved"]) == (1, False)
    reply = send(sink, "/api/undo", {})
    assert [c["name"] for c in reply.data["classes"]] == ["sky", "grass"]


def test_clusters_that_are_void_are_named(sink: WebSink) -> None:
    assert send(sink, "/api/edit", {"action": "void", "id": 1}).data["void"] == [1]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[" * 10000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ([], "not a JSON object"),
        ({"action": "fly"}, "unknown"),
        ({"action": "rename", "id": 9, "name": "x"}, "no class 9"),
        ({"action": "rename", "id": 0, "name": "a" * 65}, "65 characters"),
    ],
)
def test_an_edit_that_cannot_be_changes_nothing(
    sink: WebSink, editor: Editor, data: object, says: str
) -> None:
    reply = send(sink, "/api/edit", data)
    assert reply.status == 400
    assert says in reply.data["problem"]
    assert editor.before == []


def test_a_page_without_an_editor_shows_and_changes_nothing() -> None:
    with WebSink("http://127.0.0.1:0") as sink:
        put(sink)
        state = ask(sink, "/api/state").data
        assert not state["editable"]
        assert [c["name"] for c in state["classes"]] == ["sky", "grass"]
        reply = send(sink, "/api/edit", {"action": "void", "id": 0})
        assert (reply.status, "cannot be changed" in reply.data["problem"]) == (400, True)


# --- nobody slows the loop ------------------------------------------------------------------------


def test_nothing_is_encoded_while_nobody_looks(sink: WebSink) -> None:
    put(sink, 50)
    assert sink._hubs.encoded == 0


def test_many_viewers_of_one_frame_cost_one_encoding(sink: WebSink) -> None:
    put(sink)
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(ask, sink, f"/api/frame?after=1&viewer={i}") for i in range(12)]
        until(lambda: ask(sink, "/api/state").data["counters"]["viewers"] == 12)
        put(sink, start=1)
        bodies = {job.result().body for job in waiting}
    assert len(bodies) == 1
    assert sink._hubs.encoded == 1


def test_a_viewer_that_reads_nothing_delays_neither_the_loop_nor_others() -> None:
    with WebSink("http://127.0.0.1:0?width=1280&fps=120") as sink, socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", sink.port))
        stuck.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        noise = np.random.default_rng(0).integers(0, 255, (540, 960, 3), np.uint8)
        numbers = []
        for index in range(40):
            taken = replace(frame(index, 540, 960), image=noise)
            began = time.perf_counter()
            sink.write(taken, result(taken))
            spent = time.perf_counter() - began
            # Encoding this frame takes over 5 ms, sending it to the stuck viewer forever.
            numbers.append(spent)
            head, _ = packet(ask(sink, f"/api/frame?after={index}").body)
            assert head["number"] == index + 1
        assert np.median(numbers) < 0.005
        # The stuck one was given what fits into the buffers between, and no more.
        pictures = sink._hubs.encoded - 40
        assert pictures < 40


def test_a_slow_viewer_gets_the_newest_frame_and_not_those_between(sink: WebSink) -> None:
    put(sink, 1)
    first, _ = packet(ask(sink, "/api/frame?after=0").body)
    put(sink, 30, start=1)
    second, _ = packet(ask(sink, f"/api/frame?after={first['number']}").body)
    assert (first["number"], second["number"]) == (1, 31)


def put_tall(sink: WebSink) -> None:
    """Put a result that is larger than any JPEG (65535 rows)."""
    taken = frame(0, 66_000, 8)
    sink.write(taken, result(taken))


def test_a_frame_that_cannot_be_encoded_is_stepped_over(sink: WebSink) -> None:
    put(sink)
    assert packet(ask(sink, "/api/frame?after=0").body)[0]["number"] == 1
    put_tall(sink)
    with ThreadPoolExecutor(2) as viewers:
        waiting = [viewers.submit(ask, sink, "/api/frame?after=1") for _ in range(2)]
        until(lambda: sink._hubs.encoded >= 2)
        put(sink)
        for each in waiting:
            assert packet(each.result().body)[0]["number"] == 3
    assert packet(ask(sink, "/api/frame?after=1").body)[0]["number"] == 3


def test_frames_that_can_never_be_encoded_are_said_once_and_to_each_who_asks(
    sink: WebSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aeseg_edge.page.app.PATIENCE", 0.05)
    for _ in range(2):
        put_tall(sink)
        for path in ("/api/frame?after=0", "/snapshot.jpg", "/labels.png"):
            answer = ask(sink, path)
            assert (answer.status, b"cannot be encoded" in answer.body) == (
                (200, False) if path == "/labels.png" else (400, True)
            )
    said = [each for each in caplog.records if "leaves frames out" in each.message]
    assert [each.levelname for each in said] == ["WARNING"]
    put(sink)
    assert packet(ask(sink, "/api/frame?after=0").body)[0]["number"] == 3
    assert ask(sink, "/snapshot.jpg").status == 200


def test_the_stream_goes_on_after_a_frame_that_cannot_be_encoded(
    sink: WebSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aeseg_edge.page.app.PATIENCE", 0.05)
    put_tall(sink)
    with socket.create_connection(("127.0.0.1", sink.port), timeout=10) as wire:
        wire.sendall(b"GET /stream.mjpg?view=mask HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: sink._hubs.encoded >= 2)
        put(sink)
        read = b""
        while b"Content-Type: image/jpeg" not in read:
            piece = wire.recv(65536)
            assert piece
            read += piece


def test_a_fast_source_is_thinned_out_for_viewers() -> None:
    with WebSink("http://127.0.0.1:0?fps=20") as sink:
        stop = threading.Event()

        def feed() -> None:
            while not stop.wait(0.002):
                put(sink)

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            until(lambda: ask(sink, "/api/frame").status == 200)
            number, began, count = 0, time.monotonic(), 10
            for _ in range(count):
                number = packet(ask(sink, f"/api/frame?after={number}").body)[0]["number"]
            spent = time.monotonic() - began
        finally:
            stop.set()
            thread.join()
        # The first may be one that is there already.
        assert spent > (count - 2) / 20


def test_margins_and_latents_are_asked_for_while_somebody_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with WebSink("http://127.0.0.1:0") as sink:
        put(sink)
        assert sink.wants == frozenset()
        ask(sink, "/api/frame")
        put(sink)
        assert sink.wants == WATCHED
        monkeypatch.setattr("aeseg_edge.page.hub._WATCHED", 0.0)
        put(sink)
        assert sink.wants == frozenset()


def test_invented_viewers_take_no_memory(sink: WebSink) -> None:
    put(sink)
    for index in range(300):
        sink._hubs.find(None)._count(str(index))
    assert len(sink._hubs.find(None)._asked) <= 256


# --- beginning and end ----------------------------------------------------------------------------


def test_open_sink_opens_the_page(editor: Editor) -> None:
    said: list[str] = []
    sink = open_sink("http://localhost:0", live=Live(editor=editor, announce=said.append))
    try:
        assert isinstance(sink, WebSink)
        assert said == [f"http://localhost:{sink.port}/"]
        assert ask(sink, "/api/state").data["editable"]
    finally:
        sink.close()


def test_closing_sends_waiting_viewers_away_and_frees_the_port() -> None:
    sink = WebSink("http://127.0.0.1:0")
    put(sink)
    with ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", sink.port)) as wire:
        waiting = pool.submit(ask, sink, "/api/frame?after=1&viewer=a")
        wire.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: sink._hubs.viewers == 1)
        assert b"200 OK" in wire.recv(65536)
        sink.close()
        sink.close()
        assert waiting.result().status == 503
    assert not sink._thread.is_alive()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", sink.port))
    put(sink)
    assert [t.name for t in threading.enumerate() if t.name.startswith("aeseg")] == []


def test_a_used_port_is_said_at_once() -> None:
    with WebSink("http://127.0.0.1:0") as sink, pytest.raises(SinkError) as caught:
        WebSink(f"http://127.0.0.1:{sink.port}")
    assert f"port {sink.port} of 127.0.0.1 cannot be taken" in caught.value.problem
    assert "another port" in caught.value.fix


@pytest.mark.parametrize(
    "uri",
    [
        "http://",
        "http://:8080",
        "http://127.0.0.1:x",
        "http://127.0.0.1:70000",
        "http://127.0.0.1:0/page",
        "http://me:pw@127.0.0.1:0",
        "http://127.0.0.1:0?view=mask",
        "http://127.0.0.1:0?fps=0",
        "http://127.0.0.1:0?width=-5",
        "http://no.such.host.invalid:0",
        "http://a..b:0",
    ],
)
def test_an_address_that_cannot_be_served_is_refused(uri: str) -> None:
    with pytest.raises(SinkError):
        open_sink(uri)


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_the_extra_the_package_and_the_extra_are_named(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=package) as caught:
        open_sink("http://127.0.0.1:0")
    assert "[web]'" in caught.value.fix


def test_a_server_that_dies_is_told_to_the_loop(sink: WebSink) -> None:
    sink._failure = RuntimeError("out of file handles")
    with pytest.raises(SinkError, match="out of file handles"):
        put(sink)


def test_a_run_with_a_page_ends_by_itself_and_tells_its_address(
    v1_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    from aeseg_edge.cli import main

    run = ["run", "test://96x64@30", "-b", str(v1_bundle), "--frames", "3", "--threads", "1"]
    assert main([*run, "-o", "http://127.0.0.1:0"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^live page: http://127\.0\.0\.1:\d+/$", said, re.MULTILINE)
    assert "3 frames in" in said
    assert main([*run, "-o", "http://0.0.0.0:0", "--token", "correct-horse-battery"]) == 0
    assert "/#token=correct-horse-battery" in capsys.readouterr().err
    assert main([*run, "-o", "http://127.0.0.1:0", "--token", "short"]) == 2
    with WebSink("http://127.0.0.1:0") as other:
        assert main([*run, "-o", other.name]) == 1
    assert "cannot be taken" in capsys.readouterr().err


def test_the_loops_counters_are_metrics_unless_others_are_given() -> None:
    from aeseg_edge.sinks.counters import LoopCounters, SinkCounters, SourceCounters

    source = SourceCounters(
        name="rtsp://user:secret@camera/1", state="running", frames_in=9, segmented=7,
        dropped={"capture": 2}, reconnects=1, stalls=3, age=None, size=(96, 64), problem=None,
    )  # fmt: skip
    counters = LoopCounters(1.0, (source,), (SinkCounters("null://", 7, 0, None),))
    with WebSink("http://127.0.0.1:0") as opened:
        opened.watch(lambda: counters)
        text = ask(opened, "/metrics").body.decode()
    assert "secret" not in text
    for name, value in (("frames_in", 9), ("segmented", 7), ("dropped", 2), ("stalls", 3)):
        assert re.search(rf"aeseg_loop_{name}_total{{[^}}]*}} {value}\b", text), text


def test_each_source_has_its_picture_state_and_samples(sink: WebSink) -> None:
    for index, name in enumerate(("front", "rtsp://me:secret@10.0.0.7/cam", "front")):
        taken = replace(frame(index), source=name)
        sink.write(taken, replace(result(taken), drift=0.25))
    state = ask(sink, "/api/state").data
    assert [each["name"] for each in state["sources"]] == ["front", "rtsp://10.0.0.7/cam"]
    assert all(each["drift"] == 0.25 for each in state["sources"])
    assert state["counters"]["frames"] == 2
    other = "rtsp%3A%2F%2F10.0.0.7%2Fcam"
    assert ask(sink, f"/api/state?source={other}").data["counters"]["frames"] == 1
    heads = []
    for query in ("", f"&source={other}", "&source=front"):
        body = ask(sink, f"/api/frame?after=0{query}").body
        length = int.from_bytes(body[:4], "little")
        heads.append(json.loads(body[4 : 4 + length]))
    assert [head["frame"] for head in heads] == [2, 1, 2]
    assert [head["drift"] for head in heads] == [0.25] * 3
    found = ask(sink, "/metrics").body.decode()
    assert 'aeseg_frames_total{source="front"} 2' in found
    assert 'aeseg_frames_total{source="rtsp://10.0.0.7/cam"} 1' in found
    assert found.count("# TYPE aeseg_drift gauge") == 1
    assert "secret" not in found
    assert ask(sink, "/healthz").data["sources"] == dict.fromkeys(
        ("front", "rtsp://10.0.0.7/cam"), "live"
    )
    assert ask(sink, "/snapshot.jpg?source=back").status == 400


def test_distances_are_sent_where_there_are_any(sink: WebSink) -> None:
    taken = frame(0)
    distance = np.array([[0.0, 1.0, 9.0, np.nan]], np.float32)
    sink.write(taken, replace(result(taken), distance=distance))
    body = ask(sink, "/api/frame?after=0").body
    length = int.from_bytes(body[:4], "little")
    head = json.loads(body[4 : 4 + length])
    assert (head["rows"], head["columns"]) == (1, 4)
    assert list(zlib.decompress(body[-head["parts"]["distance"] :])) == [0, 128, 255, 0]
