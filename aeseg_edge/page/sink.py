"""The sink that serves the live page."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from aeseg_edge.errors import SinkError
from aeseg_edge.page.connections import bounded_protocol
from aeseg_edge.page.guard import Guard, is_loopback, new_token
from aeseg_edge.page.hub import Hubs
from aeseg_edge.sinks.base import Asked, Sink
from aeseg_edge.support.require import require
from aeseg_edge.support.text import without_password

if TYPE_CHECKING:
    from aeseg_edge.page.classes import LiveClasses
    from aeseg_edge.segment.result import Segmentation
    from aeseg_edge.sinks.counters import LoopCounters, SourceCounters
    from aeseg_edge.sources.base import Frame

_log = logging.getLogger(__name__)

DEFAULT_PORT = 8080
WATCHED = frozenset({"latents", "margin", "distance"})
"""What the loop should ask the segmenter for while somebody has the page open."""

_MOST_CONNECTIONS = 64
_STARTING = 10.0
_STOPPING = 5.0
_WANTED = "Write http://127.0.0.1:8080, or http://0.0.0.0:8080 for other machines too."


@dataclass(frozen=True)
class Live:
    """What the page is given besides results.

    Attributes:
        editor: A handle on the running segmenter's classes; None: they are only shown.
        token: What the page asks for; made where it is needed and None.
        announce: Called once with the address to open, the token in it.
    """

    editor: LiveClasses | None = None
    token: str | None = None
    announce: Callable[[str], None] | None = None


class WebSink(Sink):
    """Serves the newest result of each source to any number of browsers.

    ``write`` stores a reference and goes on. Everything else happens on the server's thread and
    on one that encodes, and only while somebody looks.

    Args:
        uri: ``http://HOST:PORT``, with ``?fps=``, ``?width=`` and ``?quality=`` for what is
            sent. Port 0 takes any free one.
        live: What the page is given besides results.

    Raises:
        SinkError: If the address is wrong, or taken.
        MissingDependency: If Starlette or uvicorn is not installed.
        UsageError: If the token is too short.
    """

    def __init__(self, uri: str, live: Live | None = None) -> None:
        live = live or Live()
        self._editor = live.editor
        host, port, options = _parse(uri)
        _require()
        token = live.token
        if token is None and not is_loopback(host):
            token = new_token()
        self._socket = _bind(host, port)
        try:
            self.port = int(self._socket.getsockname()[1])
            self._guard = Guard(token, port=self.port)
            shown = f"[{host}]" if ":" in host else host
            self.name = f"http://{shown}:{self.port}"
            self.address = f"{self.name}/" + (f"#token={token}" if token else "")
            current = None if live.editor is None else live.editor.current
            self._hubs = Hubs(**options, codebook=current)
            self._failure: BaseException | None = None
            self._counters: Callable[[], LoopCounters] | None = None
            self._started = threading.Event()
            self._server = self._build(live)
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="aeseg-web", daemon=True)
        self._thread.start()
        if not self._started.wait(_STARTING) or self._failure is not None:
            self.close()
            raise SinkError(f"{self.name} does not start: {self._failure}", fix=_WANTED)
        if live.announce is not None:
            live.announce(self.address)

    def watch(self, counters: Callable[[], LoopCounters]) -> None:
        """Show the loop's counters."""
        self._counters = counters

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override] # changes with the viewers
        """What the segmenter should give besides labels: nothing while nobody looks."""
        return WATCHED if self._hubs.viewers else frozenset()

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Take one result; never waits for a browser. SinkError if the server has stopped."""
        if self._failure is not None:
            raise SinkError(f"{self.name} has stopped: {self._failure}", fix="Run it again.")
        self._hubs.put(frame, result)

    def close(self) -> None:
        """Stop the server; viewers are told that the run has ended. Closing twice is fine."""
        self._hubs.close()
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_STOPPING)
            if self._thread.is_alive():
                self._server.force_exit = True
                self._thread.join(_STOPPING)
        if self._editor is not None:
            self._editor.keep_draft()
        self._socket.close()

    def figures(self) -> Mapping[str, object]:
        """Give the loop's counters by name: numbers, texts, or one level of mappings of numbers.

        Called from the server's thread; a page with other figures is a subclass.
        """
        if self._counters is None:
            return {}
        now = self._counters()
        by_source: dict[str, Callable[[SourceCounters], float]] = {
            "frames_in_total": lambda each: each.frames_in,
            "segmented_total": lambda each: each.segmented,
            "dropped_total": lambda each: sum(each.dropped.values()),
            "reconnects_total": lambda each: each.reconnects,
            "stalls_total": lambda each: each.stalls,
        }
        figures: dict[str, object] = {
            name: {without_password(each.name): count(each) for each in now.sources}
            for name, count in by_source.items()
        }
        figures["sink_dropped_total"] = {
            without_password(each.name): each.dropped for each in now.sinks
        }
        return figures

    def _build(self, live: Live) -> Any:
        import uvicorn

        from aeseg_edge.page.app import build_app

        config = uvicorn.Config(
            build_app(self._hubs, self._guard, live.editor, self.figures),
            loop="asyncio",
            http=bounded_protocol(_MOST_CONNECTIONS),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
        )
        return uvicorn.Server(config)

    def _serve(self) -> None:
        """Run the server; the thread's whole life."""

        async def run() -> None:
            self._hubs.attach()
            asyncio.get_running_loop().call_soon(self._started.set)
            await self._server.serve(sockets=[self._socket])

        try:
            asyncio.run(run())
        except BaseException as error:  # whatever ends this thread is told to the loop's
            self._failure = error
            _log.debug("the live page's server stopped", exc_info=True)
        finally:
            self._started.set()


def open_page(asked: Asked) -> Sink:
    """Open the live page; see ``open_sink``."""
    assert asked.live is None or isinstance(asked.live, Live)
    return WebSink(asked.uri, asked.live)


def _parse(uri: str) -> tuple[str, int, dict[str, Any]]:
    """Read host, port and options of an address."""
    try:
        parts = urlsplit(uri)
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as error:
        raise SinkError(f"{uri} is not an address ({error})", fix=_WANTED) from error
    if (
        parts.scheme != "http"
        or not parts.hostname
        or parts.path not in ("", "/")
        or parts.username
    ):
        raise SinkError(f"{uri} is not the address of a page", fix=_WANTED)
    options: dict[str, Any] = {}
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        limits = {"fps": (1, 120), "width": (64, 4096), "quality": (1, 100)}.get(key)
        if limits is None:
            raise SinkError(f"{uri} has the unknown option {key}", fix="Use ?fps=15&width=640.")
        if not text.isdecimal() or not limits[0] <= int(text) <= limits[1]:
            raise SinkError(f"{key}={text} is out of range", fix=f"Use {limits[0]} to {limits[1]}.")
        options[key] = int(text)
    return parts.hostname, port, options


def _bind(host: str, port: int) -> socket.socket:
    """Take the address now, so that a used one is an error at the start."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        # Of a..b Python says that its encoding failed.
        why = error.strerror if isinstance(error, OSError) else "it is not a host's name"
        raise SinkError(f"the host {host} is unknown ({why})", fix=_WANTED) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise SinkError(
            f"port {port} of {host} cannot be taken: {error.strerror}",
            fix="Another program may use it: choose another port, or 0 for any free one.",
        ) from error
    return bound


def _require() -> None:
    for package in ("starlette", "uvicorn"):
        require(package, for_="the live page")
