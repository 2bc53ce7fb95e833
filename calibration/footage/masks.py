"""Labelled frames: pairs of images and masks, the list of classes, and what is refused.

A mask is an 8-bit PNG of one channel whose values are class ids; an image and its mask have
one stem. Whoever reads labels reads them here: evaluation, naming and supervised training.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import VOID
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.manifest import Manifest
from aeseg_edge.calibration.footage.classfile import read_classes as read_classes
from aeseg_edge.calibration.footage.turned import Turned
from aeseg_edge.errors import EvaluationError
from aeseg_edge.sources.depth import Levels, levels_of, split_levels
from aeseg_edge.sources.images import IMAGE_SUFFIXES, decode_image, is_hidden, orientation_of
from aeseg_edge.support.evenly import evenly
from aeseg_edge.support.require import import_cv2, require

MASK_SUFFIX = ".png"

_log = logging.getLogger(__name__)

_WHITE = 255
_SMOOTHED = 16
"""Values that are no class: more of them are no ids, but a picture that was smoothed or coded."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_BIT_DEPTH = 24  # its place in the file: the header is the first chunk
_MASK_FIX = "Save masks as single-channel 8-bit PNGs that hold class ids."


@dataclass(frozen=True)
class Pair:
    """One labelled frame: an image and its mask, both files, and the image's range if stated."""

    image: Path
    mask: Path
    levels: Levels | None = None


Read = Callable[..., NDArray[np.uint8]]
"""Turns an image path, and ``levels`` where a range is stated, into a frame."""


class PictureReader:
    """Reads image files as uint8 [H, W, C], and says once what is lost of more than 8 bits."""

    def __init__(self, channels: int = 3, levels: Levels | None = None) -> None:
        self._channels, self._levels = channels, levels
        self._told: list[str] = []

    def __call__(self, path: Path, levels: Levels | None = None) -> NDArray[np.uint8]:
        """Read one; EvaluationError if it cannot be read as an image."""
        known = len(self._told)
        tell = None if known else self._told.append
        image = decode_image(_bytes(path), self._channels, levels=levels or self._levels, tell=tell)
        if isinstance(image, str):
            wanted = f"Give pictures of {self._channels} channels, as the bundle takes."
            raise EvaluationError(
                f"{path} cannot be read as an image: it {image}",
                fix=wanted if image.endswith("are wanted") else "Replace the file.",
            )
        if len(self._told) > known:
            _log.warning("%s %s", path, self._told[0])
        return image


def reader_for(manifest: Manifest) -> PictureReader:
    """Read pictures as a bundle takes them: its channels, and the range of its footage.

    Raises:
        EvaluationError: The bundle was trained on several pictures of a scene.
    """
    if manifest.modalities:
        names = ", ".join(each.name for each in manifest.modalities)
        raise EvaluationError(
            f"the bundle takes scenes of {names}, and these labelled frames are single pictures",
            fix="Score it with aeseg eval --modalities; name its clusters by number.",
        )
    return PictureReader(manifest.geometry.channels, levels_of(manifest.provenance))


def find_pairs(images: Path, masks: Path) -> tuple[Pair, ...]:
    """Pair the images of one folder with the PNG masks of another by stem, sorted by name.

    ``?range=LOW:HIGH`` may follow the folder of images, see docs/sources.md.

    Raises:
        EvaluationError: A folder is missing or empty, a stem occurs twice, or a file has no
            partner.
    """
    place, levels = split_levels(str(images), error=EvaluationError)
    images = Path(place)
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
    stems = sorted(image_files)
    return tuple(Pair(image_files[stem], mask_files[stem], levels) for stem in stems)


