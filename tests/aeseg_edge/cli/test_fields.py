"""Options from settings, and the settings back."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from aeseg_edge.cli.fields import add_options, filled, given
from aeseg_edge.support.options import option, positive


@dataclass(frozen=True)
class Settings:
    """Of every kind of field."""

    count: int = option(3, parse=positive, metavar="N", help="so many (default {default})")
    share: float = option(0.50, "--of", parse=float, help="part (default {default})")
    kind: str = option("a", choices=("a", "b"), help="which (default {default})", remembered=True)
    gate: float | None = option(
        None, help="(default: {default})", shown="x", before="{before} or x"
    )
    loud: bool = option(True, "--quiet", off=True, help="say less")
    fresh: bool = option(False, on=True, help="again")
    short: int | None = option(None, parse=int, apart="length", help="a")
    long: int | None = option(None, parse=int, apart="length", help="b")
    inner: int = 7


def parser(**more: object) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_options(made, Settings, **more)  # type: ignore[arg-type]
    return made


def test_what_is_not_said_is_the_field_s_default() -> None:
    options = parser().parse_args([])
    assert given(options, Settings) == {}
    assert filled(options, Settings) == Settings()


def test_what_is_said_fills_the_fields() -> None:
    command = "--count 5 --of 0.1 --kind b --quiet --fresh --long 2"
    options = parser().parse_args(command.split())
    wanted = Settings(count=5, share=0.1, kind="b", loud=False, fresh=True, long=2, inner=9)
    assert filled(options, Settings, inner=9) == wanted


@pytest.mark.parametrize("command", ["--kind c", "--count 0", "--short 1 --long 2", "--inner 1"])
def test_what_a_field_does_not_take_is_wrong_usage(command: str) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(command.split())


def test_the_help_names_the_default_or_where_it_comes_from() -> None:
    plain, again = parser().format_help(), parser(before="as trained").format_help()
    assert all(text in plain for text in ("(default 3)", "(default 0.5)", "(default a)", ": x)"))
    assert all(text in again for text in ("(default 3)", "(default as trained)", "trained or x)"))


def test_fields_can_be_chosen_and_left() -> None:
    assert vars(parser(only=("count",)).parse_args([])) == {"count": None}
    assert "count" not in vars(parser(leave=("count",)).parse_args([]))
