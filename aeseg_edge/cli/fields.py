"""Options from the fields of a settings dataclass, and the settings back."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import fields
from typing import Any, TypeVar

from aeseg_edge.support.options import KEY, Option

Settings = TypeVar("Settings")


def add_options(
    parser: argparse._ActionsContainer,
    kind: type[Any],
    *,
    only: Collection[str] = (),
    leave: Collection[str] = (),
    before: str = "",
) -> None:
    """Add an option for each field (``only`` some) that is one; None where nothing was said.

    ``before``: where defaults are those of earlier settings, what the help calls these.
    """
    apart: dict[str, argparse._ActionsContainer] = {}
    for each in fields(kind):
        told: Option | None = each.metadata.get(KEY)
        if told is None or each.name in leave or (only and each.name not in only):
            continue
        where = parser
        if told.apart is not None:
            if told.apart not in apart:
                apart[told.apart] = parser.add_mutually_exclusive_group()
            where = apart[told.apart]
        arguments: dict[str, Any] = {"dest": each.name, "default": None}
        if told.on or told.off:
            arguments["action"] = "store_true" if told.on else "store_false"
        else:
            arguments.update(type=told.parse, choices=told.choices, metavar=told.metavar)
        flags = told.flags or ("--" + each.name.replace("_", "-"),)
        text = told.help.replace("{default}", _shown(told, each.default, before))
        where.add_argument(*flags, help=text, **arguments)


def given(options: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """Give what was said of the fields of a settings dataclass."""
    names = [each.name for each in fields(kind) if KEY in each.metadata]
    said = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in said.items() if value is not None}


def filled(options: argparse.Namespace, kind: type[Settings], **more: Any) -> Settings:
    """Make settings of what was said; ``more`` are fields that are no options."""
    return kind(**given(options, kind), **more)


def _shown(told: Option, default: Any, before: str) -> str:
    if before and told.before is not None:
        return told.before.replace("{before}", before)
    if before and (told.remembered or told.shown is not None):
        return before
    if told.shown is not None:
        return told.shown
    return f"{default:g}" if isinstance(default, float) else str(default)
