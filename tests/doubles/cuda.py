"""A stand-in for pycuda.driver over a device that is not there.

It keeps what makes a real GPU unforgiving: device memory is other bytes than the host's,
fresh memory holds garbage, work is queued and runs later than it was asked for, every call
needs a current context on its own thread, and a failure stays. Two schedules bracket what a
real device may do: "lazy" runs a stream only as far as somebody waits for it, "greedy" runs
it as far as its events allow.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

GARBAGE = 0xFF
"""What fresh memory holds: as float32, not a number."""


class Error(Exception):
    """pycuda.driver.Error: not a RuntimeError."""


class Gpu:
    """The device and the module `pycuda.driver` in one; see `install`.

    Args:
        schedule: "lazy" or "greedy".

    Attributes:
        memory: Live device allocations by address.
        pinned: Live pinned host allocations.
        retained: How often the primary context is held.
        calls: Names of the calls made, in order.
        fail_at: (call, n): the nth such call from now fails, and everything after it.
    """

    Error = Error

    class device_attribute:
        MULTIPROCESSOR_COUNT = "multiprocessors"

    class event_flags:
        BLOCKING_SYNC = 1

    def __init__(self, schedule: str = "lazy") -> None:
        self.schedule = schedule
        self.memory: dict[int, bytearray] = {}
        self.pinned: set[int] = set()
        self.retained = 0
        self.calls: list[str] = []
        self.fail_at: tuple[str, int] | None = None
        self.failed = False
        self.streams: dict[int, Stream] = {}
        self._next_address = itertools.count(0x7F0000000000, 1 << 24)
        self._next_handle = itertools.count(1)
        self._stacks = threading.local()
        self._lock = threading.RLock()
        self.Device = lambda index: Device(self, index)
        self.Stream = lambda: Stream(self, next(self._next_handle))
        self.Event = lambda flags=0: Event(self)

    # Context -----------------------------------------------------------------------------------

    @property
    def stack(self) -> list[Context]:
        """This thread's contexts."""
        if not hasattr(self._stacks, "contexts"):
            self._stacks.contexts = []
        contexts: list[Context] = self._stacks.contexts
        return contexts

    def call(self, name: str, *, context: bool = True) -> None:
        """Every call passes here: it is counted, may fail, and needs a current context."""
        self.calls.append(name)
        if self.fail_at is not None and name == self.fail_at[0]:
            self.fail_at = (name, self.fail_at[1] - 1)
            self.failed = self.failed or self.fail_at[1] < 0
        if self.failed:
            raise Error(f"{name} failed: an illegal memory access was encountered")
        if context and not self.stack:
            raise Error(f"{name} failed: invalid device context - no currently active context?")

    # pycuda.driver -----------------------------------------------------------------------------

    def init(self) -> None:
        self.call("init", context=False)

    def get_driver_version(self) -> int:
        return 12060

    def mem_get_info(self) -> tuple[int, int]:
        self.call("mem_get_info")
        used = sum(map(len, self.memory.values()))
        return (1 << 30) - used, 1 << 30

    def mem_alloc(self, nbytes: int) -> Allocation:
        self.call("mem_alloc")
        address = next(self._next_address)
        self.memory[address] = bytearray([GARBAGE]) * nbytes
        return Allocation(self, address)

    def memset_d8(self, address: int, value: int, nbytes: int) -> None:
        self.call("memset_d8")
        self.view(address, nbytes)[:] = bytes([value]) * nbytes

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        self.call("pagelocked_empty")
        return Pinned(self, shape, np.dtype(dtype)).array()

    def memcpy_htod_async(self, address: int, source: NDArray[Any], stream: Stream) -> None:
        self.call("memcpy_htod_async")
        self._must_be_pinned(source)
        # The bytes are read when the copy runs: whoever changes them before is found out.
        stream.queue(lambda: self.write(address, source.tobytes()))

    def memcpy_dtoh_async(self, target: NDArray[Any], address: int, stream: Stream) -> None:
        self.call("memcpy_dtoh_async")
        self._must_be_pinned(target)

        def copy() -> None:
            data = np.frombuffer(self.view(address, target.nbytes), target.dtype)
            target[...] = data.reshape(target.shape)

        stream.queue(copy)

    def _must_be_pinned(self, array: NDArray[Any]) -> None:
        owner = array
        while isinstance(owner, np.ndarray):
            owner = owner.base
        if id(owner) not in self.pinned:
            raise Error("an asynchronous copy needs pinned memory")

    # Memory ------------------------------------------------------------------------------------

    def view(self, address: int, nbytes: int) -> memoryview:
        """Bytes at an address; a freed or foreign address is an error, as on a device."""
        for start, data in self.memory.items():
            if start <= address and address + nbytes <= start + len(data):
                offset = address - start
                return memoryview(data)[offset : offset + nbytes]
        self.failed = True
        raise Error("an illegal memory access was encountered")

    def write(self, address: int, data: bytes) -> None:
        """Put bytes at an address."""
        self.view(address, len(data))[:] = data

    def leaks(self) -> dict[str, int]:
        """What was not given back."""
        found = {
            "device memory": len(self.memory),
            "pinned memory": len(self.pinned),
            "contexts": self.retained,
            "pushed contexts": len(self.stack),
            "queued work": sum(len(stream.work) for stream in self.streams.values()),
        }
        return {name: count for name, count in found.items() if count}


