"""Rows of tables that name code without importing it."""

from __future__ import annotations

import importlib
from typing import Any


def load(where: str) -> Any:
    """Import what a row of a table names: ``package.module:attribute``."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)
