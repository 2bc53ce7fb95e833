"""A Unix socket that hands label maps to other processes.

A message is ``AES1``, three little-endian unsigned numbers of 4 bytes (M, rows, columns), M bytes
of JSON that describe the frame, and one byte a pixel: a class id, or 255 for void. docs/sinks.md
has the description's keys and a reader.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aeseg_edge.errors import SinkError
from aeseg_edge.sinks.base import Asked, Sink
from aeseg_edge.sinks.json import place_of
from aeseg_edge.sources.base import Frame
from aeseg_edge.support.files import write_error
from aeseg_edge.support.text import to_json
from aeseg_edge.support.threads import Lane, Mailbox

if TYPE_CHECKING:
    from aeseg_edge.segment.result import Segmentation

_log = logging.getLogger(__name__)

MAGIC = b"AES1"
HEADER = struct.Struct("<4sIII")
_MOST_READERS = 16


def pack(frame: Frame, result: Segmentation) -> bytes:
    """Write one message; see the module's text."""
    description = {
        "source": frame.source,
        "index": frame.index,
        **place_of(frame),
        "captured": frame.captured,
        "age_ms": None if result.frame_age is None else round(result.frame_age * 1e3, 3),
        "classes": {
            str(item.id): {"name": item.name, "color": list(item.color)} for item in result.classes
        },
    }
    text = to_json(description).encode()
    height, width = result.labels.shape
    labels = np.ascontiguousarray(result.labels).tobytes()
    return HEADER.pack(MAGIC, len(text), height, width) + text + labels


class UnixSink(Sink):
    """A server on a Unix socket; any number of readers up to 16, who come and go.

    A reader that is too slow gets the newest message when it is ready, and whole ones only;
    it slows nobody. A socket that a dead process left is replaced. Raises SinkError if the
    path is something else, is in use, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"unix:{path}"
        self._path = path
        self._lock = threading.Lock()
        self._readers: list[_Reader] = []
        self._closed = False
        _remove_dead(path)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._server.bind(str(path))
            self._server.listen(_MOST_READERS)
        except OSError as problem:
            self._server.close()
            if problem.errno is None:
                raise SinkError(
                    f"{path} is too long for a socket's name", fix="Choose a shorter path."
                ) from problem
            raise write_error(path, problem, error=SinkError) from problem
        self._inode = path.stat().st_ino
        self._accepting = threading.Thread(
            target=self._accept, name=f"accept {self.name}", daemon=True
        )
        self._accepting.start()

    def write(self, frame: Frame, result: Segmentation) -> None:
        """Leave the message for every reader; waits for none."""
        with self._lock:
            self._readers = [reader for reader in self._readers if reader.alive]
            readers = list(self._readers)
        if readers:
            message = pack(frame, result)
            for reader in readers:
                reader.box.put(message)

    def close(self) -> None:
        """Let readers have what they were promised, hang up, and remove the socket."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            readers = list(self._readers)
        # Closing a listening socket does not wake accept() up; shutting it down does.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for reader in readers:
            reader.box.close()
        for reader in readers:
            reader.end(1.0)
        # Somebody may have put another socket there meanwhile.
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError as problem:
                if not self._closed and problem.errno in (errno.EMFILE, errno.ENFILE):
                    _log.warning("%s: a reader is turned away: %s", self.name, problem)
                    threading.Event().wait(1.0)
                    continue
                return
            with self._lock:
                self._readers = [reader for reader in self._readers if reader.alive]
                if self._closed or len(self._readers) >= _MOST_READERS:
                    connection.close()
                    continue
                self._readers.append(_Reader(connection))


class _Reader:
    """One process at the other end, and the thread that writes to it."""

    def __init__(self, connection: socket.socket) -> None:
        self.box: Mailbox[bytes] = Mailbox([Lane()])
        self._connection = connection
        self._thread = threading.Thread(target=self._send, name="reader", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self, timeout: float) -> None:
        """Give it ``timeout`` seconds for the last message, and hang up."""
        self._thread.join(timeout)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self) -> None:
        with self._connection:
            while True:
                closed = self.box.closed
                taken = self.box.take(0.0 if closed else 1.0)
                if taken is None:
                    if closed:
                        return
                    continue
                try:
                    self._connection.sendall(taken[1])
                except OSError:
                    # It went away, which is its right.
                    return


def open_unix(asked: Asked) -> Sink:
    """Open ``unix:PATH``; see ``open_sink``."""
    return UnixSink(asked.path)


def _remove_dead(path: Path) -> None:
    """Remove a socket that nobody listens on; SinkError if the path is in use, or no socket."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as problem:
        raise write_error(path, problem, error=SinkError) from problem
    if not stat.S_ISSOCK(mode):
        raise SinkError(f"{path} is there and is no socket", fix="Choose another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(1.0)
        answer = knock.connect_ex(str(path))
    if answer != errno.ECONNREFUSED:
        raise SinkError(
            f"{path} is in use by another process", fix="End that process, or choose another path."
        )
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
