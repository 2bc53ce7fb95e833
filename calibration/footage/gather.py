"""Footage: any mix of unlabelled sources -> frames to learn from, at the training size.

Sources are counted first, the budget of frames is shared in proportion to length, and
each source is read once, in order. A video is never held in memory: the peak is about

    (1 + holdout) * max_frames * width * height * channels bytes,

so 600 frames of 480x360x3 need 342 MB, and one frame at its own size on top.

Near-duplicates: two frames are compared as 32x32 grey thumbnails (area-averaged, which
removes noise). Their distance is the mean over the 10 cells (1 %) that changed most, in
grey levels. The usual mean over the whole picture would call two frames of a fixed camera
equal although people walk through them; a few cells see a person that fills one of them.

Held-out frames come in 1 to 4 blocks of consecutive frames a source, at places that the
seed decides: single frames drawn at random would each lie between two training frames of
the same video that look nearly the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.manifest import Modality
from aeseg_edge.calibration.footage.pairs import open_footage
from aeseg_edge.calibration.footage.readers import MIN_SIDE, Reader, Sizes
from aeseg_edge.errors import FootageError, UsageError
from aeseg_edge.support.require import import_cv2

Image = NDArray[np.uint8]
Progress = Callable[[int, int, str], None]
"""(done, total, source): frames decoded of all, and what is being read."""

THUMBNAIL = 32
CHANGED_CELLS = 10
DUPLICATE_LEVELS = 4.0
"""Grey levels: a frame nearer than this to a kept neighbour is dropped."""
NEIGHBOURS = 32
"""How many of the last kept frames a frame is compared with."""
MIN_KEPT = 48
"""If fewer would be left, the most different of the dropped frames come back."""
MIN_FRAMES = 2
"""One to learn from, one to validate on."""
HELD_OUT_BLOCK = 8
"""Frames: shorter blocks would mostly be borders to training frames."""
MAX_BLOCKS = 4


@dataclass(frozen=True)
class SourceReport:
    """What became of one source.

    Attributes:
        source: Path or pattern as given.
        kind: ``video``, ``folder``, ``glob``, ``zip`` or ``images``.
        found: Frames that it holds.
        sampled: Frames read, before near-duplicates were dropped.
        duplicates: Near-duplicates dropped.
        kept: Frames kept, for training and held out together.
        unreadable: Names of files and entries that could not be decoded.
        too_small: Names of those under ``MIN_SIDE`` pixels a side.
        warnings: Sentences for a person.
    """

    source: str
    kind: str
    found: int
    sampled: int
    duplicates: int
    kept: int
    unreadable: tuple[str, ...]
    too_small: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class FootageReport:
    """What became of all sources; licences are the caller's to add.

    Attributes:
        sources: One entry a source, in the order given.
        frames: Training frames.
        held_out: Held-out frames.
        duplicate_levels: Threshold of the near-duplicate measure, grey levels.
        warnings: Sentences for a person that concern no single source.
    """

    sources: tuple[SourceReport, ...]
    frames: int
    held_out: int
    duplicate_levels: float = DUPLICATE_LEVELS
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dictionaries and numbers."""
        return asdict(self)

    def summary(self) -> str:
        """Return one line for a log."""
        found = sum(source.found for source in self.sources)
        dropped = sum(source.duplicates for source in self.sources)
        skipped = sum(len(source.unreadable) + len(source.too_small) for source in self.sources)
        return (
            f"{self.frames} training and {self.held_out} held-out frames of {found}; "
            f"{dropped} near-duplicates dropped, {skipped} unreadable or too small"
        )


@dataclass(frozen=True)
class Footage:
    """Frames at the training size, in memory.

    Attributes:
        frames: uint8 [N, H, W, C], BGR as OpenCV delivers it; by source, then by time.
        held_out: uint8 [M, H, W, C], for validation; likewise ordered.
        report: Where they came from.
        sizes: int64 [N + M, 2], rows and columns of each before it was brought to the training
            size, those held out last; None where not known.
    """

    frames: Image
    held_out: Image
    report: FootageReport
    sizes: NDArray[np.int64] | None = None


