"""Where TensorRT engines are kept, and how a stored one is known to fit.

An engine belongs to one ONNX graph, one GPU and one TensorRT version. `EngineKey`
holds everything it depends on; `EngineCache` keeps plans (raw, so that trtexec can
load them) beside a small JSON sidecar that is checked before TensorRT is shown a
single byte. Nothing here imports TensorRT.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from aeseg_edge.errors import EngineError, EngineNotBuilt, UsageError
from aeseg_edge.support.files import write_bytes

_log = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Version of the sidecar and of what the builder asks of TensorRT."""

OPTIMIZATION_LEVEL = 3
"""TensorRT's own default, written down because an engine depends on it."""

BUILDER_OPTIONS = f"strongly-typed tf32=off optimization={OPTIMIZATION_LEVEL}"
"""What every engine of this format version is built with. The workspace limit is not among
them: it bounds the search for kernels and changes no result."""

_SIDECAR_LIMIT = 1 << 20
"""A sidecar is about 2 kB; more than 1 MiB is not one of ours."""


def padded_clusters(clusters: int) -> int:
    """Clusters an engine is built for: the smallest of 32, 64, 128, ... not below `clusters`.

    TensorRT is given this one static size, and smaller codebooks are padded up to it, so that a
    codebook may grow. UsageError where `clusters` is below 1.
    """
    if clusters < 1:
        raise UsageError(f"a codebook of {clusters} clusters is empty", fix="Give at least one.")
    return max(32, 1 << (clusters - 1).bit_length())


