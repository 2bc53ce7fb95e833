"""Labelled scenes of several modalities, for `aeseg eval`."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.manifest import Manifest
from aeseg_edge.calibration.footage.masks import Pair
from aeseg_edge.errors import EvaluationError
from aeseg_edge.sources.depth import footage_of, once
from aeseg_edge.sources.pairs import open_pairs, read_pair, with_ranges
from aeseg_edge.sources.registry import check_modalities

_log = logging.getLogger(__name__)


class LabelledScenes:
    """Paired folders with a mask (an index PNG, named as the scene) for each scene.

    Attributes:
        pairs: One a scene: the first modality's file stands for all.

    Raises:
        SourceError: If the modalities are not the bundle's; see ``open_pairs``.
        EvaluationError: If a scene has no mask, or two have one name.
    """

    def __init__(self, uri: str, masks: Path, manifest: Manifest) -> None:
        check_modalities(uri, manifest.modalities)
        scenes = open_pairs(with_ranges(uri, footage_of(manifest.provenance)), manifest.modalities)
        self._scenes, self._warn = scenes, once(_log.warning)
        self._files = {files[0]: files for files in scenes.files}
        self.pairs = tuple(Pair(first, masks / f"{first.stem}.png") for first in self._files)
        first = {pair.mask: pair.image for pair in reversed(self.pairs)}
        if twice := [pair for pair in self.pairs if first[pair.mask] != pair.image]:
            raise EvaluationError(
                f"{first[twice[0].mask]} and {twice[0].image} would have one mask, {twice[0].mask}",
                fix="Give scenes of different folders different names.",
            )
        missing = [pair.mask for pair in self.pairs if not pair.mask.is_file()]
        if missing:
            raise EvaluationError(
                f"{len(missing)} scenes have no mask, such as {missing[0]}",
                fix="Name masks as the pictures, or take scenes without one out of the folders.",
            )

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Read the scene that a first modality's file stands for: uint8 [H, W, C].

        Raises:
            EvaluationError: If a picture cannot be read.
        """
        image = read_pair(
            self._files[path], self._scenes.modalities, self._scenes.levels, self._warn
        )
        if isinstance(image, str):
            raise EvaluationError(image, fix="Replace the file.")
        return image
