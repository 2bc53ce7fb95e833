"""Device memory, streams and events: the only file that imports pycuda.

Rules that pycuda does not keep by itself and that are kept here: the primary context of the
device (the one TensorRT's own library uses), never pycuda.autoinit; the context is pushed
for each public call and popped after it, so any thread may call; and it is detached by hand,
because pycuda's garbage collection would release it by the wrong function.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import EngineError
from aeseg_edge.support.require import install, require, whole

_log = logging.getLogger(__name__)


def load_driver() -> Any:
    """Import pycuda.driver and initialise CUDA.

    MissingDependency without pycuda or CUDA's driver library; EngineError where CUDA does not
    start: no GPU, or no access to it.
    """
    driver = require(
        "pycuda.driver",
        fix=f"Install it with nvcc on PATH: PATH=/usr/local/cuda/bin:$PATH {install('tensorrt')}.",
    )
    whole(driver, "init", "Error", "Device")
    try:
        driver.init()
    except driver.Error as error:
        raise EngineError(
            f"CUDA does not start ({error})",
            fix="Check that a GPU is there and that this user may use it: aeseg doctor.",
        ) from error
    return driver


@dataclass(frozen=True)
class DeviceInfo:
    """What an engine depends on: such as "Orin", "8.7", and its streaming multiprocessors."""

    name: str
    compute_capability: str
    multiprocessors: int


@dataclass(frozen=True)
class Buffer:
    """Bytes on the device: where, as TensorRT wants it, how many, and pycuda's object for them."""

    address: int
    nbytes: int
    allocation: Any


class Device:
    """One GPU (by CUDA's number) through its primary context, and everything made on it.

    Every method but `current` and `close` is to be called inside `with device.current(...):`.
    pycuda's errors leave `current` as EngineError.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver = load_driver()
        try:
            device = self._driver.Device(index)
            self._context: Any = device.retain_primary_context()
        except self._driver.Error as error:
            raise EngineError(
                f"CUDA device {index} cannot be used ({error})",
                fix="Check that a GPU is there and that this user may use it: aeseg doctor.",
            ) from error
        self._streams: list[Any] = []
        self._buffers: list[Buffer] = []
        self._pinned: list[NDArray[Any]] = []
        major, minor = device.compute_capability()
        self.info = DeviceInfo(
            name=device.name(),
            compute_capability=f"{major}.{minor}",
            multiprocessors=int(
                device.get_attribute(self._driver.device_attribute.MULTIPROCESSOR_COUNT)
            ),
        )

    @property
    def pycuda_version(self) -> str:
        """Such as "2026.1"."""
        import pycuda

        return str(pycuda.VERSION_TEXT)

    @property
    def cuda_version(self) -> str:
        """What the driver supports, such as "12.6"."""
        number = int(self._driver.get_driver_version())
        return f"{number // 1000}.{number % 1000 // 10}"

    @contextlib.contextmanager
    def current(self, doing: str) -> Iterator[None]:
        """Make the context current in this thread for a stretch of code.

        EngineError ("the GPU failed while {doing}") where a CUDA call inside failed.
        """
        try:
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()
        except self._driver.Error as error:
            raise EngineError(
                f"the GPU failed while {doing} ({error})",
                fix="Close this segmenter and open the bundle again; if it stays, see dmesg.",
            ) from error

    def memory(self) -> tuple[int, int]:
        """Free and total device memory in bytes; on a Jetson it is the system's memory."""
        free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def stream(self) -> Any:
        """A stream of its own; work queued on it runs in order."""
        stream = self._driver.Stream()
        self._streams.append(stream)
        return stream

    def event(self, *, blocking: bool = False) -> Any:
        """An event that can be waited for and whose time can be asked.

        A `blocking` wait sleeps instead of spinning: an embedded CPU has capture and delivery
        to do.
        """
        return self._driver.Event(self._driver.event_flags.BLOCKING_SYNC if blocking else 0)

    def allocate(self, nbytes: int) -> Buffer:
        """Device memory, set to zero: latents may be read before any were written."""
        allocation = self._driver.mem_alloc(nbytes)
        buffer = Buffer(int(allocation), nbytes, allocation)
        self._buffers.append(buffer)
        self._driver.memset_d8(buffer.address, 0, nbytes)
        return buffer

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Page-locked host memory, which the device copies from and to by itself."""
        array: NDArray[Any] = self._driver.pagelocked_empty(shape, np.dtype(dtype))
        self._pinned.append(array)
        return array

    def copy_in(self, target: Buffer, source: NDArray[Any], stream: Any) -> None:
        """Queue a copy from pinned memory; `source` must stay as it is until it is done."""
        self._driver.memcpy_htod_async(target.address, source, stream)

    def copy_out(self, target: NDArray[Any], source: Buffer, stream: Any) -> None:
        """Queue a copy to pinned memory; `target` is not to be read until it is done."""
        self._driver.memcpy_dtoh_async(target, source.address, stream)

    def drain(self) -> None:
        """Wait for everything queued. A device that failed is not waited for."""
        for stream in self._streams:
            self._attempt(stream.synchronize)

    def release(self) -> None:
        """Give back all memory and the streams. Nothing may be queued, nor used afterwards."""
        for buffer in self._buffers:
            self._attempt(buffer.allocation.free)
        for array in self._pinned:
            self._attempt(array.base.free)  # type: ignore[union-attr]
        self._buffers.clear()
        self._pinned.clear()
        self._streams.clear()

    def close(self) -> None:
        """Let the context go; what was made on it must have been released before.

        Any thread may do it. pycuda gives a primary context back only if it is current, or
        on the thread that retained it, and it leaves the context on CUDA's own stack, since
        cuDevicePrimaryCtxRelease "will not pop the context from the stack in any
        circumstances" (CUDA driver API reference).
        """
        context, self._context = self._context, None
        if context is None:
            return
        try:
            context.push()
            context.detach()
        except self._driver.Error as error:
            _log.debug("while closing: %s", error)
        else:
            left = ctypes.c_void_p()
            ctypes.CDLL("libcuda.so.1").cuCtxPopCurrent_v2(ctypes.byref(left))

    def _attempt(self, step: Callable[[], object]) -> None:
        """Do one step of closing; on a device that failed each may fail, and the rest goes on."""
        try:
            step()
        except self._driver.Error as error:
            _log.debug("while closing: %s", error)
