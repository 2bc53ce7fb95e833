"""What long work tells of itself."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with a stage and the fraction of it that is done, 0 to 1, never falling."""

Tick = Callable[[float], None]
"""Called with the fraction done, 0 to 1."""
