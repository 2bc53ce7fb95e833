"""What of its footage stays beside a checkpoint: a sample of frames, and the region of interest."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import Geometry, fit_region, resize_picture
from aeseg_edge.errors import TrainingError, UsageError
from aeseg_edge.export.checkpoint import read_file
from aeseg_edge.sources.images import read_grey
from aeseg_edge.support.evenly import evenly
from aeseg_edge.support.files import write_bytes, write_error
from aeseg_edge.support.require import import_cv2

_log = logging.getLogger(__name__)

FRAMES = "frames"
SIZES = "sizes.json"
REGION = "region.png"
_OURS = re.compile(r"\d{6}(\.planes\d+)?\.(jpg|png)")

KEPT_FRAMES = 256
"""Frames that stay: enough for ranges, agreement and K up to 1024."""


def save_frames(
    folder: Path, frames: NDArray[np.uint8], sizes: NDArray[np.int64] | None = None
) -> None:
    """Keep a sample of the footage, uint8 [N, H, W, C], in place of an older one.

    Three channels are stored as JPEG of quality 95 without colour subsampling, other numbers as
    PNG, which loses nothing: what PNG has no form for as grey planes under one another. ``sizes``,
    int64 [N, 2]: rows and columns of each at its source, None where not known. TrainingError if the
    disk is full; an older sample stays.
    """
    cv2 = import_cv2()
    suffix, options = ".png", []
    if frames.shape[3] == 3:
        suffix = ".jpg"
        options = [cv2.IMWRITE_JPEG_QUALITY, 95]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    fresh, old = folder / f"{FRAMES}.new", folder / f"{FRAMES}.old"
    for left_over in (fresh, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        for index, frame in enumerate(frames):
            name, picture = f"{index:06d}{suffix}", frame
            if frame.shape[2] not in (1, 3, 4):
                name = f"{index:06d}.planes{frame.shape[2]}{suffix}"
                picture = np.concatenate(list(frame.transpose(2, 0, 1)))
            (fresh / name).write_bytes(cv2.imencode(suffix, picture, options)[1])
        if sizes is not None:
            (fresh / SIZES).write_text(json.dumps(sizes.tolist()))
        # A folder cannot be replaced in one step; the old one steps aside first.
        if (folder / FRAMES).exists():
            (folder / FRAMES).rename(old)
        fresh.rename(folder / FRAMES)
    except OSError as problem:
        raise write_error(folder / FRAMES, problem, error=TrainingError) from problem
    finally:
        if old.exists() and not (folder / FRAMES).exists():
            old.rename(folder / FRAMES)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def keep_frames(
    folder: Path,
    frames: NDArray[np.uint8],
    *,
    sizes: NDArray[np.int64] | None = None,
    wanted: bool,
) -> None:
    """Keep an even sample (see ``save_frames``), or, not wanted, forget an earlier run's."""
    if wanted:
        chosen = evenly(len(frames), KEPT_FRAMES)
        save_frames(folder, frames[chosen], None if sizes is None else sizes[chosen])
    else:
        forget_frames(folder)


