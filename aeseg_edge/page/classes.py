"""What the live page may do to the classes of a running segmenter."""

from __future__ import annotations

import contextlib
import logging
import threading
from itertools import chain, count
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.classes import Edit
from aeseg_edge.bundle.codebook import VOID, Codebook
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.pretrained import is_pretrained
from aeseg_edge.errors import AesegError, BundleError, UsageError

if TYPE_CHECKING:
    from aeseg_edge.segment.segmenter import Segmenter

_log = logging.getLogger(__name__)

_STEPS_BACK = 100


class LiveClasses:
    """Edits the codebook of a segmenter while it runs, and saves it into its bundle.

    Calls may come from any thread.

    Args:
        segmenter: The running one. Its backend takes a codebook between two frames.
        path: The bundle's file; the one it was read from when None.
    """

    def __init__(self, segmenter: Segmenter, path: Path | None = None) -> None:
        self._segmenter = segmenter
        self._path = path or segmenter.bundle.path
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._before: list[Codebook] = []
        self._saved = segmenter.codebook
        self._on_disk = segmenter.bundle.codebook
        self._draft: Path | None = None
        self._drafted: Codebook | None = None

    @property
    def unsaved(self) -> bool:
        """True where the codebook in use is not the one in the bundle."""
        return self._segmenter.codebook is not self._saved

    @property
    def can_undo(self) -> bool:
        """True where there is an edit to take back."""
        return bool(self._before)

    @property
    def geometry(self) -> Geometry:
        """How frames lie on the graph's input."""
        return self._segmenter.manifest.geometry

    @property
    def title(self) -> str:
        """Name of the bundle's file without its suffix."""
        return self._path.stem if self._path is not None else "unnamed bundle"

    def current(self) -> Codebook:
        """Give the codebook in use."""
        return self._segmenter.codebook

    def apply(self, edit: Edit) -> Codebook:
        """Change the codebook in use; CodebookError if the edit does not fit."""
        with self._lock:
            before = self._segmenter.codebook
            after = edit(before)
            if after is not before:
                self._segmenter.set_codebook(after)
                self._before = [*self._before, before][-_STEPS_BACK:]
            return after

    def undo(self) -> Codebook:
        """Take the last edit back; UsageError if there is none."""
        with self._lock:
            if not self._before:
                raise UsageError("there is nothing to take back", fix="Change a class first.")
            before = self._before.pop()
            self._segmenter.set_codebook(before)
            return before

    def save(self) -> None:
        """Write the codebook in use into the bundle's file, atomically.

        BundleError if the bundle has no file, the file is another one by now or comes with the
        package, or it cannot be written. Edits are kept.
        """
        if self._path is None:
            raise BundleError("this bundle was never a file", fix="Write it first: Bundle.write.")
        if is_pretrained(self._path):
            raise BundleError(
                f"{self._path} comes with the package, and is not changed",
                fix="Copy it, and start again with the copy: aeseg run ... -b COPY.aeseg.",
            )
        # Two people who save at once: one after the other, the later one last.
        with self._writing:
            codebook, bundle = self._segmenter.codebook, self._segmenter.bundle
            whole = bundle
            if bundle.path is not None:
                # From its file: in use it may have another size, which is not for keeps.
                whole = Bundle.open(bundle.path)
                self._check_unchanged(whole)
            whole.with_codebook(codebook).write(self._path)
            self._saved = codebook
            self._drop_draft()
            if bundle.path is not None and bundle.path.resolve() == self._path.resolve():
                self._on_disk = codebook

    def keep_edits(self) -> None:
        """Write unsaved edits as ``keep_draft`` does, for the case that this run is killed.

        Each time over the last; ``save`` and edits that were taken back remove it.
        """
        with self._writing:
            if _same_names(self._segmenter.codebook, self._saved):
                self._drop_draft()
            elif self._path is not None and self._segmenter.codebook is not self._drafted:
                try:
                    self._write_draft()
                except AesegError as error:
                    _log.debug("no draft: %s", error)

    def keep_draft(self) -> Path | None:
        """Write edits that were never saved as a bundle beside the bundle, and log where they are.

        For the end of a run. An earlier run's draft is left alone; the pretrained bundle's goes
        into the working folder. None where there is nothing to keep, or it cannot be written,
        which is logged too.
        """
        with self._writing:
            if self._path is None or _same_names(self._segmenter.codebook, self._saved):
                self._drop_draft()
                return None
            try:
                draft, replaces = self._write_draft()
            except AesegError as error:
                _log.warning("the classes changed on the live page are lost: %s", error)
                return None
            self._saved, self._draft = self._segmenter.codebook, None
        how = f"mv {quote(str(draft))} {quote(str(self._path))}"
        if not replaces:
            how = f"aeseg run ... -b {quote(str(draft))}"
        _log.warning(
            "the classes changed on the live page were not saved; they are in %s. To use them: %s",
            draft,
            how,
        )
        return draft

    def _write_draft(self) -> tuple[Path, bool]:
        """Write the draft; False where it is none to put in the bundle's place."""
        assert self._path is not None
        book, path, whole, kept = self._segmenter.codebook, self._path, self._segmenter.bundle, True
        try:
            whole = Bundle.open(whole.path or path)
            self._check_unchanged(whole)
        except AesegError:
            # Gone, or another one by now: what this run was started with.
            whole, kept = self._segmenter.bundle, False
        given = is_pretrained(path)
        folder = Path() if given else path.parent
        ends = chain([""], map("-{}".format, count(2)))
        names = (folder / f"{path.stem}.draft{end}.aeseg" for end in ends)
        draft = self._draft or next(each for each in names if not each.exists())
        whole.with_codebook(book).write(draft)
        self._draft, self._drafted = draft, book
        return draft, kept and not given

    def _drop_draft(self) -> None:
        if self._draft is not None:
            with contextlib.suppress(OSError):
                self._draft.unlink()
        self._draft = self._drafted = None

    def _check_unchanged(self, found: Bundle) -> None:
        """Refuse a file that another program has written since it was read or saved here.

        With other graphs these centres would be wrong without a word; with other names those
        would be lost.
        """
        if found.graphs != self._segmenter.bundle.graphs:
            what = "graphs"
        elif not _same_centres(found.codebook, self._on_disk):
            what = "clusters"
        elif not _same_names(found.codebook, self._on_disk):
            what = "names"
        else:
            return
        raise BundleError(
            f"{found.path} has been replaced during this run, and has other {what}",
            fix="Start the run again with the new file, and change its classes there. "
            "Nothing is written.",
        )


