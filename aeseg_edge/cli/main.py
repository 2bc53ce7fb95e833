"""Parse arguments, run one verb, turn errors into exit codes."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any

from aeseg_edge.errors import AesegError, UsageError
from aeseg_edge.support.signals import endings
from aeseg_edge.support.text import printable, without_password
from aeseg_edge.version import __version__

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

VERBS = {
    "train": "train on unlabelled footage and write a bundle",
    "export": "make a bundle from a checkpoint again",
    "calibrate": "fit new centres and int8 ranges on other footage (no torch needed)",
    "run": "segment every frame of a source",
    "info": "say what is in a bundle",
    "name": "name, merge and colour what a bundle found; nothing is built again",
    "eval": "score a bundle on labelled frames",
    "flicker": "measure how much labels flicker where the picture stands still",
    "bench": "time a bundle, stage by stage",
    "roofline": "bound the latency of a bundle from below, layer by layer",
    "report": "compare all precisions of a bundle on real frames, as one HTML page",
    "compare": "say how the labels of two bundles differ on the same frames",
    "build": "build TensorRT engines of a bundle for this device",
    "doctor": "check what this machine has and lacks for running bundles",
    "selftest": "build engines here and compare their labels with ONNX Runtime",
}
"""What each verb does. Its module in ``verbs`` is imported when it is used."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    ``argv`` are arguments without the program's name; ``sys.argv`` when None.
    """
    _fill_closed()
    parser = build_parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    level = logging.INFO
    if options.verbose or options.quiet:
        level = logging.DEBUG if options.verbose else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname).1s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for noisy in ("matplotlib", "onnx_ir", "onnxscript", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on stderr: names of files that are not UTF-8 are shown, and end no run.
        sys.stdout.reconfigure(errors="backslashreplace")
    from aeseg_edge.cli.files import check_files
    from aeseg_edge.cli.options import check_needs
    from aeseg_edge.cli.output import own_stdout

    try:
        with _logging_at(level), _terminable(), own_stdout(options):
            check_needs(options)
            check_files(options)
            result: int | None = options.run(options)
            if sys.stdout is not None:
                sys.stdout.flush()
        return result or OK
    except UsageError as error:
        _complain(error)
        return USAGE
    except AesegError as error:
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        _complain(error)
        return FAILED
    except BrokenPipeError:
        # The reader of a pipe went away (`aeseg info x | head`); nothing is wrong here.
        _forget_stdout()
        return FAILED
    except OSError as error:
        # What no other place foresaw: a full disk behind standard output or in the
        # system's folder for temporary files.
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        _complain(_system_error(error))
        _forget_stdout()
        return FAILED
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of every verb."""
    parser = argparse.ArgumentParser(
        prog="aeseg",
        description="Label-free segmentation for cameras on embedded GPUs.",
        epilog="Each verb has its own --help with an example.",
    )
    parser.add_argument("--version", action="version", version=f"aeseg_edge {__version__}")
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", parser_class=VerbParser
    )
    for name, summary in VERBS.items():
        verbs.add_parser(name, verb=name, help=summary)
    return parser


class _Formatter(logging.Formatter):
    """Shows no password and no control character, whoever says it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(without_password(super().format(record)))


class VerbParser(argparse.ArgumentParser):
    """The parser of a verb (a key of ``VERBS``), filled when it is used: others stay unimported.

    It takes words and options in any order, as in ``aeseg bench B.aeseg --threads 1 clip.mp4``;
    argparse alone is done with words that may be left out once it has seen the first option.
    """

    def __init__(self, *, verb: str, **more: Any) -> None:
        summary = VERBS[verb]
        super().__init__(
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **more,
        )
        loudness = self.add_mutually_exclusive_group()
        loudness.add_argument(
            "-v", "--verbose", action="store_true", help="say more; show tracebacks"
        )
        loudness.add_argument(
            "-q", "--quiet", action="store_true", help="say nothing but results, warnings, errors"
        )
        self._verb: str | None = verb
        self._mixing = False

    def fill(self) -> None:
        """Add the options of the verb; once."""
        if self._verb is not None:
            module = import_module(f"aeseg_edge.cli.verbs.{self._verb}")
            self._verb = None
            self.epilog = f"example:\n  {module.EXAMPLE}"
            self.set_defaults(run=module.run)
            module.add_arguments(self)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse options first, then what is left as words; as argparse does where a ``--`` is."""
        self.fill()
        if self._mixing or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


@contextmanager
def _logging_at(level: int) -> Iterator[None]:
    """Say what is of this level, also where another program has set logging up."""
    ours = logging.getLogger("aeseg_edge")
    before = ours.level
    ours.setLevel(level)
    try:
        yield
    finally:
        ours.setLevel(before)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: no half-written files, epochs are kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            # A shell and its terminal send one each.
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in endings()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _system_error(error: OSError) -> AesegError:
    where = f"{error.filename}: " if error.filename else ""
    return AesegError(
        f"{where}{error.strerror or error}",
        fix="Check that the disk has room (the folder for temporary files too, see TMPDIR) and "
        "that you may write there; -v shows where it happened.",
    )


def _forget_stdout() -> None:
    """Send what is still buffered nowhere: Python would fail on it again at its end."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        # It is no file at all: somebody called main() with another stdout.
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _complain(error: AesegError) -> None:
    problem, fix = (
        printable(without_password(each)).replace("\n", "\\n")
        for each in (error.problem, error.fix)
    )
    _say(f"aeseg: error: {problem}.\n  {fix}")


def _say(text: str) -> None:
    """Say how it ended; a terminal that is gone cannot hear it."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def _fill_closed() -> None:
    """Put nothing where a standard stream is closed: a file opened later would take its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