def fingerprint(folder: Path) -> str | None:
    """Give what tells the frames kept from others; None where there are none."""
    paths = sorted((folder / FRAMES).glob("[0-9]*.*"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(read_file(path)).digest())
    return digest.hexdigest() if paths else None


def check_foreign(folder: Path) -> None:
    """Refuse a folder of frames with files that no training wrote: they would be lost."""
    names = {path.name for path in (folder / FRAMES).glob("*")} - {SIZES}
    foreign = sorted(name for name in names if not _OURS.fullmatch(name))
    if foreign:
        raise TrainingError(
            f"{folder / FRAMES} holds files that no training wrote ({foreign[0]}, "
            f"{len(foreign)} in all), and this one would replace them",
            fix="Move them elsewhere, or give the bundle another name.",
        )


def forget_frames(folder: Path) -> None:
    """Remove the sample of frames, and what a crash while one was saved may have left."""
    for name in (FRAMES, f"{FRAMES}.new", f"{FRAMES}.old"):
        shutil.rmtree(folder / name, ignore_errors=True)


@dataclass(frozen=True)
class Kept:
    """Frames kept beside a checkpoint, uint8 [N, H, W, C], and sizes where there are bars."""

    frames: NDArray[np.uint8]
    sizes: NDArray[np.int64] | None


def load_kept(folder: Path, trained: Geometry, expected: str | None) -> Kept:
    """Read what is kept, and say so where it is not what ``expected``, a fingerprint, is of.

    TrainingError if none were kept, one is damaged, or they cannot be of a network that was
    trained at ``trained``.
    """
    frames = load_frames(folder)
    _, rows, columns, channels = frames.shape
    if (columns, rows, channels) != (trained.width, trained.height, trained.channels):
        raise TrainingError(
            f"the frames in {folder / FRAMES} are {columns}x{rows} of {channels} channels, and the "
            f"network was trained on {trained.width}x{trained.height} of {trained.channels}: they "
            "are of another training",
            fix=f"Give the footage: aeseg export {folder} SOURCE, or train again.",
        )
    if expected is not None and fingerprint(folder) != expected:
        _log.warning(
            "the frames in %s are not those that the training left there: what they show now "
            "decides about clusters and ranges",
            folder / FRAMES,
        )
    return Kept(frames, load_sizes(folder) if trained.resize == "letterbox" else None)


def load_frames(folder: Path) -> NDArray[np.uint8]:
    """Read the frames kept, uint8 [N, H, W, C]; TrainingError if none, or one is damaged."""
    cv2 = import_cv2()
    paths = sorted((folder / FRAMES).glob("[0-9]*.*"))
    if not paths:
        raise TrainingError(
            f"{folder} keeps no frames", fix="Give the footage again: aeseg export ... SOURCE."
        )
    frames: list[NDArray[np.uint8]] = []
    for path in paths:
        data = np.frombuffer(read_file(path), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        planes = re.search(r"\.planes(\d+)\.", path.name)
        if image is not None and image.ndim == 2:
            count = int(planes[1]) if planes else 1
            if image.shape[0] % count == 0:
                image = np.stack(np.split(image, count), axis=2)
        if image is None or (frames and image.shape != frames[0].shape):
            raise TrainingError(
                f"{path} is damaged", fix=f"Delete {folder / FRAMES} and give the footage again."
            )
        frames.append(image)
    return np.stack(frames)


def load_sizes(folder: Path) -> NDArray[np.int64] | None:
    """Read the sizes of kept frames at their source, int64 [N, 2]; None in older folders."""
    path = folder / FRAMES / SIZES
    if not path.exists():
        return None
    damaged = TrainingError(
        f"{path} is damaged", fix=f"Delete {folder / FRAMES} and give the footage again."
    )
    try:
        sizes = np.array(json.loads(read_file(path)), np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged from error
    count = len(list((folder / FRAMES).glob("[0-9]*.*")))
    if sizes.shape != (count, 2) or sizes.min(initial=1) < 1:
        raise damaged
    return sizes


def save_region(folder: Path, region: NDArray[np.uint8] | None) -> None:
    """Keep a region of interest, uint8 [h, w], for later exports; forget an older one with None."""
    path = folder / REGION
    if region is None:
        path.unlink(missing_ok=True)
        return
    _, data = import_cv2().imencode(".png", region)
    write_bytes(path, data.tobytes(), error=TrainingError)


def load_region(folder: Path) -> NDArray[np.uint8] | None:
    """Read the region of interest, uint8 [h, w] or None; TrainingError if the file is damaged."""
    path = folder / REGION
    if not path.exists():
        return None
    region = read_grey(path)
    if region is None:
        raise TrainingError(f"{path} is damaged", fix="Give the mask again: --roi MASK.")
    return region


def resize_frames(frames: NDArray[np.uint8], geometry: Geometry, *, fix: str) -> NDArray[np.uint8]:
    """Bring kept frames, uint8 [N, H, W, C], to the size of an export.

    Bars of letterboxed frames stay in place at their own aspect only: UsageError with ``fix`` at
    another.
    """
    rows, columns = frames.shape[1:3]
    size = geometry.width, geometry.height
    if (columns, rows) == size:
        return frames
    if geometry.resize == "letterbox" and columns * size[1] != rows * size[0]:
        raise UsageError(
            f"the frames kept are {columns}x{rows}, letterboxed, and {size[0]}x{size[1]} has "
            "another aspect: they would be distorted",
            fix=fix,
        )
    return np.stack([resize_picture(frame, *size) for frame in frames])


def frame_region(region: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Lay a region, uint8 [h, w], over the graph's input: uint8 [H, W], 255 inside, 0 in bars."""
    top, left, rows, columns = geometry.box(*region.shape[:2])
    inside = np.zeros((geometry.height, geometry.width), np.uint8)
    picture = np.where(fit_region(region, rows, columns), 0, 255)
    inside[top : top + rows, left : left + columns] = picture
    return inside
