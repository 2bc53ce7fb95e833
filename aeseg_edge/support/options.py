"""Settings that are options: what a command line needs to know, beside the field it fills."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

KEY = "option"


@dataclass(frozen=True)
class Option:
    """How a field of a settings dataclass is given on a command line.

    Attributes:
        help: ``{default}`` stands for the default's text.
        flags: Its spellings; ``--the-field`` where none are given.
        choices: What it may be.
        metavar: What its value is called in the help.
        parse: From text to value; None takes the text as it is.
        off: A word that switches a field off that is on.
        on: A word that switches a field on that is off.
        apart: Options of one such name exclude each other.
        shown: The default's text where the default itself does not say it.
        before: The same for a verb that goes on from earlier settings, where ``{before}``
            stands for what it calls them.
        remembered: Such a verb takes it over from the earlier settings.
    """

    help: str
    flags: tuple[str, ...] = ()
    choices: Sequence[Any] | None = None
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    off: bool = False
    on: bool = False
    apart: str | None = None
    shown: str | None = None
    before: str | None = None
    remembered: bool = False


def option(default: Any, *flags: str, help: str, **told: Any) -> Any:
    """Make a field that is an option too; ``told`` is the rest of ``Option``."""
    return field(default=default, metadata={KEY: Option(help, flags, **told)})


def size(text: str) -> tuple[int, int]:
    """Parse ``WxH``."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if match is None or not (width := int(match[1])) or not (height := int(match[2])):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 480x360")
    return width, height


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    return 0 if text == "0" else positive(text)


def seconds(text: str) -> float:
    """Parse a time above 0."""
    return _number(text, lambda value: 0 < value < float("inf"), "a time in seconds above 0")


def share(text: str) -> float:
    """Parse a number within 0..1."""
    return _number(text, lambda value: 0.0 <= value <= 1.0, "within 0..1")


def strength(text: str) -> float:
    """Parse a strength of smoothing, 0 up to below 1."""
    wanted = "a strength within 0 up to below 1 (to give none, put --smooth after the source)"
    return _number(text, lambda value: 0.0 <= value < 1.0, wanted)


def _number(text: str, good: Callable[[float], bool], wanted: str) -> float:
    try:
        if good(value := float(text)):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
