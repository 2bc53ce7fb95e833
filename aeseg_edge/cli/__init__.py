"""The ``aeseg`` command. The only part of the package that prints."""

from __future__ import annotations

from aeseg_edge.cli.main import main

__all__ = ["main"]
