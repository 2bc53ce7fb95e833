"""Labelled frames: pairs of images and masks, the list of classes, and what is refused.

A mask is an 8-bit PNG of one channel whose values are class ids; an image and its mask have
one stem. Whoever reads labels reads them here: evaluation, naming and supervised training.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.errors import EvaluationError
from aeseg_edge.sources.images import IMAGE_SUFFIXES
from aeseg_edge.support.choose import evenly
from aeseg_edge.support.require import import_cv2, require

MASK_SUFFIX = ".png"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_BIT_DEPTH = 24  # its place in the file: the header is the first chunk
_MASK_FIX = "Save masks as single-channel 8-bit PNGs that hold class ids."


@dataclass(frozen=True)
class Pair:
    """One labelled frame: an image and its mask, both files."""

    image: Path
    mask: Path


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names, one a line, the first line being class 0.

    Raises:
        EvaluationError: The file cannot be read, has a blank line between names, or a
            name twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path} cannot be read as a list of classes ({error})",
            fix="Give a text file with one class name a line.",
        ) from error
    while names and not names[-1]:
        names.pop()
    if not names:
        raise EvaluationError(f"{path} names no class", fix="Write one class name a line.")
    if "" in names:
        raise EvaluationError(
            f"line {names.index('') + 1} of {path} is blank, which would shift the class ids",
            fix="Write one class name a line.",
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvaluationError(
            f"{path} names {', '.join(twice)} more than once", fix="Give each class its own name."
        )
    return tuple(names)


def find_pairs(images: Path, masks: Path) -> tuple[Pair, ...]:
    """Pair the images of one folder with the PNG masks of another by stem, sorted by name.

    Raises:
        EvaluationError: A folder is missing or empty, a stem occurs twice, or a file has no
            partner.
    """
    image_files = _by_stem(images, IMAGE_SUFFIXES, "images")
    mask_files = _by_stem(masks, frozenset({MASK_SUFFIX}), f"{MASK_SUFFIX} masks")
    for files, others, what, folder in (
        (image_files, mask_files, "mask", masks),
        (mask_files, image_files, "image", images),
    ):
        alone = sorted(path.name for stem, path in files.items() if stem not in others)
        if alone:
            raise EvaluationError(
                f"{_some(alone)}: no {what} of the same name in {folder}",
                fix=f"Add the {what}s, or take the files without one out of the folder.",
            )
    return tuple(Pair(image_files[stem], mask_files[stem]) for stem in sorted(image_files))


def labelled_frames(
    pairs: Sequence[Pair],
    class_names: Sequence[str],
    *,
    ignore: int | None,
    read: Callable[[Path], NDArray[np.uint8]] | None = None,
) -> Iterator[tuple[Pair, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Read labelled frames one by one, and check each mask.

    Args:
        pairs: The files.
        class_names: Names of the classes 0, 1, ... of the masks.
        ignore: A further value that masks may hold, or None.
        read: Turns an image path into a frame; read_image unless given.

    Yields:
        The pair, its frame uint8 [H, W, C] and its mask uint8 [H, W].

    Raises:
        EvaluationError: A file cannot be read, a mask is not of its image's size, or it
            holds a value that is neither a class nor ignored.
    """
    for pair in pairs:
        frame, mask = (read or read_image)(pair.image), read_mask(pair.mask)
        if frame.shape[:2] != mask.shape:
            raise EvaluationError(
                f"{pair.image} is {_size(frame)}, its mask {pair.mask} is {_size(mask)}",
                fix="Give masks of the size of their images.",
            )
        _check_values(mask, pair.mask, class_names, ignore)
        yield pair, frame, mask