def gather(
    sources: Sequence[str | Path],
    *,
    size: tuple[int, int],
    channels: int = 3,
    resize: str = "stretch",
    max_frames: int = 600,
    holdout: float = 0.1,
    seed: int = 0,
    modalities: Sequence[Modality] = (),
    progress: Progress | None = None,
) -> Footage:
    """Read footage and choose the frames to learn from.

    The same sources, options and seed give the same frames.

    Args:
        sources: Videos, folders (searched to any depth), globs, zips of images, images.
        size: Width and height in pixels of the frames to train on.
        channels: C: 3 for colour, 1 for grey, 4 for four-channel images.
        resize: ``stretch`` or ``letterbox``, as in the bundle's geometry.
        max_frames: Budget over all sources, shared in proportion to their lengths.
        holdout: Share held out for validation, 0 for none, below 1.
        seed: Decides where the held-out blocks lie.
        modalities: What the channels are, where the sources are ``pairs://``.
        progress: Called while reading.

    Returns:
        The frames, with a report that names every file that was skipped.

    Raises:
        FootageError: If a source does not exist or holds no images or videos, or if fewer
            than two different frames can be read.
        UsageError: If an option is out of range.
    """
    geometry = Geometry(size[0], size[1], channels, resize)
    _check_options(sources, 3 if modalities else channels, max_frames, holdout)
    readers = open_footage(sources, modalities)
    frames, origin, sizes = _read(readers, geometry, max_frames, progress)
    kept = distinct(thumbnails(frames))
    if kept.sum() < MIN_FRAMES:
        raise _too_few(readers, len(frames))
    held = np.zeros(len(frames), np.bool_)
    counts = np.bincount(origin[kept], minlength=len(readers))
    held[kept] = held_out_blocks(counts.tolist(), holdout, seed)
    report = FootageReport(
        tuple(_report(reader, kept[origin == i]) for i, reader in enumerate(readers)),
        frames=int((kept & ~held).sum()),
        held_out=int(held.sum()),
    )
    sizes = np.concatenate([sizes[kept & ~held], sizes[held]])
    return Footage(*_split(frames, kept, held), report, sizes)


def thumbnails(images: Image) -> NDArray[np.int16]:
    """Make what near-duplicates are found by: uint8 [N, H, W, C] -> int16 [N, 1024].

    Grey levels 0..255 of 32x32 cells; channels after the third are left out.
    """
    cv2 = import_cv2()
    result = np.empty((len(images), THUMBNAIL * THUMBNAIL), np.int16)
    for row, image in zip(result, images, strict=True):
        grey = (
            image[..., 0]
            if image.shape[2] < 3
            else cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY)
        )
        small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        row[:] = small.ravel()
    return result