class Device:
    def __init__(self, gpu: Gpu, index: int) -> None:
        gpu.call("Device", context=False)
        if index != 0:
            raise Error("cuDeviceGet failed: invalid device ordinal")
        self.gpu = gpu

    def name(self) -> str:
        return "Double"

    def compute_capability(self) -> tuple[int, int]:
        return 8, 7

    def get_attribute(self, attribute: str) -> int:
        return {"multiprocessors": 8}[attribute]

    def retain_primary_context(self) -> Context:
        self.gpu.call("retain_primary_context", context=False)
        self.gpu.retained += 1
        return Context(self.gpu)


class Context:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.valid = True

    def push(self) -> None:
        self.gpu.calls.append("push")
        if not self.valid:
            raise Error("cuCtxPushCurrent failed: invalid device context")
        self.gpu.stack.append(self)

    def pop(self) -> None:
        self.gpu.calls.append("pop")
        if not self.gpu.stack:
            raise Error("cuCtxPopCurrent failed: invalid device context")
        self.gpu.stack.pop()

    def detach(self) -> None:
        self.gpu.calls.append("detach")
        if not self.valid:
            raise Error("context::detach failed: invalid device context")
        self.valid = False
        # As pycuda does with a primary context: it gives it back only where it is current (or
        # on the thread that retained it), and never takes it from CUDA's own stack.
        if self.gpu.stack and self.gpu.stack[-1] is self:
            self.gpu.retained -= 1


class Allocation:
    def __init__(self, gpu: Gpu, address: int) -> None:
        self.gpu = gpu
        self.address = address

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.gpu.call("mem_free")
        del self.gpu.memory[self.address]


class Pinned:
    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.gpu = gpu
        self.data = np.full(int(np.prod(shape)) * dtype.itemsize, GARBAGE, np.uint8)
        self.__array_interface__ = {
            "data": (self.data.ctypes.data, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }
        gpu.pinned.add(id(self))

    def array(self) -> NDArray[Any]:
        return np.asarray(self)

    def free(self) -> None:
        self.gpu.call("mem_free_host")
        self.gpu.pinned.remove(id(self))


class Stream:
    def __init__(self, gpu: Gpu, handle: int) -> None:
        gpu.call("Stream")
        self.gpu = gpu
        self.handle = handle
        self.work: deque[Record | Callable[[], None]] = deque()
        gpu.streams[handle] = self

    def queue(self, work: Record | Callable[[], None]) -> None:
        self.work.append(work)

    def run(self, until: Record | None = None) -> None:
        """Do what is queued, in order; as far as `until`, or all of it where greedy."""
        with self.gpu._lock:
            while self.work:
                if until is not None and until.done and self.gpu.schedule == "lazy":
                    return
                work = self.work.popleft()
                if isinstance(work, Record):
                    work.done = True
                else:
                    work()

    def wait_for_event(self, event: Event) -> None:
        self.gpu.call("wait_for_event")
        record = event.record_now
        if record is not None:
            # CUDA waits for the record that was the last one when it was told to wait.
            self.queue(lambda: record.stream.run(until=record))

    def synchronize(self) -> None:
        self.gpu.call("stream.synchronize")
        self.run()


class Record:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.done = False


class Event:
    def __init__(self, gpu: Gpu) -> None:
        gpu.call("Event")
        self.gpu = gpu
        self.record_now: Record | None = None

    def record(self, stream: Stream) -> None:
        self.gpu.call("event.record")
        self.record_now = Record(stream)
        stream.queue(self.record_now)

    def synchronize(self) -> None:
        self.gpu.call("event.synchronize")
        # An event that was never recorded counts as having happened.
        if self.record_now is not None:
            self.record_now.stream.run(until=self.record_now)

    def time_till(self, later: Event) -> float:
        self.gpu.call("time_till")
        for event in (self, later):
            if event.record_now is None or not event.record_now.done:
                raise Error("cuEventElapsedTime failed: not ready")
        return 1.0


class Library:
    """`ctypes.CDLL("libcuda.so.1")`: the one function that is called without pycuda."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def cuCtxPopCurrent_v2(self, _context: object) -> int:
        self.gpu.stack.pop()
        return 0


def install(gpu: Gpu, patch: pytest.MonkeyPatch) -> None:
    """Make `from pycuda import driver` and CUDA's library find `gpu`."""
    package = ModuleType("pycuda")
    package.__dict__.update(VERSION_TEXT="2026.1", driver=gpu, __path__=[])
    patch.setitem(sys.modules, "pycuda", package)
    patch.setitem(sys.modules, "pycuda.driver", gpu)
    load = ctypes.CDLL

    def find(name: str | None, *args: Any, **options: Any) -> Any:
        return Library(gpu) if name == "libcuda.so.1" else load(name, *args, **options)

    patch.setattr(ctypes, "CDLL", find)
