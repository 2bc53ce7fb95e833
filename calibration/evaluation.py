"""Evaluation of a bundle on labelled frames: the figures behind `aeseg eval`.

Labels are read here, after clustering, and nowhere earlier. Clusters get their classes in
up to three ways: one to one (Hungarian), by majority on other frames, and by the names
that the bundle already has.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.errors import EvaluationError, MissingDependency

from .metrics import UNMATCHED, ConfusionMatrix, Scores, fold, hungarian_map, majority_map, score

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
MASK_SUFFIX = ".png"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3  # PNG colour types
_MASK_FIX = "Save masks as single-channel 8-bit PNGs that hold class ids."

Predict = Callable[[NDArray[np.uint8]], NDArray[Any]]
"""uint8 [H, W, C] frame -> integers [H, W], cluster ids; negative means no cluster (void)."""

Progress = Callable[[int, int], None]
"""Called after each frame with (frames done, frames in all)."""


@dataclass(frozen=True)
class Pair:
    """One labelled frame: an image and its mask, both files."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found.

    Attributes:
        frames: Frames scored.
        clusters: Clusters of the codebook.
        classes: Names of the classes, in the order of their ids in the masks.
        hungarian: Scores with clusters matched one to one on the scored frames themselves.
        majority: Scores with each cluster named by majority on the fit frames, or None
            where there were none.
        named: Scores with the bundle's own names, or None where none occurs in `classes`.
        hungarian_map: Class of each cluster, UNMATCHED (-1) where it has none.
        majority_map: The same for `majority`.
    """

    frames: int
    clusters: int
    classes: tuple[str, ...]
    hungarian: Scores
    majority: Scores | None
    named: Scores | None
    hungarian_map: tuple[int, ...]
    majority_map: tuple[int, ...] | None

    def to_json(self) -> dict[str, Any]:
        """Return the report with figures in percent; an absent class has the IoU None."""
        report: dict[str, Any] = {
            "frames": self.frames,
            "clusters": self.clusters,
            "classes": list(self.classes),
            "hungarian": self.hungarian.to_json(),
        }
        if self.majority is not None:
            report["majority"] = self.majority.to_json()
        if self.named is not None:
            report["named"] = self.named.to_json()
        return report


def evaluate(
    predict: Predict,
    pairs: Sequence[Pair],
    class_names: Sequence[str],
    *,
    clusters: int,
    ignore: int | None,
    fit_pairs: Sequence[Pair] | None = None,
    fit_every: int = 1,
    named: Mapping[int, str] | None = None,
    progress: Progress | None = None,
    read: Callable[[Path], NDArray[np.uint8]] | None = None,
) -> EvaluationReport:
    """Score a predictor of clusters against masks, over all frames at once.

    Args:
        predict: Frame uint8 [H, W, C] -> cluster ids, integers [H, W] at the frame's size.
        pairs: The frames to score.
        class_names: Names of the classes 0, 1, ... of the masks.
        clusters: Number of clusters that `predict` chooses from.
        ignore: Mask value that leaves every count, or None.
        fit_pairs: Frames for the majority map; no frame of `pairs` should be among them.
        fit_every: Use every n-th of the fit pairs, from the first.
        named: Name of each cluster's class in the bundle. Names are compared without regard
            to case and outer blanks; clusters whose name is no class count as wrong.
        progress: Called after each frame.
        read: Turns an image path into a frame; read_image unless given.

    Raises:
        EvaluationError: A file is missing, unreadable or of another size than its partner,
            a mask holds a value that is no class, or there is nothing to score.
    """
    if fit_every < 1:
        raise EvaluationError(
            f"--fit-every is {fit_every}", fix="Use 1 for every fit frame, 4 for every fourth."
        )
    fit = list(fit_pairs or ())[::fit_every]
    if fit_pairs is not None and not fit:
        raise EvaluationError("there are no frames to fit on", fix="Check --fit-images.")
    if not pairs:
        raise EvaluationError("there are no frames to score", fix="Check --images.")
    shared = {pair.mask.resolve() for pair in fit} & {pair.mask.resolve() for pair in pairs}
    if shared:
        _log.warning(
            "%d of %d scored frames are also fit frames: the majority figures are optimistic",
            len(shared),
            len(pairs),
        )
    total = len(fit) + len(pairs)

    def count(wanted: Sequence[Pair], done: int) -> ConfusionMatrix:
        matrix = ConfusionMatrix(len(class_names), clusters, ignore=ignore)
        for pair, frame, mask in _frames(wanted, read or read_image):
            _check_values(mask, pair.mask, class_names, ignore)
            matrix.update(mask, _predicted(predict, frame, pair.image, clusters))
            done += 1
            if progress is not None:
                progress(done, total)
        return matrix

    fit_matrix = count(fit, 0) if fit else None
    matrix = count(pairs, len(fit))
    if matrix.pixels == 0:
        raise EvaluationError(
            f"every pixel of the {len(pairs)} masks has the ignored value {ignore}",
            fix="Check --ignore and the masks.",
        )

    def scores(mapping: NDArray[np.int64]) -> Scores:
        counts, missed = fold(matrix.counts, mapping)
        return score(counts, missed + matrix.missed)

    hungarian = hungarian_map(matrix.counts)
    majority = None if fit_matrix is None else majority_map(fit_matrix.counts)
    names = _named_map(named or {}, class_names, clusters)
    return EvaluationReport(
        frames=len(pairs),
        clusters=clusters,
        classes=tuple(class_names),
        hungarian=scores(hungarian),
        majority=None if majority is None else scores(majority),
        named=None if names is None else scores(names),
        hungarian_map=tuple(hungarian.tolist()),
        majority_map=None if majority is None else tuple(majority.tolist()),
    )


def format_table(report: EvaluationReport) -> str:
    """Return the report as a plain text table, figures in percent."""
    columns: list[tuple[str, Scores]] = [("hungarian", report.hungarian)]
    if report.majority is not None:
        columns.append(("majority", report.majority))
    if report.named is not None:
        columns.append(("named", report.named))
    rows: list[tuple[str, list[float | None]]] = [
        (name, [scores.iou[i] for _, scores in columns]) for i, name in enumerate(report.classes)
    ]
    rows.append(("mIoU", [scores.miou for _, scores in columns]))
    rows.append(("pixel accuracy", [scores.pixel_accuracy for _, scores in columns]))
    width = max(len(name) for name, _ in rows)
    lines = [
        f"frames {report.frames}, clusters {report.clusters}, classes {len(report.classes)}",
        " " * width + "".join(f"{name:>11}" for name, _ in columns),
    ]
    for index, (name, values) in enumerate(rows):
        if index == len(report.classes):
            lines.append("-" * (width + 11 * len(columns)))
        cells = ("-" if value is None else f"{100 * value:.2f}" for value in values)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


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


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as uint8 [H, W, 3], BGR.

    Raises:
        EvaluationError: The file cannot be read as an image.
    """
    cv2 = _cv2()
    image = cv2.imdecode(np.frombuffer(_bytes(path), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise EvaluationError(f"{path} cannot be read as an image", fix="Replace the file.")
    return np.asarray(image, np.uint8)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read an index PNG as uint8 [H, W], the stored ids, with or without a palette.

    OpenCV turns palette ids into colours and stretches ids of under 8 bits to 0..255, so
    the file is first relabelled as greyscale and the stretch undone.

    Source: PNG specification (third edition), 11.2.1 IHDR and 11.2.2 PLTE.

    Raises:
        EvaluationError: The file is damaged, is no PNG, or has colours or 16 bits.
    """
    data = _bytes(path)
    if not data.startswith(_PNG_SIGNATURE):
        raise EvaluationError(f"{path} is not a PNG file", fix=_MASK_FIX)
    try:
        bits, colour, grey = _as_greyscale(data)
    except (struct.error, ValueError) as error:
        raise EvaluationError(
            f"{path} is damaged or cut off ({error})", fix="Replace the file."
        ) from error
    if colour not in (_GREY, _PALETTE):
        raise EvaluationError(f"{path} holds colours, not one class id a pixel", fix=_MASK_FIX)
    if bits > 8:
        raise EvaluationError(f"{path} has {bits} bits a pixel", fix=_MASK_FIX)
    cv2 = _cv2()
    mask = cv2.imdecode(np.frombuffer(grey, np.uint8), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2:
        raise EvaluationError(f"{path} cannot be decoded", fix="Replace the file.")
    return np.asarray(mask // (255 // (2**bits - 1)), np.uint8)


def _as_greyscale(png: bytes) -> tuple[int, int, bytes]:
    """Return bit depth, colour type and the PNG with its ids stored as grey values."""
    kept = [_PNG_SIGNATURE]
    bits = colour = 0
    position = len(_PNG_SIGNATURE)
    while True:
        length, kind = struct.unpack_from(">I4s", png, position)
        body = png[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", png, position + 8 + length)
        if zlib.crc32(kind + body) != checksum:
            raise ValueError("checksum of a chunk is wrong")
        position += 12 + length
        if kind == b"IHDR":
            bits, colour = struct.unpack_from(">BB", body, 8)
            body = body[:9] + bytes([_GREY]) + body[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(struct.pack(">I", length) + kind + body)
            kept.append(struct.pack(">I", zlib.crc32(kind + body)))
        if kind == b"IEND":
            return bits, colour, b"".join(kept)


def _frames(
    pairs: Sequence[Pair], read: Callable[[Path], NDArray[np.uint8]]
) -> Iterator[tuple[Pair, NDArray[np.uint8], NDArray[np.uint8]]]:
    for pair in pairs:
        frame, mask = read(pair.image), read_mask(pair.mask)
        if frame.shape[:2] != mask.shape:
            raise EvaluationError(
                f"{pair.image} is {_size(frame)}, its mask {pair.mask} is {_size(mask)}",
                fix="Give masks of the size of their images.",
            )
        yield pair, frame, mask


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


def _predicted(
    predict: Predict, frame: NDArray[np.uint8], path: Path, clusters: int
) -> NDArray[Any]:
    ids = np.asarray(predict(frame))
    if ids.shape != frame.shape[:2] or ids.dtype.kind not in "iu":
        raise EvaluationError(
            f"the prediction for {path} is {ids.dtype} {list(ids.shape)}, "
            f"not integers {list(frame.shape[:2])}",
            fix="Return one cluster id for each pixel of the frame.",
        )
    if ids.max() >= clusters:
        raise EvaluationError(
            f"the prediction for {path} has cluster {int(ids.max())}, but there are {clusters}",
            fix="Pass the number of clusters of the codebook.",
        )
    return ids


def _named_map(
    named: Mapping[int, str], class_names: Sequence[str], clusters: int
) -> NDArray[np.int64] | None:
    """Return the class of each cluster by its name, or None where no name is a class."""
    ids = {name.strip().casefold(): index for index, name in enumerate(class_names)}
    mapping: NDArray[np.int64] = np.full(clusters, UNMATCHED, np.int64)
    for cluster, name in named.items():
        mapping[cluster] = ids.get(name.strip().casefold(), UNMATCHED)
    return None if (mapping == UNMATCHED).all() else mapping


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


def _cv2() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependency(
            "evaluation reads images with OpenCV, which is not installed",
            fix="Run `pip install 'aeseg_edge[cpu]'`; on a Jetson install JetPack's OpenCV.",
        ) from error
    return cv2