def distinct(thumbs: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Find the frames, by their thumbnails, that are no near-duplicates of one kept before them.

    A frame stays if its distance (see the module) to each of the last ``NEIGHBOURS``
    kept frames is at least ``DUPLICATE_LEVELS``, and no kept frame at all has the very
    same thumbnail. On test footage, consecutive frames of a 25 fps motorway drive lie at
    11 to 31, of a fixed camera with walking people at 8 to 77 (1st to 90th percentile),
    and two exposures of one scene with noise of 5 to 10 grey levels or JPEG coding at
    1 to 2. Where fewer than ``MIN_KEPT`` would stay (a scene that hardly changes), the
    dropped frames that differ most from the kept ones come back, farthest first
    (Gonzalez, Theoretical Computer Science 38, 1985); never one with distance 0.
    Returns bool [N], True for frames to keep, the first always.
    """
    kept: list[int] = []
    seen: set[bytes] = set()
    for index, thumb in enumerate(thumbs):
        same = thumb.tobytes() in seen
        if same or (_distances(thumb, thumbs[kept[-NEIGHBOURS:]]) < DUPLICATE_LEVELS).any():
            continue
        kept.append(index)
        seen.add(thumb.tobytes())
    if len(kept) < min(MIN_KEPT, len(thumbs)):
        nearest = np.min([_distances(thumbs[index], thumbs) for index in kept], axis=0)
        while len(kept) < MIN_KEPT and nearest.max() > 0:
            kept.append(int(nearest.argmax()))
            nearest = np.minimum(nearest, _distances(thumbs[kept[-1]], thumbs))
    mask = np.zeros(len(thumbs), np.bool_)
    mask[kept] = True
    return mask


def held_out_blocks(counts: Sequence[int], holdout: float, seed: int) -> NDArray[np.bool_]:
    """Choose the held-out frames: blocks of consecutive frames inside each source.

    ``counts`` are the kept frames of each source, ``holdout`` the share, 0 for none, below 1.
    Returns bool [N] over all kept frames, True for those held out. With a share above 0 at
    least one is held out, and at least one never is.
    """
    generator = np.random.default_rng(seed)
    total = int(sum(counts))
    wanted = min(max(1, round(holdout * total)), total - 1) if holdout else 0
    mask = np.zeros(total, np.bool_)
    start = 0
    for count, held in zip(counts, share(counts, wanted), strict=True):
        blocks = min(MAX_BLOCKS, max(1, held // HELD_OUT_BLOCK))
        for block in range(blocks):
            # Equal parts of the source, one block somewhere in each.
            first, last = block * count // blocks, (block + 1) * count // blocks
            length = (block + 1) * held // blocks - block * held // blocks
            place = start + first + int(generator.integers(last - first - length + 1))
            mask[place : place + length] = True
        start += count
    return mask


def share(counts: Sequence[int], budget: int) -> list[int]:
    """Share a budget in proportion to counts (largest remainders, first come on a tie).

    No share exceeds its count; their sum is ``min(budget, sum(counts))``.
    """
    total = int(sum(counts))
    if total <= budget:
        return [int(count) for count in counts]
    shares = [int(count) * budget // total for count in counts]
    remainders = [int(count) * budget % total for count in counts]
    for index in sorted(range(len(shares)), key=lambda i: -remainders[i])[: budget - sum(shares)]:
        shares[index] += 1
    return shares


def _distances(thumb: NDArray[np.int16], others: NDArray[np.int16]) -> NDArray[np.float64]:
    """Mean of the most changed cells, grey levels: [P] against [M, P] -> [M]."""
    changes = np.abs(others - thumb)
    cells = min(CHANGED_CELLS, changes.shape[1])
    return np.asarray(np.partition(changes, -cells, axis=1)[:, -cells:].mean(axis=1))


def _check_options(
    sources: Sequence[str | Path], channels: int, max_frames: int, holdout: float
) -> None:
    if isinstance(sources, str | Path) or not sources:
        raise UsageError("no list of sources is given", fix="Give at least one SOURCE.")
    if channels not in (1, 3, 4):
        raise UsageError(f"{channels} channels cannot be read from files", fix="Use 1, 3 or 4.")
    if max_frames < MIN_FRAMES:
        raise UsageError(f"a budget of {max_frames} frames is too small", fix="Give 2 or more.")
    if not 0 <= holdout < 1:
        raise UsageError(
            f"held-out share {holdout} is not within 0..1", fix="Use 0.1, or 0 for none."
        )


def _read(
    readers: Sequence[Reader], geometry: Geometry, max_frames: int, progress: Progress | None
) -> tuple[Image, NDArray[np.int64], NDArray[np.int64]]:
    """Read the budget of each source; return frames, and the source index and size of each."""
    budgets = share([reader.found for reader in readers], max_frames)
    total = sum(reader.work(budget) for reader, budget in zip(readers, budgets, strict=True))
    done = 0
    frames = np.empty((sum(budgets), geometry.height, geometry.width, geometry.channels), np.uint8)
    origin: list[int] = []
    sizes: Sizes = []
    for index, (reader, budget) in enumerate(zip(readers, budgets, strict=True)):

        def tick(source: str = reader.source) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(min(done, total), total, source)

        start = len(origin)
        sizes += reader.sample(frames[start : start + budget], geometry, tick)
        origin += [index] * (len(sizes) - start)
    count = len(origin)
    return frames[:count], np.array(origin, np.int64), np.array(sizes, np.int64).reshape(count, 2)


def _split(frames: Image, kept: NDArray[np.bool_], held: NDArray[np.bool_]) -> tuple[Image, Image]:
    """Part training from held-out frames, the former in place: memory must not double."""
    held_out = frames[held]
    chosen = np.flatnonzero(kept & ~held)
    for place, index in enumerate(chosen):
        if place != index:
            frames[place] = frames[index]
    return frames[: len(chosen)], held_out


def _report(reader: Reader, kept: NDArray[np.bool_]) -> SourceReport:
    """Report one source; ``kept`` is bool [frames read from it]."""
    if len(kept) and not kept.any():
        reader.notes.warn(f"{reader.source} only repeats frames of the sources before it")
    elif kept.sum() < 0.5 * len(kept):
        reader.notes.warn(
            f"{reader.source} hardly changes: {kept.sum()} of {len(kept)} frames read differ"
        )
    return SourceReport(
        source=reader.source,
        kind=reader.kind,
        found=reader.found,
        sampled=len(kept),
        duplicates=int((~kept).sum()),
        kept=int(kept.sum()),
        unreadable=tuple(reader.notes.unreadable),
        too_small=tuple(reader.notes.too_small),
        warnings=tuple(reader.notes.warnings),
    )


def _too_few(readers: Sequence[Reader], read: int) -> FootageError:
    """Say why there is nothing to learn from, naming the first culprit."""
    names = ", ".join(reader.source for reader in readers)
    small = {name: size for reader in readers for name, size in reader.notes.too_small.items()}
    broken = {name: why for reader in readers for name, why in reader.notes.unreadable.items()}
    if read > 1:
        return FootageError(
            f"all {read} frames read from {names} show the same picture",
            fix="Give footage in which something moves, or several pictures.",
        )
    if small:
        name, size = next(iter(small.items()))
        problem = f"{name} is {size} pixels, and footage needs {MIN_SIDE} or more a side"
    elif broken:
        name, why = next(iter(broken.items()))
        problem = f"{name} {why}"
    else:
        problem = f"{names} gives {read} frame, and training needs {MIN_FRAMES} or more"
    others = len(small) + len(broken) - 1
    if others > 0:
        problem += f" (and {others} more files like it)"
    return FootageError(
        problem, fix="Give videos, folders, globs or zips with at least two usable pictures."
    )