def _same_centres(one: Codebook, other: Codebook) -> bool:
    """Compare what assigns clusters."""
    return np.array_equal(one.weights, other.weights) and np.array_equal(one.bias, other.bias)


def _same_names(one: Codebook, other: Codebook) -> bool:
    """Compare what makes classes of clusters."""
    return np.array_equal(one.remap, other.remap) and one.classes == other.classes


def cluster_at(
    codebook: Codebook,
    geometry: Geometry,
    latents: NDArray[np.float32],
    shape: tuple[int, int],
    place: tuple[int, int],
    label: int | None = None,
) -> int:
    """Say which cluster, 0..K-1, the pixel at ``place`` (row, column) of a frame belongs to.

    As in the deployed graph: scores at the places of the latents, float32 [D, h, w] over the
    graph's input, interpolated bilinearly (half-pixel centres, the border repeated), then the
    largest; with ``label``, among the clusters of this class only (void included). The codebook
    is the one that labelled the frame, or has the same weights.
    """
    top, left, rows, columns = geometry.box(*shape)
    _, height, width = latents.shape
    y = (top + (place[0] + 0.5) * rows / shape[0]) * height / geometry.height - 0.5
    x = (left + (place[1] + 0.5) * columns / shape[1]) * width / geometry.width - 0.5
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    corners = np.stack(
        [latents[:, y0, x0], latents[:, y0, x1], latents[:, y1, x0], latents[:, y1, x1]]
    )
    fy, fx = y - y0, x - x0
    weights = np.array([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], np.float32)
    scores = weights @ codebook.scores(corners)
    if label is not None:
        allowed = codebook.remap == (VOID if label == VOID else label)
        if allowed.any():
            scores = np.where(allowed, scores, -np.inf)
    return int(scores.argmax())