def evenly_spaced(pairs: Sequence[Pair], count: int | None) -> tuple[Pair, ...]:
    """Choose pairs that lie evenly over the list: first and last among them, or the middle one.

    All of them when ``count`` is None or there are no more.
    """
    if count is None or count >= len(pairs):
        return tuple(pairs)
    if count == 1:
        return (pairs[len(pairs) // 2],)
    return tuple(pairs[place] for place in evenly(len(pairs), count))


def fit_mask(
    mask: NDArray[np.uint8], geometry: Geometry, classes: int, ignore: int | None
) -> NDArray[np.uint8]:
    """Bring a mask uint8 [H, W] to the graph's input as its frame is brought there.

    Nearest neighbour; a new uint8 [height, width] of class ids, 255 for what does not count:
    values from ``classes`` up, ``ignore``, and the bars of a letterboxed frame.
    """
    counts = mask < classes
    if ignore is not None:
        counts &= mask != ignore
    clean = np.where(counts, mask, np.uint8(VOID)).astype(np.uint8)
    top, left, rows, columns = geometry.box(*mask.shape)
    if clean.shape != (rows, columns):
        cv2 = import_cv2()
        # INTER_NEAREST_EXACT samples at pixel centres, as labels are brought back.
        clean = cv2.resize(clean, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT)
    whole: NDArray[np.uint8] = np.full((geometry.height, geometry.width), VOID, np.uint8)
    whole[top : top + rows, left : left + columns] = clean
    return whole


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as uint8 [H, W, 3], BGR.

    Raises:
        EvaluationError: The file cannot be read as an image.
    """
    cv2 = import_cv2()
    image = cv2.imdecode(np.frombuffer(_bytes(path), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise EvaluationError(f"{path} cannot be read as an image", fix="Replace the file.")
    return np.asarray(image, np.uint8)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read an index PNG as uint8 [H, W], the stored ids, with or without a palette.

    Raises:
        EvaluationError: The file is damaged, is no PNG, has colours or 16 bits, or unpacks to
            more pixels than Pillow takes for harmless.
        MissingDependency: Pillow is not installed.
    """
    data = _bytes(path)
    if not data.startswith(_PNG_SIGNATURE):
        raise EvaluationError(f"{path} is not a PNG file", fix=_MASK_FIX)
    pillow = require("PIL.Image", title="Pillow", for_="reading masks")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            # Pixels are read without a look at checksums and at the end of the file.
            pillow.open(io.BytesIO(data), formats=["PNG"]).verify()
            if _PNG_END not in data:
                raise EOFError("its end is missing")
            with pillow.open(io.BytesIO(data), formats=["PNG"]) as image:
                mode, ids = image.mode, np.array(image)
    except Exception as error:  # Pillow raises whatever its parsers meet in a damaged file.
        raise EvaluationError(
            f"{path} is damaged or cut off, and cannot be decoded ({error})",
            fix="Replace the file.",
        ) from error
    bits = data[_BIT_DEPTH]
    if mode in ("1", "L", "P"):
        # Pillow stretches grey values of 2 and 4 bits to 0..255.
        return np.asarray(ids // (255 // (2**bits - 1) if mode == "L" else 1), np.uint8)
    what = (
        f"has {bits} bits a pixel" if ids.ndim == 2 else "holds colours, not one class id a pixel"
    )
    raise EvaluationError(f"{path} {what}", fix=_MASK_FIX)


def _check_values(
    mask: NDArray[np.uint8], path: Path, class_names: Sequence[str], ignore: int | None
) -> None:
    found = np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256))
    unknown = [int(value) for value in found if value >= len(class_names) and value != ignore]
    if unknown:
        raise EvaluationError(
            f"{path} holds the value {', '.join(map(str, unknown[:5]))}, "
            f"but there are {len(class_names)} classes (0..{len(class_names) - 1})"
            + ("" if ignore is None else f" and {ignore} is ignored"),
            fix=f"Name the class in the classes file, or pass --ignore {unknown[0]}.",
        )


def _by_stem(folder: Path, suffixes: frozenset[str], what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is not a folder", fix=f"Give the folder of the {what}.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or not path.is_file():
            continue
        if path.stem in files:
            raise EvaluationError(
                f"{files[path.stem].name} and {path.name} in {folder} have the same stem",
                fix="Keep one of them.",
            )
        files[path.stem] = path
    if not files:
        raise EvaluationError(f"{folder} holds no {what}", fix=f"Give a folder of {what}.")
    return files


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _size(image: NDArray[Any]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error})", fix="Check the path.") from error
