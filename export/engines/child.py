"""Building an engine in a child process.

The builder may be killed for want of memory or crash in native code; in a child that is an
error message and not the end of the caller. The two talk over files in a private folder and
over lines of JSON on the child's standard output. The child ends with its parent, however
the parent ends: it watches its standard input, which closes then.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.errors import AesegError, EngineError
from aeseg_edge.export.engines.compile import (
    BuildOptions,
    CompiledPlan,
    available_memory,
    check_memory,
    compile_plan,
)
from aeseg_edge.export.engines.log import Kernel
from aeseg_edge.support.progress import Progress

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    f"from {__name__} import serve; serve(sys.argv[2])"
)
_STDERR_KEPT = 2000


def build_engine(
    graph: bytes,
    spec: GraphSpec,
    clusters: int,
    options: BuildOptions | None = None,
    *,
    progress: Progress | None = None,
    timing_cache: bytes = b"",
) -> tuple[CompiledPlan, bytes]:
    """Build an engine in a child process: as `compile_plan`, whose arguments these are, and safely.

    Progress is told on this thread. A KeyboardInterrupt kills the child and leaves nothing.
    EngineError also where there is too little memory, or the child was killed or crashed.
    """
    options = options or BuildOptions()
    check_memory(options, available_memory())
    with tempfile.TemporaryDirectory(prefix="aeseg-engine-") as name:
        folder = Path(name)
        try:
            (folder / "graph.onnx").write_bytes(graph)
            (folder / "timing").write_bytes(timing_cache)
            request = {"spec": asdict(spec), "clusters": clusters, "options": asdict(options)}
            (folder / "request.json").write_text(json.dumps(request))
        except OSError as error:
            raise EngineError(
                f"{folder} cannot be written ({error.strerror})",
                fix="Free some space in the folder for temporary files.",
            ) from error
        result = _run([sys.executable, "-c", _START, json.dumps(sys.path), name], folder, progress)
        kernels = tuple(_kernel(item) for item in result["kernels"])
        plan = (folder / "plan").read_bytes()
        timing = (folder / "timing").read_bytes()
    compiled = CompiledPlan(plan, kernels, tuple(result["convolutions"]), result["version"])
    return compiled, timing


def _run(command: Sequence[str], folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Run the child to its end and return its last word."""
    last: dict[str, Any] = {}
    with (folder / "stderr").open("w+b") as stderr:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            # Ctrl-C in a terminal goes to a whole group: the child must not see it, or it
            # would print a traceback of its own.
            start_new_session=True,
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                message: dict[str, Any] = json.loads(line)
                if "fraction" not in message:
                    last = message
                elif progress is not None:
                    progress(message["stage"], message["fraction"])
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        stderr.seek(0)
        said = " ".join(stderr.read().decode(errors="replace").split())[-_STDERR_KEPT:]
    if "problem" in last:
        raise _error_kind(last["kind"])(last["problem"], fix=last["fix"])
    if code == -signal.SIGKILL:
        raise EngineError(
            "the build was killed, most likely because memory ran out",
            fix="Close other programs, add swap, or give a smaller --workspace (MiB).",
        )
    if code != 0 or "version" not in last:
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise EngineError(
            f"the build ended with {cause}: {said or 'it said nothing'}",
            fix="Try again; if it stays, report it with `aeseg doctor`.",
        )
    return last


def _kernel(item: dict[str, Any]) -> Kernel:
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in item.items()
    }
    return Kernel(**values)


def _error_kind(name: str) -> type[AesegError]:
    kind = getattr(importlib.import_module("aeseg_edge.errors"), name, EngineError)
    assert issubclass(kind, AesegError)
    return kind


def serve(folder_name: str) -> None:
    """The child: build what the folder asks for, and say how it went. Ends the process.

    The folder has `request.json`, `graph.onnx` and `timing`; `plan` and `timing` are written to it.
    """
    ending = threading.Lock()
    threading.Thread(target=_end_with_parent, args=(folder_name, ending), daemon=True).start()
    # Libraries print to standard output; it is ours to talk on.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            channel.write(json.dumps(message) + "\n")

    folder = Path(folder_name)
    try:
        request = json.loads((folder / "request.json").read_text())
        compiled, timing = compile_plan(
            (folder / "graph.onnx").read_bytes(),
            GraphSpec(**request["spec"]),
            request["clusters"],
            BuildOptions(**request["options"]),
            progress=lambda stage, fraction: say({"stage": stage, "fraction": fraction}),
            timing_cache=(folder / "timing").read_bytes(),
        )
        (folder / "plan").write_bytes(compiled.plan)
        (folder / "timing").write_bytes(timing)
    except AesegError as error:
        kind = type(error).__name__
        say({"kind": kind, "problem": error.problem, "fix": error.fix})
    except OSError as error:
        fix = "Free some space in the folder for temporary files."
        say({"kind": "EngineError", "problem": f"cannot write the engine ({error})", "fix": fix})
    else:
        kernels = [asdict(kernel) for kernel in compiled.kernels]
        say(
            {
                "version": compiled.version,
                "convolutions": compiled.convolutions,
                "kernels": kernels,
            }
        )
    with contextlib.suppress(BrokenPipeError):
        channel.flush()
    # Where the parent is gone, the folder is being removed: that thread ends the process.
    ending.acquire()
    # TensorRT's own tear-down has nothing left to do, and may not crash after the last word.
    os._exit(0)


def _end_with_parent(folder_name: str, ending: threading.Lock) -> None:
    sys.stdin.buffer.read()
    ending.acquire()
    # A parent that was killed could not tidy up.
    shutil.rmtree(folder_name, ignore_errors=True)
    os._exit(1)
