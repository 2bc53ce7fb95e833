"""Which graph of a bundle is run, and on what."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from aeseg_edge.backends.base import Backend
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.manifest import Entry, Manifest
from aeseg_edge.bundle.precisions import ENGINES, FLOAT, TENSORRT, by_width
from aeseg_edge.errors import AesegError, BackendError, EngineNotBuilt, MissingDependency

_log = logging.getLogger(__name__)


def has_tensorrt() -> bool:
    """Say whether TensorRT and pycuda are installed; neither is imported."""
    return find_spec("tensorrt") is not None and find_spec("pycuda") is not None


def choose_entry(manifest: Manifest, precision: str, backend: str) -> Entry:
    """Find the entry that a precision stands for; BundleError where there is none.

    ``auto`` is int8 where it is recommended, else fp16 on TensorRT and fp32 on ONNX Runtime.
    """
    if precision != "auto":
        entry = manifest.entry(precision, backend)
        if not entry.recommended:
            _log.warning("%s for %s is not recommended: %s", precision, backend, entry.note)
        return entry
    for name in by_width(backend):
        for entry in manifest.entries:
            if entry.key == (name, backend) and entry.recommended:
                return entry
    return manifest.entry(FLOAT, backend)


def open_tensorrt(
    bundle: Bundle, precision: str, cache_dir: Path | None, *, required: bool
) -> tuple[Backend, Entry] | None:
    """Open an engine; for precision ``auto`` any that is built will do.

    Where there is none and it is not `required`, None, with the reason in the log; else
    EngineNotBuilt, BackendError or MissingDependency.
    """
    if not required and not has_tensorrt():
        return None
    from aeseg_edge.backends.tensorrt import open_backend

    entries = [choose_entry(bundle.manifest, precision, TENSORRT)]
    if precision == "auto":
        # Whichever engine is built, before none at all.
        others = [e for e in bundle.manifest.entries if e.backend == TENSORRT and e.recommended]
        entries += [e for e in others if e.precision in ENGINES and e not in entries]
    missing: AesegError | None = None
    for entry in entries:
        try:
            return open_backend(bundle, entry, cache_dir=cache_dir), entry
        except EngineNotBuilt as error:
            missing = missing or error
        except (BackendError, MissingDependency) as error:
            missing = error
            break
    assert missing is not None
    if required:
        raise missing
    _log.warning("using ONNX Runtime: %s", missing)
    return None
