"""The frames of a source: each of them, or the newest for whoever is slower than a camera."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING

from aeseg_edge.support.threads import Lane, Mailbox, Worker

if TYPE_CHECKING:
    from aeseg_edge.sources.base import Frame, Source

_log = logging.getLogger(__name__)

_LOOK = 0.5
"""Seconds between looks at a source that gives nothing: Ctrl-C is served there."""

_PATIENCE = 2.0
"""Seconds that a source has to end in, when nobody takes its frames any more."""


def every_frame(source: Source) -> Generator[Frame]:
    """Give each frame in order, and close the source in the end."""
    try:
        yield from source
    finally:
        source.close()


def newest_frames(source: Source) -> Generator[Frame]:
    """Give the newest frame each time one is asked for; those that a newer one overtook are lost.

    The source is read on a thread of its own, which closes it in the end: a camera, its driver or
    a network keeps frames that nobody reads, and gives ever older ones to a slow reader. What the
    source raises is raised here, behind its last frame.
    """
    box: Mailbox[Frame] = Mailbox([Lane()])
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for frame in every_frame(source):
                if not box.put(frame):
                    return
        except BaseException as error:
            failed.append(error)
        finally:
            box.close()

    worker = Worker(read, f"capture {source.name}")
    worker.start()
    try:
        while True:
            # Asked before looking: what is put in between is still there.
            ended = box.closed
            taken = box.take(_LOOK)
            if taken is not None:
                yield taken[1]
            elif ended:
                break
        if failed:
            raise failed[0]
    finally:
        box.close(discard=True)
        if not worker.ended:
            with suppress(Exception):  # it is being given up: nobody is told how that went
                source.interrupt()
            if not worker.wait(_PATIENCE):
                _log.warning("%s: the driver hangs; its thread is left behind", source.name)
