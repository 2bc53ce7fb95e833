"""Label-free segmentation for a camera on an embedded GPU: the runtime.

The public names are loaded on first use, so that `import aeseg_edge` costs next to nothing and
loads no optional package.

Example:
    >>> from aeseg_edge import Segmenter  # doctest: +SKIP
    >>> with Segmenter.load("street.aeseg") as segment:  # doctest: +SKIP
    ...     result = segment(frame)  # frame: uint8 [H, W, 3], BGR
    ...     result.labels  # uint8 [H, W], class ids; 255 is void
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aeseg_edge.version import __version__

if TYPE_CHECKING:
    from aeseg_edge.bundle.archive import Bundle
    from aeseg_edge.bundle.codebook import Codebook
    from aeseg_edge.errors import AesegError
    from aeseg_edge.segment.result import Segmentation
    from aeseg_edge.segment.segmenter import Segmenter

__all__ = ["AesegError", "Bundle", "Codebook", "Segmentation", "Segmenter", "__version__"]

# Hidden from type checkers, which would take a module-level __getattr__ to provide every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load a public name from the module that defines it (PEP 562)."""
        from importlib import import_module

        modules = {
            "AesegError": "errors",
            "Bundle": "bundle.archive",
            "Codebook": "bundle.codebook",
            "Segmentation": "segment.result",
            "Segmenter": "segment.segmenter",
        }
        if name not in modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", __name__), name)

    def __dir__() -> list[str]:
        """List the public names, loaded or not."""
        return sorted({*globals(), *__all__})
