"""The addresses of the live page, as an ASGI application."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
)
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from aeseg_edge.bundle.classes import clusters_of, parse_edit
from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.errors import AesegError, UsageError
from aeseg_edge.page import metrics
from aeseg_edge.page.classes import LiveClasses, cluster_at
from aeseg_edge.page.guard import FILES, MAX_BODY, SECURITY_HEADERS, Guard
from aeseg_edge.support.text import as_text, to_json, without_password
from aeseg_edge.version import __version__
from aeseg_edge.view.draw import VIEWS

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from aeseg_edge.page.hub import Hub, Hubs

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Status = Callable[[], Mapping[str, object]]

PATIENCE = 10.0
"""Seconds that a request for the next frame waits before it comes back empty."""

STALLED = 5.0
"""Seconds without a result after which the source counts as stalled."""

_JSON = "application/json"
_BOUNDARY = "aeseg-frame"


@dataclass(frozen=True)
class Answer:
    """What a request gets: the content, its media type, the HTTP status, and other headers."""

    body: bytes = b""
    kind: str = _JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def answer_json(
    data: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """Answer with JSON; values that JSON lacks are written as text."""
    text = to_json(data, allow_nan=False, default=str)
    return Answer(text.encode(), status=status, headers=headers or {})


def answer_error(status: int, problem: str, fix: str = "") -> Answer:
    """Answer with a problem and its fix."""
    return answer_json({"problem": problem, "fix": fix}, status)


class Pages:
    """What each address does; without an editor the classes cannot be changed."""

    def __init__(
        self, hubs: Hubs, guard: Guard, editor: LiveClasses | None, status: Status | None
    ) -> None:
        self._hubs = hubs
        self._guard = guard
        self._editor = editor
        self._status = status
        self._tasks: set[asyncio.Task[None]] = set()
        folder = resources.files("aeseg_edge.page") / "static"
        self._files = {
            path: Answer((folder / name).read_bytes(), f"{kind}; charset=utf-8")
            for path, (name, kind) in FILES.items()
        }

    async def file(self, request: Request) -> Answer:
        """One of the page's own files."""
        return self._files[request.scope["path"]]

    async def state(self, request: Request) -> Answer:
        """Everything but pictures: classes, counters, state of the source and of all."""
        hub, sources = self._asked(request), self._hubs.by_source
        data: dict[str, Any] = {
            "version": __version__,
            "title": "live" if self._editor is None else self._editor.title,
            "editable": self._editor is not None,
            "source": _source(hub),
            "sources": [{"name": name, **_source(each)} for name, each in sources.items()],
            "counters": self._counters(hub),
            "classes": self._classes(hub),
        }
        if self._editor is not None:
            data |= {
                "unsaved": self._editor.unsaved,
                "can_undo": self._editor.can_undo,
                "void": list(clusters_of(self._editor.current(), VOID)),
            }
        if "history" in request.query_params:
            data["history"] = hub.history()
        return answer_json(data)

    async def frame(self, request: Request) -> Answer:
        """The packet of the next result after the one that the page has."""
        after = _number(request, "after", 0)
        viewer = request.query_params.get("viewer", "")[:32]
        hub = self._asked(request)
        packet = await hub.packet(after, timeout=PATIENCE, viewer=viewer)
        if packet is None:
            return Answer(status=204) if not hub.closed else self._ended()
        return Answer(packet, "application/octet-stream")

    async def at(self, request: Request) -> Answer:
        """The class and the cluster under a point of a frame that was sent."""
        shot = self._asked(request).sent(_number(request, "number", 0))
        if shot is None:
            return answer_error(503, "there is no frame yet")
        labels, result = shot.result.labels, shot.result
        height, width = labels.shape
        row = min(height - 1, int(_share(request, "y") * height))
        column = min(width - 1, int(_share(request, "x") * width))
        label = int(labels[row, column])
        cluster = None
        if self._editor is not None and result.latents is not None:
            codebook, geometry = self._editor.current(), self._editor.geometry
            place = row, column
            cluster = cluster_at(codebook, geometry, result.latents, (height, width), place, label)
        found = {"class": label, "cluster": cluster, "x": column, "y": row}
        return answer_json({**found, "share": result.shares.get(label, 0.0)})

    async def edit(self, request: Request) -> Answer:
        """Change a class."""
        edit = parse_edit(await _read_json(request))
        self._need_editor().apply(edit)
        self._keep_edits()
        return await self.state(request)

    async def undo(self, request: Request) -> Answer:
        """Take the last change back."""
        await _read_json(request)
        self._need_editor().undo()
        self._keep_edits()
        return await self.state(request)

    async def save(self, request: Request) -> Answer:
        """Write the classes into the bundle."""
        await _read_json(request)
        # Compressing some megabytes takes a while; pictures go on meanwhile.
        await asyncio.to_thread(self._need_editor().save)
        return await self.state(request)

    async def login(self, request: Request) -> Answer:
        """Trade the token for a cookie."""
        data = await _read_json(request)
        cookie = self._guard.login(data.get("token") if isinstance(data, dict) else None)
        if cookie is None and self._guard.demands_token:
            return answer_error(401, "that is not the token", "Copy it from the terminal.")
        return answer_json({}, headers={"set-cookie": cookie} if cookie else {})

    async def snapshot(self, request: Request) -> Answer:
        """The newest result as a JPEG."""
        found = await self._asked(request).view(_view(request), None, timeout=PATIENCE)
        if found is None:
            return answer_error(503, "there is no frame yet")
        return Answer(found[1], "image/jpeg")

    async def labels(self, request: Request) -> Answer:
        """The newest label map as a PNG of class ids."""
        data = await self._asked(request).labels()
        if data is None:
            return answer_error(503, "there is no frame yet")
        return Answer(data, "image/png")

    async def stream(self, request: Request) -> Response:
        """Motion JPEG, for players and dashboards."""
        from starlette.responses import StreamingResponse

        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        return StreamingResponse(
            self._pictures(self._asked(request), _view(request)), media_type=kind
        )

    async def _pictures(self, hub: Hub, view: str) -> AsyncIterator[bytes]:
        number = 0
        while not hub.closed:
            try:
                found = await hub.view(view, number, timeout=PATIENCE)
            except AesegError:
                # The hub has logged it; a later frame may be another.
                continue
            if found is not None:
                number, data = found
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}"
                yield head.encode() + b"\r\n\r\n" + data + b"\r\n"

    async def health(self, request: Request) -> Answer:
        """200 while results come, of any source, 503 where none do; for supervisors."""
        found = self._hubs.by_source
        states = {name: _source(hub)["state"] for name, hub in found.items()}
        order = ("live", "waiting", "stalled", "ended")
        state = min(states.values() or [_source(self._hubs.find(None))["state"]], key=order.index)
        data = {"status": state} | ({"sources": states} if len(states) > 1 else {})
        return answer_json(data, 503 if state in ("stalled", "ended") else 200)

    async def metrics(self, request: Request) -> Answer:
        """Counters for Prometheus; with several sources each has its samples."""
        out = metrics.Metrics()
        sources = self._hubs.by_source or {"": self._hubs.find(None)}
        info = {"version": __version__, "source": ", ".join(sources)}
        if self._editor is not None:
            info["bundle"] = self._editor.title
        out.add("aeseg_info", "gauge", "What runs.", [(info, 1.0)])
        families: dict[tuple[str, str, str], list[metrics.Sample]] = {}
        for name, hub in sources.items():
            own = {"source": name} if len(sources) > 1 else {}
            for family, rows in _samples(hub):
                families.setdefault(family, []).extend(
                    ({**own, **labels}, value) for labels, value in rows
                )
        for (name, kind, text), rows in families.items():
            out.add(name, kind, text, rows)
        encoded = float(self._hubs.encoded)
        out.add("aeseg_encoded_total", "counter", "Pictures encoded.", [({}, encoded)])
        viewers = float(self._hubs.viewers)
        out.add("aeseg_viewers", "gauge", "Pages that are open.", [({}, viewers)])
        if self._status is not None:
            out.add_status(self._status())
        return Answer(as_text(out.text()).encode(), metrics.CONTENT_TYPE)

    def _asked(self, request: Request) -> Hub:
        """The source that a request names; the first one where it names none."""
        return self._hubs.find(request.query_params.get("source") or None)

    def _counters(self, hub: Hub) -> dict[str, Any]:
        shot = hub.newest
        own: dict[str, Any] = {"frames": shot.number if shot else 0, "viewers": self._hubs.viewers}
        return own if self._status is None else {**own, **self._status()}

    def _classes(self, hub: Hub) -> list[dict[str, Any]]:
        if self._editor is not None:
            book = self._editor.current()
            members = {item.id: list(clusters_of(book, item.id)) for item in book.classes}
            classes = book.classes
        else:
            shot = hub.newest
            members, classes = {}, shot.result.classes if shot else ()
        return [
            {
                "id": item.id,
                "name": item.name,
                "color": "#{:02x}{:02x}{:02x}".format(*item.color),
                "clusters": members.get(item.id, []),
            }
            for item in classes
        ]

    def _keep_edits(self) -> None:
        """Put the edits on the disk while pictures go on: a kill does not lose them."""
        keeping = asyncio.create_task(asyncio.to_thread(self._need_editor().keep_edits))
        self._tasks.add(keeping)
        keeping.add_done_callback(self._tasks.discard)

    def _need_editor(self) -> LiveClasses:
        if self._editor is None:
            raise UsageError(
                "the classes of this run cannot be changed here",
                fix="Run it with `aeseg run`, or give the sink LiveClasses.",
            )
        return self._editor

    @staticmethod
    def _ended() -> Answer:
        return answer_error(503, "the run has ended")