@dataclass(frozen=True)
class EngineKey:
    """Everything a TensorRT engine depends on.

    Attributes:
        onnx_sha256: SHA-256 of the ONNX graph, 64 hexadecimal digits.
        precision: "fp32", "fp16" or "int8"; what the graph is, never a builder flag.
        height: Rows of the input image.
        width: Columns of the input image.
        clusters: K_max, the codebook size the engine is built for.
        tensorrt: Full version of TensorRT, such as "10.3.0".
        gpu: Name of the GPU, such as "Orin".
        compute_capability: "8.7" for Orin.
        multiprocessors: Streaming multiprocessors of the GPU; the same name is sold with
            different numbers of them.
        options: Builder options as text; `BUILDER_OPTIONS` for what this version builds.
        format_version: Version of this project's own engine format.
    """

    onnx_sha256: str
    precision: str
    height: int
    width: int
    clusters: int
    tensorrt: str
    gpu: str
    compute_capability: str
    multiprocessors: int
    options: str = BUILDER_OPTIONS
    format_version: int = FORMAT_VERSION

    @property
    def architecture(self) -> str:
        """Compute capability the way NVIDIA's tools write it, such as "sm_87"."""
        return "sm_" + self.compute_capability.replace(".", "")

    @property
    def family(self) -> str:
        """File name prefix shared by the engines of one graph at one size, on any device."""
        return (
            f"{self.onnx_sha256[:8]}-{self.precision}-{self.width}x{self.height}-k{self.clusters}"
        )

    @property
    def name(self) -> str:
        """File name without suffix. Short enough to read; the sidecar holds the whole key."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.family}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def difference(self, other: EngineKey) -> str:
        """Say which parts of a stored key differ from this one; "" where they are equal.

        Such as "made for TensorRT 10.3.0 and sm_87, this is TensorRT 10.16.2 and sm_87".
        """
        differing = [
            f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)
        ]
        if not differing:
            return ""
        # Version and architecture are always told together: either alone reads as if
        # the other were irrelevant to whether the engine can be used.
        if "tensorrt" in differing or "compute_capability" in differing:
            differing = ["tensorrt", "compute_capability"] + [
                name for name in differing if name not in {"tensorrt", "compute_capability"}
            ]
        there = " and ".join(_DESCRIBE[name](other) for name in differing)
        here = " and ".join(_DESCRIBE[name](self) for name in differing)
        return f"made for {there}, this is {here}"

    @classmethod
    def from_json(cls, value: object) -> EngineKey:
        """Read a key back from a sidecar; ValueError for a missing, unknown or wrong field."""
        if not isinstance(value, dict):
            raise ValueError("the key is not an object")
        expected = {f.name: int if f.type == "int" else str for f in fields(cls)}
        if set(value) != set(expected):
            raise ValueError("the key's fields are not those of an engine key")
        for name, kind in expected.items():
            if type(value[name]) is not kind:
                raise ValueError(f"{name} is not of type {kind.__name__}")
        return cls(**value)


_DESCRIBE: Mapping[str, Callable[[EngineKey], str]] = {
    "onnx_sha256": lambda key: f"graph {key.onnx_sha256[:12]}",
    "precision": lambda key: key.precision,
    "height": lambda key: f"height {key.height}",
    "width": lambda key: f"width {key.width}",
    "clusters": lambda key: f"{key.clusters} clusters",
    "tensorrt": lambda key: f"TensorRT {key.tensorrt}",
    "gpu": lambda key: f"GPU {key.gpu!r}",
    "compute_capability": lambda key: key.architecture,
    "multiprocessors": lambda key: f"{key.multiprocessors} multiprocessors",
    "options": lambda key: f"builder options {key.options or 'none'!r}",
    "format_version": lambda key: f"engine format {key.format_version}",
}


def default_cache_dir() -> Path:
    """The engine folder of the XDG base directory specification 0.8 (freedesktop.org).

    `$XDG_CACHE_HOME/aeseg_edge`, and `~/.cache/aeseg_edge` where that variable is unset or,
    as the specification demands, not absolute. (The only variable this project reads: it is
    that standard's interface.) EngineError where there is no home folder.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "aeseg_edge"
    try:
        return Path.home() / ".cache" / "aeseg_edge"
    except RuntimeError as error:
        raise EngineError(
            "there is no home folder to keep engines in", fix="Name a folder with --cache-dir."
        ) from error


class EngineCache:
    """A folder of engines, each a `NAME.plan` beside its `NAME.json`.

    Every file is whole or as it was before (aeseg_edge.io.atomic); the plan is written
    first, its sidecar last: a plan that no sidecar vouches for does not count as stored.

    Args:
        folder: Where to keep engines; `default_cache_dir()` if none is given. It is made
            when something is first stored.

    Example:
        >>>         >>> key = EngineKey("a" * 64, "fp16", 360, 480, 32, "10.3.0", "Orin", "8.7", 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = EngineCache(folder)
        ...     with cache.locked(key):
        ...         path = cache.store(key, b"plan")
        ...     cache.load(key)
        b'plan'
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_cache_dir()

    def path(self, key: EngineKey) -> Path:
        """Where the plan of this key is or would be."""
        return self.folder / f"{key.name}.plan"

    def load(self, key: EngineKey, *, command: str = "aeseg build") -> bytes:
        """Read the plan of this key, verified against its sidecar.

        `command` is what a person types to build it: the fix of EngineNotBuilt, which says whether
        there is none, or a damaged one (it stays until a build replaces it) or one made for
        something else. EngineError where the folder cannot be read.
        """
        path = self.path(key)
        fix = f"Build it with: {command}."
        try:
            sidecar = _read_limited(path.with_suffix(".json"))
            plan = path.read_bytes()
        except FileNotFoundError:
            raise EngineNotBuilt(self._why_missing(key), fix=fix) from None
        except OSError as error:
            raise _cannot("read", path, error) from error
        fault = _fault(key, sidecar, plan)
        if fault:
            raise EngineNotBuilt(f"stored engine {path} is not usable: {fault}", fix=fix)
        return plan

    def notes(self, key: EngineKey) -> dict[str, Any]:
        """What was recorded when the engine of this key was stored; {} where there is none."""
        try:
            sidecar = json.loads(_read_limited(self.path(key).with_suffix(".json")))
        except (OSError, ValueError):
            return {}
        notes = sidecar.get("notes") if isinstance(sidecar, dict) else None
        return notes if isinstance(notes, dict) else {}

    def store(self, key: EngineKey, plan: bytes, *, notes: Mapping[str, Any] | None = None) -> Path:
        """Write a plan and its sidecar (with `notes`, JSON types). Call it inside `locked(key)`.

        EngineError where the plan is empty, or the folder is read-only, full or cannot be made;
        what was stored before is still there, whole.
        """
        path = self.path(key)
        if not plan:
            raise EngineError("the engine to store is empty", fix="Build it again with --force.")
        sidecar = {
            "key": asdict(key),
            "sha256": hashlib.sha256(plan).hexdigest(),
            "size": len(plan),
            "notes": dict(notes or {}),
        }
        self._make_folder()
        # An older sidecar must not vouch for a new plan if the power goes between the two
        # renames: its hash would not match, so the pair reads as "not built", never as wrong.
        _write(path, plan)
        _write(path.with_suffix(".json"), json.dumps(sidecar, indent=1).encode())
        return path

    def timings(self, key: EngineKey) -> bytes:
        """TensorRT's kernel timings from earlier builds on this device; b"" without any."""
        try:
            return self._timing_path(key).read_bytes()
        except OSError:
            return b""

    def store_timings(self, key: EngineKey, timings: bytes) -> None:
        """Keep kernel timings for the next build. Call it inside `locked(key)`.

        Two builds of different engines may do it at once; the last one wins, whole.
        """
        if timings:
            _write(self._timing_path(key), timings)

    def discard(self, key: EngineKey) -> None:
        """Remove the engine of this key, if there is one. Call it inside `locked(key)`."""
        path = self.path(key)
        try:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot("remove", path, error) from error

    @contextlib.contextmanager
    def locked(
        self, key: EngineKey, *, waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Hold the right to build this key, among all processes of this machine.

        The lock is the kernel's (flock), so it ends with the process that holds it, however
        that process ends; the empty lock file stays. `waiting` is called once, before waiting for
        another process that holds it.
        """
        self._make_folder()
        path = self.path(key).with_suffix(".lock")
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _cannot("lock", path, error) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.info("another process is building %s", key.name)
                if waiting is not None:
                    waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                raise _cannot("lock", path, error) from error
            self._sweep(key)
            yield
        finally:
            os.close(handle)

    def _timing_path(self, key: EngineKey) -> Path:
        """Kernel timings depend on version and GPU alone, so all models share them."""
        device = re.sub(r"[^A-Za-z0-9.]+", "_", f"{key.tensorrt}-{key.architecture}-{key.gpu}")
        return self.folder / f"timing-{device}-{key.multiprocessors}sm.cache"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot("make", self.folder, error) from error

    def _sweep(self, key: EngineKey) -> None:
        """Remove what a killed writer of this key left; the lock says that none is at work."""
        for path in self.folder.glob(f".{key.name}-*"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _why_missing(self, key: EngineKey) -> str:
        """Say why nothing is stored; an engine for another device or version is named."""
        missing = f"no TensorRT engine for {key.precision} at {key.width}x{key.height} is built yet"
        reasons = []
        for sidecar in sorted(self.folder.glob(f"{key.family}-*.json")):
            with contextlib.suppress(OSError, ValueError):
                stored, _, _ = _parse_sidecar(_read_limited(sidecar))
                if stored != key:
                    reasons.append(f"the one in {sidecar.stem}.plan is {key.difference(stored)}")
        return "; ".join([missing, *reasons])


def _write(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content, error=EngineError)
    except EngineError as error:
        fix = f"{error.fix} Or keep engines elsewhere with --cache-dir."
        raise EngineError(error.problem, fix=fix) from error


def _read_limited(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_SIDECAR_LIMIT + 1)


def _parse_sidecar(content: bytes) -> tuple[EngineKey, int, str]:
    """Key, size and hash a sidecar vouches for; ValueError where it is not a sidecar."""
    if len(content) > _SIDECAR_LIMIT:
        raise ValueError(f"it is larger than {_SIDECAR_LIMIT} bytes")
    try:
        value = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    size, digest = value.get("size"), value.get("sha256")
    if type(size) is not int or not isinstance(digest, str):
        raise ValueError("size or sha256 is missing")
    return EngineKey.from_json(value.get("key")), size, digest


def _fault(key: EngineKey, sidecar: bytes, plan: bytes) -> str:
    """What is wrong with a stored engine, or "" where its sidecar and its bytes agree."""
    try:
        stored, size, digest = _parse_sidecar(sidecar)
    except ValueError as error:
        return f"its sidecar cannot be read ({error})"
    if stored != key:
        return f"it was {key.difference(stored)}"
    if len(plan) != size:
        return f"it has {len(plan)} bytes where its sidecar says {size}"
    if hashlib.sha256(plan).hexdigest() != digest:
        return "its content is not what its sidecar says (SHA-256 differs)"
    return ""


def _cannot(verb: str, path: Path, error: OSError) -> EngineError:
    return EngineError(
        f"cannot {verb} {path} ({error.strerror or error})",
        fix="Free some space or allow writing there, or name another folder with --cache-dir.",
    )
