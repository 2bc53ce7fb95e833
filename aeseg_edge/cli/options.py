"""Argument types and outputs that several verbs share."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import AesegError, UsageError
from aeseg_edge.sinks.targets import refuse_inputs
from aeseg_edge.sources.images import read_grey
from aeseg_edge.sources.pairs import SCHEME, SKIP
from aeseg_edge.support.files import is_stream, temporary_beside, write_bytes
from aeseg_edge.support.text import to_json

if TYPE_CHECKING:
    from aeseg_edge.bundle.manifest import Manifest

_log = logging.getLogger(__name__)

Verbs = Any
"""What ``add_subparsers`` returns; argparse keeps its class to itself."""


class VerbParser(argparse.ArgumentParser):
    """Takes words and options in any order, as in ``aeseg bench B.aeseg --threads 1 clip.mp4``.

    argparse alone is done with words that may be left out once it has seen the first option.
    """

    _mixing = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse options first, then what is left as words; as argparse does where a ``--`` is."""
        if self._mixing or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def add_verb(
    verbs: Verbs,
    common: argparse.ArgumentParser,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a verb whose help ends in an example."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        parents=[common],
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument(
        "--json", metavar="FILE", help="write the results as JSON to FILE, - for standard output"
    )


def add_runner(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose how a bundle is run."""
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "int8"),
        default="auto",
        help="default: int8 where the bundle recommends it",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "onnxruntime", "tensorrt"),
        default="auto",
        help="default: TensorRT where it is installed, else ONNX Runtime",
    )
    parser.add_argument("--threads", type=positive, help="threads for ONNX Runtime")
    parser.add_argument(
        "--imgsz",
        type=size,
        metavar="WxH",
        help="run at another size, multiples of the encoder's deepest stride (32 for edge): larger "
        "is finer and slower (default: the bundle's own)",
    )


def add_modalities(parser: argparse.ArgumentParser, *, stands_for: str = "SOURCE") -> None:
    """Add ``--modalities``, which stands for a source, and ``--unpaired``."""
    parser.add_argument(
        "--modalities",
        metavar="NAME=DIR,NAME=DIR",
        help=f"instead of {stands_for}: folders of pictures paired by name, such as "
        "visible=DIR,thermal=DIR; colours first, grey ones have one channel",
    )
    parser.add_argument(
        "--unpaired",
        choices=("refuse", "skip"),
        default="refuse",
        help="what becomes of files without a partner (default: refuse)",
    )


def all_sources(given: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Give the sources, whichever way they were given.

    Raises:
        UsageError: If there are none, or both kinds.
    """
    pairs = options.modalities
    if bool(given) == (pairs is not None):
        problem = "SOURCE and --modalities are both given" if pairs else "no SOURCE is given"
        raise UsageError(problem, fix="Give a SOURCE, or --modalities visible=DIR,thermal=DIR.")
    if pairs is None:
        return list(given)
    return [f"{SCHEME}{pairs}{SKIP if options.unpaired == 'skip' else ''}"]


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


def seconds(text: str) -> float:
    """Parse a time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds above 0")
    return value


def share(text: str) -> float:
    """Parse a number within 0..1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not within 0..1")
    return value


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    return 0 if text == "0" else positive(text)


DEFAULT_SMOOTH = -1.0
"""``--smooth`` without a value: the bundle's own default."""


def strength(text: str) -> float:
    """Parse a strength of smoothing, 0 up to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a strength within 0 up to below 1 (to give none, put --smooth "
            "after the source)"
        )
    return value


def smooth_for(manifest: Manifest, given: float) -> float:
    """Turn what ``--smooth`` gave into a strength."""
    from aeseg_edge.segment.smoothing import default_strength

    return default_strength(manifest) if given == DEFAULT_SMOOTH else given


def write_json(target: str | None, data: Any) -> None:
    """Write results where ``--json`` says; nothing without it."""
    if target is None:
        return
    text = to_json(data, indent=1, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        write_bytes(Path(target), text.encode(), error=AesegError)


def read_mask(path: str | None) -> NDArray[np.uint8] | None:
    """Read a region-of-interest picture: white is inside."""
    if path is None:
        return None
    mask = read_grey(Path(path))
    if mask is None:
        raise UsageError(f"{path} is not a readable image", fix="Give a PNG: white is inside.")
    return mask


def check_output(path: Path, suffix: str | None = None) -> Path:
    """Refuse an output that cannot be written, before hours of work.

    A device or a pipe (/dev/stdout, the shell's ``>(command)``) is taken on trust.

    Raises:
        UsageError: If the name does not end in ``suffix``.
        AesegError: If no file can be made there.
    """
    if suffix is not None and path.suffix != suffix:
        raise UsageError(f"{path} does not end in {suffix}", fix=f"Name it {path}{suffix}.")
    if not is_stream(path):
        # Only trying tells: permissions say nothing of a read-only disk or a used-up quota.
        temporary_beside(path, error=AesegError).unlink()
    return path


def check_reports(options: argparse.Namespace) -> None:
    """Refuse a ``--json`` or ``--stats`` file that cannot be written, before any work.

    Raises:
        UsageError: If it is one of the inputs.
        AesegError: If no file can be made there.
    """
    for name in ("json", "stats"):
        target = getattr(options, name, None)
        if target not in (None, "-"):
            refuse_inputs([Path(target)], given_files(options))
            check_output(Path(target))


def given_files(options: argparse.Namespace) -> Iterator[Path]:
    """List the files that a verb was given to read: bundles, sources, class names, a region."""
    from aeseg_edge.sources import files_of

    sources: list[str] = []
    for name in ("bundle", "first", "second", "classes", "roi", "source", "sources"):
        value = getattr(options, name, None)
        if isinstance(value, Path):
            yield value
        elif value is not None:
            sources += [value] if isinstance(value, str) else value
    if (pairs := getattr(options, "modalities", None)) is not None:
        sources.append(f"{SCHEME}{pairs}")
    for uri in sources:
        yield from files_of(uri)


def entries_table(manifest: Manifest) -> list[str]:
    """Lines that list every (precision, backend) with its agreement."""
    lines = []
    for entry in manifest.entries:
        found = entry.agreement
        agreement = f"{100 * found['labels_equal']:6.2f} %" if found else "reference"
        advice = "" if entry.recommended else "  NOT RECOMMENDED"
        size_mb = manifest.files[entry.graph].size / 1e6
        lines.append(
            f"{entry.precision:<5} {entry.backend:<12} {size_mb:5.2f} MB  "
            f"agreement {agreement:>9}{advice}"
        )
    return lines


def join(items: Sequence[str]) -> str:
    """Join for a sentence."""
    return ", ".join(items)


def bundle_or_pretrained(path: Path | None) -> Path:
    """Give the bundle that was named, or the pretrained one, with a notice.

    Raises:
        BundleError: If none was named and the package has none.
    """
    if path is not None:
        return path
    from aeseg_edge.bundle.pretrained import NOTICE, pretrained_path

    found = pretrained_path()
    _log.warning(NOTICE)
    return found