def _source(hub: Hub) -> dict[str, Any]:
    """State of one source."""
    shot, silent = hub.newest, hub.silent
    state = "waiting" if shot is None else "live"
    if silent > STALLED:
        state = "stalled"
    if hub.closed:
        state = "ended"
    found: dict[str, Any] = {"state": state, "silent": round(silent, 1), "fps": hub.rate}
    if shot is not None:
        height, width = shot.frame.image.shape[:2]
        found |= {"name": without_password(shot.frame.source), "width": width, "height": height}
        found["drift"] = shot.result.drift
    return found


def _samples(hub: Hub) -> Iterator[tuple[tuple[str, str, str], list[metrics.Sample]]]:
    """One source's samples, each family with its name, type and text."""
    shot = hub.newest
    count = float(shot.number) if shot else 0.0
    yield ("aeseg_frames_total", "counter", "Results since the start."), [({}, count)]
    yield ("aeseg_frame_rate", "gauge", "Results a second."), [({}, hub.rate)]
    yield ("aeseg_silence_seconds", "gauge", "Since the last result."), [({}, hub.silent)]
    if shot is None:
        return
    result = shot.result
    if result.frame_age is not None:
        text = "From capture to labels."
        yield ("aeseg_frame_age_seconds", "gauge", text), [({}, result.frame_age)]
    if result.drift is not None:
        text = "How unlike the footage the scene is, 0 to 1."
        yield ("aeseg_drift", "gauge", text), [({}, result.drift)]
    times = result.milliseconds.items()
    stages: list[metrics.Sample] = [({"stage": name}, value / 1e3) for name, value in times]
    yield ("aeseg_latency_seconds", "gauge", "Of the last frame."), stages
    shares = result.shares
    rows: list[metrics.Sample] = [
        ({"id": str(item.id), "name": item.name}, shares.get(item.id, 0.0))
        for item in result.classes
    ]
    rows.append(({"id": str(VOID), "name": "void"}, shares.get(VOID, 0.0)))
    yield ("aeseg_class_share", "gauge", "Share of the last frame."), rows


