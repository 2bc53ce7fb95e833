"""Training with labels: a per-pixel classifier on the encoder, softmax cross-entropy.

The head (``autoencoder.add_class_head``) ends in a fully connected layer for each pixel,
which is a codebook: ``W = [w, 0]`` and ``b``. So the deployed graph, its precisions and the
agreement gate are those of every other bundle. Scores are upsampled linearly before the
argmax there, and before the softmax here, at the full resolution of the masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from aeseg_edge.bundle.codebook import VOID, Codebook
from aeseg_edge.bundle.geometry import Geometry, fit_frame
from aeseg_edge.calibration.footage.gather import (
    MIN_FRAMES,
    Footage,
    FootageReport,
    Progress,
    SourceReport,
    held_out_blocks,
)
from aeseg_edge.calibration.footage.masks import (
    Pair,
    PictureReader,
    evenly_spaced,
    find_pairs,
    fit_mask,
    labelled_frames,
)
from aeseg_edge.calibration.labels.naming import class_weights, mask_classes
from aeseg_edge.calibration.score.counts import ConfusionMatrix, score
from aeseg_edge.errors import FootageError, TrainingError, UsageError
from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.training.augment import Augmentation
from aeseg_edge.export.training.losses import Batch
from aeseg_edge.export.training.settings import CLASS_WEIGHTS, TUNE

HEAD_CHANNELS = 64

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class LabelledFootage:
    """Frames and their masks, uint8 [N, H, W] class ids, at the training size and in one order.

    Of the training frames, and of those held out; 255 does not count.
    """

    footage: Footage
    masks: Mask
    held_out_masks: Mask
    class_names: tuple[str, ...]

    def pixels(self) -> NDArray[np.int64]:
        """Count the training pixels of each class, int64 [C]."""
        counts = np.zeros(VOID + 1, np.int64)
        for mask in self.masks:
            counts += np.bincount(mask.ravel(), minlength=VOID + 1)
        return counts[: len(self.class_names)]


def gather_labelled(
    images: Path,
    masks: Path,
    class_names: Sequence[str],
    *,
    ignore: int | None,
    geometry: Geometry,
    max_frames: int = 600,
    holdout: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> LabelledFootage:
    """Read a folder of images and the masks of the same names, and check every one.

    Near-duplicates stay: somebody labelled them. Held-out frames come in blocks, as they do for
    footage without labels. EvaluationError if a partner is missing, sizes differ, or a mask holds a
    value that is neither a class nor ignored; FootageError if there are too few frames, or no
    label; UsageError if the channels cannot be read from images with masks.
    """
    if geometry.channels not in (1, 3):
        raise UsageError(
            f"images with masks have 1 or 3 channels, not {geometry.channels}",
            fix="Use --channels 3 or 1.",
        )
    mask_classes(class_names)  # names that cannot be used are refused before hours of training
    pairs = evenly_spaced(find_pairs(images, masks), max_frames)
    if len(pairs) < MIN_FRAMES:
        raise FootageError(
            f"{images} gives {len(pairs)} labelled frame, and training needs {MIN_FRAMES} or more",
            fix="Label more frames.",
        )
    size = (geometry.height, geometry.width)
    frames = np.empty((len(pairs), *size, geometry.channels), np.uint8)
    labels = np.empty((len(pairs), *size), np.uint8)
    sizes = np.empty((len(pairs), 2), np.int64)
    read = PictureReader(geometry.channels)
    found = labelled_frames(pairs, class_names, ignore=ignore, read=read)
    for index, (pair, frame, mask) in enumerate(found):
        frames[index] = fit_frame(frame, geometry)
        sizes[index] = frame.shape[:2]
        labels[index] = fit_mask(mask, geometry, len(class_names), ignore)
        if progress is not None:
            progress(index + 1, len(pairs), str(pair.image.parent))
    if (labels == VOID).all():
        raise FootageError(
            f"every pixel of the masks in {masks} is ignored", fix="Check --ignore and the masks."
        )
    held = held_out_blocks([len(pairs)], holdout, seed)
    report = FootageReport(
        (_source(images, pairs),), frames=int((~held).sum()), held_out=int(held.sum())
    )
    sizes = np.concatenate([sizes[~held], sizes[held]])
    footage = Footage(frames[~held], frames[held], report, sizes)
    return LabelledFootage(footage, labels[~held], labels[held], tuple(class_names))


def loss_weights(pixels: NDArray[np.int64], kind: str) -> NDArray[np.float32]:
    """Weigh classes for the loss: float32 [C], 1 on average over pixels, 0 where there are none.

    ``power`` is frequency^-0.3; ``log`` 1 / ln(1.02 + frequency) (Paszke et al., ENet,
    arXiv:1606.02147, section 4).
    """
    if kind not in CLASS_WEIGHTS:
        raise UsageError(f"class weights {kind!r} are unknown", fix=f"Use one of {CLASS_WEIGHTS}.")
    if kind == "power":
        return class_weights(pixels).astype(np.float32)
    seen = pixels > 0
    frequency = pixels / pixels.sum()
    weights = np.where(seen, 1 / np.log(1.02 + frequency) if kind == "log" else 1.0, 0.0)
    return np.asarray(weights / (weights * frequency).sum(), np.float32)


class CrossEntropy:
    """Tell the class of every labelled pixel; batches count into the footage that it is made of.

    ``weighting`` is ``none``, ``log`` or ``power``; ``tune`` ``all`` or ``head``; ``start`` what
    the weights started from (the SHA-256 of a checkpoint's), or "". UsageError for others.
    """

    def __init__(
        self, labelled: LabelledFootage, *, weighting: str, tune: str, start: str = ""
    ) -> None:
        if tune not in TUNE:
            raise UsageError(f"tuning {tune!r} is unknown", fix=f"Use one of {TUNE}.")
        self._labelled = labelled
        self._weighting = weighting
        self._tune = tune
        self._start = start
        self._weights = torch.from_numpy(loss_weights(labelled.pixels(), weighting))
        self._matrix: ConfusionMatrix | None = None

    @property
    def augmentation(self) -> Augmentation:
        """Scales from half to twice, as far as windows fit into the frame."""
        return Augmentation(zoom=(0.5, 2.0))

    def identity(self) -> dict[str, Any]:
        """Return what must not change between the runs of one training."""
        digest = hashlib.sha256()
        for part in (self._labelled.masks, self._labelled.held_out_masks):
            digest.update(repr(part.shape).encode())
            digest.update(np.ascontiguousarray(part).data)
        return {
            "class names": list(self._labelled.class_names),
            "labels": digest.hexdigest(),
            "class weights": self._weighting,
            "tune": self._tune,
            "weights to start from": self._start,
        }

    def prepare(self, autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> None:
        """Refuse frames that are not those of the masks, and a network without the head."""
        wanted = (self._labelled.masks.shape, len(self._labelled.class_names))
        if (frames.shape[:3], autoencoder.config.classes) != wanted:
            raise UsageError(
                f"masks {list(wanted[0])} of {wanted[1]} classes do not fit frames "
                f"{list(frames.shape)} and a head of {autoencoder.config.classes} classes",
                fix="Gather frames and masks together.",
            )

    def __call__(self, autoencoder: Autoencoder, batch: Batch) -> Tensor:
        """Return the weighted mean cross-entropy of a batch's labelled pixels, float32 []."""
        if self._tune == "head":
            # Frozen: its batch normalisation must not follow these batches either.
            autoencoder.trunk.eval()
        truth = self._truth(batch)
        scores = autoencoder.logits(autoencoder.encode(batch.inputs))
        scores = functional.interpolate(
            scores, (truth.shape[1], truth.shape[2]), mode="bilinear", align_corners=False
        )
        weights = self._weights.to(scores)
        if batch.held_out:
            self._count(truth, scores)
        counted = truth != VOID
        loss = functional.cross_entropy(scores, truth, weights, ignore_index=VOID, reduction="sum")
        # A crop may hold no label at all; its loss is then 0 and not 0 / 0.
        return loss / weights[truth[counted]].sum().clamp(min=1e-6)

    def take_miou(self) -> float | None:
        """Return the mIoU (0..1) over the held-out batches since the last call."""
        matrix, self._matrix = self._matrix, None
        return None if matrix is None or not matrix.pixels else score(matrix.counts).miou

    def _truth(self, batch: Batch) -> Tensor:
        """Cut the masks as the batch's images were cut: int64 [N, h, w]."""
        masks = self._labelled.held_out_masks if batch.held_out else self._labelled.masks
        truth = torch.from_numpy(masks[batch.indices.cpu().numpy()])
        if batch.windows is not None:
            size = (batch.inputs.shape[2], batch.inputs.shape[3])
            truth = batch.windows.cut(truth[:, None].float(), size, mode="nearest")[:, 0]
        return truth.to(batch.inputs.device, torch.int64)

    def _count(self, truth: Tensor, scores: Tensor) -> None:
        if self._matrix is None:
            classes = len(self._labelled.class_names)
            self._matrix = ConfusionMatrix(classes, classes, ignore=VOID)
        found = scores.detach().argmax(dim=1)
        self._matrix.update(truth.cpu().numpy(), found.cpu().numpy())


def freeze_encoder(autoencoder: Autoencoder) -> None:
    """Leave only the head to train: the trunk and the projection to latents stay."""
    autoencoder.trunk.requires_grad_(False)
    autoencoder.project[0].requires_grad_(False)


def head_codebook(autoencoder: Autoencoder, class_names: Sequence[str]) -> Codebook:
    """Read the codebook from a trained head: ``W = [w, 0]`` and its bias.

    Class ids are the positions of ``class_names``; TrainingError if their number differs.
    """
    config = autoencoder.config
    if not config.classes or len(class_names) != config.classes:
        raise TrainingError(
            f"a head of {config.classes} classes has {len(class_names)} names",
            fix="Train again.",
        )
    layer = autoencoder.decoder[0]
    assert isinstance(layer, torch.nn.Conv2d)
    assert layer.bias is not None
    weights = layer.weight.detach().cpu().numpy()[:, :, 0, 0]
    return Codebook(
        weights=np.concatenate([weights, np.zeros_like(weights)], axis=1).astype(np.float32),
        bias=layer.bias.detach().cpu().numpy().astype(np.float32),
        remap=np.arange(config.classes).astype(np.uint8),
        classes=tuple(mask_classes(class_names)),
        method="supervised",
    )


def _source(images: Path, pairs: Sequence[Pair]) -> SourceReport:
    return SourceReport(
        source=str(images),
        kind="folder",
        found=len(pairs),
        sampled=len(pairs),
        duplicates=0,
        kept=len(pairs),
        unreadable=(),
        too_small=(),
        warnings=(),
    )