def labelled_frames(
    pairs: Sequence[Pair],
    class_names: Sequence[str],
    *,
    ignore: int | None,
    read: Read | None = None,
) -> Iterator[tuple[Pair, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Read labelled frames one by one, and check each mask.

    Where EXIF turns a picture and its mask was drawn on the stored pixels, the mask is turned too.

    Args:
        pairs: The files.
        class_names: Names of the classes 0, 1, ... of the masks.
        ignore: A further value that masks may hold, or None.
        read: Turns an image path into a frame; colour pictures unless given.

    Yields:
        The pair, its frame uint8 [H, W, C] and its mask uint8 [H, W].

    Raises:
        EvaluationError: A file cannot be read, a mask is not of its image's size, or it
            holds a value that is neither a class nor ignored.
    """
    if ignore is not None and not 0 <= ignore <= 255:
        raise EvaluationError(
            f"--ignore is {ignore}, and masks hold 0 to 255", fix="Leave it out, or give an id."
        )
    reader = read or PictureReader()

    def frame_of(pair: Pair) -> NDArray[np.uint8]:
        return reader(pair.image, **({} if pair.levels is None else {"levels": pair.levels}))

    turned = Turned(pairs, frame_of, read_mask)
    palette = _Palette()
    seen = np.zeros(256, np.int64)
    for pair in pairs:
        frame = frame_of(pair)
        mask, colors = _read_index(pair.mask)
        mask = turned.upright(pair, frame, mask)
        if frame.shape[:2] != mask.shape:
            orientation = orientation_of(_bytes(pair.image))
            exif = f" (turned by its EXIF orientation {orientation})" if orientation > 1 else ""
            raise EvaluationError(
                f"{pair.image} is {_size(frame)}{exif}, its mask {pair.mask} is {_size(mask)}",
                fix="Give masks of the size of their images.",
            )
        counts = np.bincount(mask.reshape(-1), minlength=256)
        _check_values(np.flatnonzero(counts), pair.mask, class_names, ignore)
        palette.check(pair.mask, np.flatnonzero(counts), colors)
        seen += counts
        yield pair, frame, mask
    _check_seen(seen, class_names, ignore)


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
    """Read an image file as uint8 [H, W, 3], BGR, turned upright.

    Raises:
        EvaluationError: The file cannot be read as an image.
    """
    return PictureReader()(path)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read an index PNG as uint8 [H, W], the stored ids, with or without a palette.

    Raises:
        EvaluationError: The file is damaged, is no PNG, has colours or 16 bits, or unpacks to
            more pixels than Pillow takes for harmless.
        MissingDependency: Pillow is not installed.
    """
    return _read_index(path)[0]


def _read_index(path: Path) -> tuple[NDArray[np.uint8], list[int] | None]:
    """Read an index PNG, and red, green, blue of each of its palette's ids in turn."""
    data = _bytes(path)
    if not data.startswith(_PNG_SIGNATURE):
        empty = "" if data else ": it is empty"
        raise EvaluationError(f"{path} is not a PNG file{empty}", fix=_MASK_FIX)
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
                mode, ids, colors = image.mode, np.array(image), image.getpalette()
    except Exception as error:  # Pillow raises whatever its parsers meet in a damaged file.
        raise EvaluationError(
            f"{path} is damaged or cut off, and cannot be decoded ({error})",
            fix="Replace the file.",
        ) from error
    bits = data[_BIT_DEPTH]
    if mode in ("1", "L", "P"):
        # Pillow stretches grey values of 2 and 4 bits to 0..255.
        return np.asarray(ids // (255 // (2**bits - 1) if mode == "L" else 1), np.uint8), colors
    what = (
        f"has {bits} bits a pixel" if ids.ndim == 2 else "holds colours, not one class id a pixel"
    )
    raise EvaluationError(f"{path} {what}", fix=_MASK_FIX)


class _Palette:
    """Says once where two masks draw one id in different colours."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[int, ...], Path]] = {}
        self._told = False

    def check(self, path: Path, ids: NDArray[np.intp], colors: list[int] | None) -> None:
        """Compare the colours of a mask's ids with those of the masks before it."""
        for value in () if colors is None or self._told else map(int, ids):
            color = tuple(colors[3 * value : 3 * value + 3]) if colors else ()
            before, other = self._known.setdefault(value, (color, path))
            if before != color:
                self._told = True
                _log.warning(
                    "%s draws id %d in the colour %s, and %s in %s: if each file has a palette of "
                    "its own, ids mean other classes from file to file",
                    *(path, value, color, other, before),
                )
                return


def _check_values(
    found: NDArray[np.intp], path: Path, class_names: Sequence[str], ignore: int | None
) -> None:
    unknown = [int(value) for value in found if value >= len(class_names) and value != ignore]
    if not unknown:
        return
    fix = f"Name the class in the classes file, or pass --ignore {unknown[0]}."
    if unknown == [_WHITE] and set(found.tolist()) <= {0, _WHITE}:
        second = f"class 1 ({class_names[1]})" if len(class_names) > 1 else "a class"
        fix = (
            f"If white stands for {second}, save it as that class's id; pass --ignore 255 only "
            "where white means unlabelled."
        )
    elif len(unknown) > _SMOOTHED:
        fix = "Save masks as class ids, neither smoothed nor resized smoothly nor from a JPEG."
    raise EvaluationError(
        f"{path} holds the value {', '.join(map(str, unknown[:5]))}, "
        f"but there are {len(class_names)} classes (0..{len(class_names) - 1})"
        + ("" if ignore is None else f" and {ignore} is ignored"),
        fix=fix,
    )


def _check_seen(seen: NDArray[np.int64], class_names: Sequence[str], ignore: int | None) -> None:
    """Warn where all that masks show beside the ignored value is one class of several."""
    shown = [i for i in np.flatnonzero(seen[: len(class_names)]).tolist() if i != ignore]
    if ignore is not None and seen[ignore] and len(shown) == 1 < len(class_names):
        _log.warning(
            "the masks show %s and the ignored value %d alone: if that is a class too (white in "
            "black-and-white masks), save it as the class's id and do not ignore it",
            class_names[shown[0]],
            ignore,
        )


def _by_stem(folder: Path, suffixes: frozenset[str], what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is not a folder", fix=f"Give the folder of the {what}.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or is_hidden(path.name) or not path.is_file():
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
        raise EvaluationError(
            f"{path} cannot be read ({error.strerror or error})",
            fix="Check the path and its permissions.",
        ) from error