def build_app(
    hubs: Hubs, guard: Guard, editor: LiveClasses | None, status: Status | None
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Build the application, the guard in front of it."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    pages = Pages(hubs, guard, editor, status)
    get: dict[str, Callable[[Request], Awaitable[Answer]]] = {
        **dict.fromkeys(FILES, pages.file),
        "/api/state": pages.state,
        "/api/frame": pages.frame,
        "/api/at": pages.at,
        "/snapshot.jpg": pages.snapshot,
        "/labels.png": pages.labels,
        "/healthz": pages.health,
        "/metrics": pages.metrics,
    }
    post = {
        "/api/edit": pages.edit,
        "/api/undo": pages.undo,
        "/api/save": pages.save,
        "/api/login": pages.login,
    }
    routes = [Route(path, _endpoint(work), methods=["GET"]) for path, work in get.items()]
    routes += [Route(path, _endpoint(work), methods=["POST"]) for path, work in post.items()]
    routes.append(Route("/stream.mjpg", _endpoint(pages.stream), methods=["GET"]))
    app: Starlette = Starlette(routes=routes)
    return _Gate(app, guard)


def _endpoint(
    work: Callable[[Request], Awaitable[Answer | Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """Turn answers and errors into responses."""

    async def endpoint(request: Request) -> Response:
        from starlette.responses import Response

        try:
            answer = await work(request)
        except AesegError as error:
            answer = answer_error(400, error.problem, error.fix)
        except RuntimeError as error:
            # The encoder's thread ends with the run.
            _log.debug("%s: %s", request.url.path, error)
            answer = answer_error(503, "the run has ended")
        if isinstance(answer, Response):
            return answer
        return Response(
            answer.body,
            status_code=answer.status,
            media_type=None if answer.status == 204 else answer.kind,
            headers=dict(answer.headers),
        )

    return endpoint


class _Gate:
    """Asks the guard about each request, and puts the security headers on each answer."""

    def __init__(self, app: Any, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_safely(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.encode(), v.encode()) for k, v in SECURITY_HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._guard.check(scope["method"], scope["path"], headers)
        if refusal is None:
            await self._app(scope, receive, send_safely)
            return
        from starlette.responses import Response

        answer = answer_error(refusal.status, refusal.problem)
        extra = {"www-authenticate": "Bearer"} if refusal.status == 401 else {}
        # The body is not read, so the connection cannot be used again.
        extra["connection"] = "close"
        response = Response(answer.body, refusal.status, extra, answer.kind)
        await response(scope, receive, send_safely)


async def _read_json(request: Request) -> Any:
    """Read a body of limited size; UsageError if it is too long or too slow, or not JSON."""

    async def read() -> bytes:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                raise UsageError(f"the body has more than {MAX_BODY} bytes", fix="Send one edit.")
        return body

    try:
        return json.loads(await asyncio.wait_for(read(), PATIENCE))
    except asyncio.TimeoutError as error:
        raise UsageError(
            f"the body did not come within {PATIENCE:g} s", fix="Send it at once."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError("the body is not JSON", fix='Send {"action": "rename", ...}.') from error


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise UsageError(f"{name}={text!r} is not a whole number", fix="Give digits.")
    return int(text)


def _share(request: Request, name: str) -> float:
    try:
        value = float(request.query_params.get(name, ""))
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"{name} is not within 0..1", fix="Give a share of the picture's side.")
    return value


def _view(request: Request) -> str:
    view = request.query_params.get("view", "overlay")
    if view not in VIEWS:
        raise UsageError(f"view {view!r} is unknown", fix=f"Use one of {', '.join(VIEWS)}.")
    return view
