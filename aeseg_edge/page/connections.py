"""Connections that ask nothing do not keep others out."""

from __future__ import annotations

from typing import Any


def bounded_protocol(most: int) -> Any:
    """Make uvicorn's HTTP protocol for at most so many connections.

    uvicorn answers 503 to everybody from a number of open connections on, also where they have
    never sent a byte. Here a new one takes the place of the one that has been idle longest;
    those with a request under way stay.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        idle_since = 0.0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.idle_since = self.loop.time()
            if len(self.connections) < most:
                return
            others: list[Any] = [each for each in self.connections if each is not self]
            idle = [each for each in others if _is_idle(each)]
            if idle:
                longest = min(idle, key=lambda each: each.idle_since)
                # At once: it is told that it is closed only when the loop comes round.
                self.connections.discard(longest)
                longest.transport.abort()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.idle_since = self.loop.time()

    return Bounded


def _is_idle(connection: Any) -> bool:
    return connection.cycle is None or bool(connection.cycle.response_complete)
