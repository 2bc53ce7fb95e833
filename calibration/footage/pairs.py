"""Paired folders as footage: several pictures of one scene, one frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import Geometry, fit_frame
from aeseg_edge.bundle.manifest import Modality
from aeseg_edge.calibration.footage.readers import Notes, Reader, Sizes, open_sources
from aeseg_edge.errors import UsageError
from aeseg_edge.sources.depth import once
from aeseg_edge.sources.pairs import Pairs, is_pairs, open_pairs, read_pair
from aeseg_edge.sources.registry import check_modalities
from aeseg_edge.support.evenly import middles


class PairReader(Reader):
    """Scenes of paired folders, from ``open_pairs``, in the order of their names."""

    kind = "pairs"

    def __init__(self, pairs: Pairs) -> None:
        self.source = pairs.name
        self.found = len(pairs.files)
        self.notes = Notes()
        self._pairs = pairs
        for path in pairs.unpaired:
            self.notes.unreadable[str(path)] = "has no partner"

    def sample(
        self, room: NDArray[np.uint8], geometry: Geometry, tick: Callable[[], None]
    ) -> Sizes:
        """Read scenes; SourceError if the pictures of a pair have different sizes."""
        written: Sizes = []
        warn = once(self.notes.warn)
        for index in middles(self.found, len(room)):
            files = self._pairs.files[index]
            tick()
            image = read_pair(files, self._pairs.modalities, self._pairs.levels, warn)
            if isinstance(image, str):
                self.notes.skip(str(files[0]), f"is one of a pair of which {image}")
            elif self.notes.large_enough(str(files[0]), image):
                room[len(written)] = fit_frame(image, geometry)
                written.append((image.shape[0], image.shape[1]))
        return written


def find_modalities(sources: Sequence[str | Path]) -> tuple[Modality, ...]:
    """Give names and channels of footage's modalities, in order; empty for plain footage.

    Raises:
        SourceError: See ``open_pairs``.
        UsageError: If paired folders are mixed with other footage.
    """
    pairs = [str(source) for source in sources if is_pairs(source)]
    if not pairs:
        return ()
    if len(pairs) < len(sources):
        other = next(source for source in sources if not is_pairs(source))
        raise UsageError(
            f"{other} has one modality, and {pairs[0]} has several",
            fix="Give paired folders only, or none.",
        )
    modalities = open_pairs(pairs[0]).modalities
    for each in pairs[1:]:
        open_pairs(each, modalities)
    return modalities


def open_footage(sources: Sequence[str | Path], modalities: Sequence[Modality]) -> list[Reader]:
    """Open sources as ``open_sources`` does, or paired folders where there are modalities.

    SourceError if a source does not have these modalities; see ``open_pairs``.
    """
    for source in sources:
        check_modalities(str(source), modalities)
    if not modalities:
        return open_sources(sources)
    return [PairReader(open_pairs(str(source), modalities)) for source in sources]
