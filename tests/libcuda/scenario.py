"""The real backend with the real pycuda over our libcuda: run by test_pycuda.py as a child.

Usage: scenario.py LIBCUDA FRAMES. Prints one line of JSON: what went wrong, and what is left.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

COUNTS = (
    "device allocations",
    "pinned allocations",
    "retained contexts",
    "streams",
    "events",
    "contexts on this thread",
    "wrong detaches",
    "unsupported calls",
    "bad frees",
)


class LibCuda:
    """What the stand-in for TensorRT needs of a device, over the real library's calls."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._library.aeseg_bytes.restype = ctypes.c_void_p
        self._library.aeseg_bytes.argtypes = (ctypes.c_uint64, ctypes.c_size_t)
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._queued: list[Any] = []
        self.faults: list[str] = []
        self.streams = self

    def call(self, name: str) -> None:
        """TensorRT's calls need a current context as much as CUDA's do."""
        device = ctypes.c_int()
        if self._library.cuCtxGetDevice(ctypes.byref(device)):
            self.faults.append(f"{name} without a context")

    def __getitem__(self, handle: int) -> LibCuda.Stream:
        return LibCuda.Stream(self, handle)

    class Stream:
        """A CUDA stream by its handle."""

        def __init__(self, owner: LibCuda, handle: int) -> None:
            self.owner, self.handle = owner, handle

        def queue(self, work: Callable[[], None]) -> None:
            """Have `work` done when the stream gets to it (cuLaunchHostFunc)."""

            def run(_: object) -> None:
                try:
                    work()
                except Exception as error:
                    self.owner.faults.append(repr(error))

            function = self.owner._callback(run)
            self.owner._queued = [*self.owner._queued[-16:], function]
            failed = self.owner._library.cuLaunchHostFunc(
                ctypes.c_void_p(self.handle), function, None
            )
            if failed:
                self.owner.faults.append(f"cuLaunchHostFunc gives {failed}")

    def view(self, address: int, nbytes: int) -> bytes:
        """Bytes on the device."""
        return ctypes.string_at(self._at(address, nbytes), nbytes)

    def write(self, address: int, data: bytes) -> None:
        """Put bytes on the device."""
        ctypes.memmove(self._at(address, len(data)), data, len(data))

    def _at(self, address: int, nbytes: int) -> int:
        found: int | None = self._library.aeseg_bytes(address, nbytes)
        if not found:
            raise ValueError(f"{address:#x} is not on the device")
        return found

    def counts(self) -> dict[str, int]:
        """What is not zero of what the library counts."""
        numbers = (ctypes.c_int * len(COUNTS))()
        self._library.aeseg_counts(numbers)
        return {name: n for name, n in zip(COUNTS, numbers, strict=True) if n}


def drive(device: LibCuda, frames: int) -> dict[str, Any]:
    """Frames from two threads, then two ways of closing; everything is let go at the end."""
    from aeseg_edge.backends.onnxruntime import OnnxRuntimeBackend
    from aeseg_edge.backends.tensorrt import TensorRTBackend, engine_key
    from aeseg_edge.errors import BackendError
    from tests.doubles.graph import SPEC, codebook, deployed
    from tests.doubles.tensorrt import make_plan

    key = engine_key("ab" * 32, "fp16", SPEC, 32)
    graph = deployed()
    images = np.random.default_rng(1).integers(0, 256, (10, 32, 48, 3), np.uint8)
    reference = OnnxRuntimeBackend(graph, SPEC, codebook(), threads=1)
    wanted = [reference.collect(reference.submit(image)).labels for image in images]
    backend = TensorRTBackend(make_plan(graph, SPEC, 32), SPEC, 32, codebook())
    faults: list[str] = []
    turn = threading.Lock()

    def work(first: int) -> None:
        try:
            for number in range(first, frames, 2):
                ahead = number % 5 == 0
                chosen = [number % 10, (number + 3) % 10][: 2 if ahead else 1]
                with turn:
                    tickets = [backend.submit(images[i]) for i in chosen]
                    want = frozenset({"latents", "margin"} if ahead else ())
                    found = [backend.collect(ticket, want) for ticket in tickets]
                for index, outputs in zip(chosen, found, strict=True):
                    if not np.array_equal(outputs.labels, wanted[index]):
                        faults.append(f"frame {number}: labels differ")
                    if min(outputs.milliseconds.values()) < 0:
                        faults.append(f"frame {number}: {dict(outputs.milliseconds)}")
        except BaseException as error:
            faults.append(repr(error))
        if "contexts on this thread" in device.counts():
            faults.append("a context is left on a thread")

    before = backend.memory()
    threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        if backend.memory() != before:
            faults.append(f"device memory was {before}, is {backend.memory()}")
    except BackendError as error:
        faults.append(repr(error))
    held = device.counts()
    # Closed on another thread than the one that opened it ...
    closer = threading.Thread(target=backend.close)
    closer.start()
    closer.join()
    # ... and where it was opened, with frames under way.
    second = TensorRTBackend(make_plan(graph, SPEC, 32), SPEC, 32, codebook())
    for image in images[:2]:
        second.submit(image)
    second.close()
    gpu = [key.gpu, key.compute_capability, key.multiprocessors]
    return {"faults": faults, "held": held, "gpu": gpu}


def main() -> None:
    """Run the scenario and print what came of it."""
    # Before pycuda: the loader takes a library that is there under the same name.
    library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
    from tests.doubles.tensorrt import make_module

    device = LibCuda(library)
    sys.modules["tensorrt"] = make_module(device)  # type: ignore[arg-type]
    result = drive(device, int(sys.argv[2]))
    gc.collect()
    result["faults"] += device.faults
    print(json.dumps({**result, "left": device.counts()}))


if __name__ == "__main__":
    main()
