"""A teacher: what a frozen, pretrained network sees in each frame, as targets for latents.

Pixels alone do not say what belongs together. A network that was trained for something else
knows more, so latents also have to give back its features (a feature autoencoder). The
teacher looks at every frame once; it is never part of a bundle.

Sources: features of ImageNet networks as a target, FitNets (Romero et al., ICLR 2015); the
several scales and the PCA are our own measurements, see docs/quality.md.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from aeseg_edge.errors import UsageError
from aeseg_edge.export.checkpoint import load_arrays, load_model, save_arrays
from aeseg_edge.export.network.efficientnet import (
    CENTRED,
    ORIGIN,
    Features,
    load_pretrained,
    offsets,
)
from aeseg_edge.export.training.invariance import evened, view_covariance
from aeseg_edge.support.evenly import evenly
from aeseg_edge.support.progress import Tick
from aeseg_edge.support.require import require

_log = logging.getLogger(__name__)

NAMES = "none, efficientnet_lite0, timm:NAME or a NAME.train folder"
FIT_FRAMES = 64
"""Frames that decide the scale of channels and the principal components."""

CACHE = "teacher.safetensors"


@dataclass(frozen=True)
class FeatureMap:
    """One layer's output, float32 [N, F, h, w]; stride and place of feature 0 in pixels."""

    values: Tensor
    stride: float
    offset: float


class Teacher(Protocol):
    """A frozen network; ``grid`` is the stride of the targets, ``origin`` for the manifest."""

    name: str
    grid: int
    origin: dict[str, Any]

    def look(self, images: Tensor) -> list[FeatureMap]:
        """Give one or more maps of images, float32 [N, C, H, W] in 0..1 and BGR, at any strides."""
        ...


@dataclass(frozen=True)
class Targets:
    """What latents have to give back: unit vectors, float16 [N, D, H/grid, W/grid].

    ``explained`` is the share of the teacher's variance that D components keep, 0..1.
    """

    frames: NDArray[np.float16]
    held_out: NDArray[np.float16]
    grid: int
    explained: float


def open_teacher(name: str, channels: int) -> Teacher:
    """Find a teacher: ``efficientnet_lite0``, ``timm:NAME``, or a ``NAME.train`` folder.

    UsageError for other names; TrainingError if the folder holds no trained network.
    """
    if name == "efficientnet_lite0":
        return EfficientNetTeacher()
    if name.startswith("timm:"):
        return TimmTeacher(name)
    if name and (name.endswith(".train") or Path(name).is_dir()):
        return CheckpointTeacher(Path(name), channels)
    raise UsageError(f"teacher {name!r} is unknown", fix=f"Use {NAMES}.")


class EfficientNetTeacher:
    """EfficientNet-Lite0, stages 6 and 7, at the frame's size and at twice that."""

    def __init__(self) -> None:
        self.name = "efficientnet_lite0"
        self.grid = 16
        self.origin: dict[str, Any] = dict(ORIGIN)
        self._network = Features(7)
        load_pretrained(self._network)
        self._network.eval()
        self._offset = offsets(CENTRED)[-1]

    def look(self, images: Tensor) -> list[FeatureMap]:
        """See ``Teacher``."""
        rgb = (_three(images).flip(1) * 255 - 127) / 128
        maps = []
        for zoom in (1, 2):
            shown = _resize(rgb, zoom, 32)
            for values in self._network(shown)[5:]:
                # Position p of the larger picture is (p + 0.5) / zoom - 0.5 of the frame.
                maps.append(FeatureMap(values, 32 / zoom, (self._offset + 0.5) / zoom - 0.5))
        return maps


class TimmTeacher:
    """Any network of the timm package that can give features; its weights are timm's business."""

    def __init__(self, name: str, *, pretrained: bool = True) -> None:
        timm = require(
            "timm",
            for_=f"teacher {name}",
            fix="Install it in an environment of its own with the torchvision that suits "
            "your torch: pip install timm.",
        )
        model = name.removeprefix("timm:")
        try:
            try:
                # Without it a transformer takes pictures of the size of its training only.
                self._network = timm.create_model(
                    model, pretrained=pretrained, features_only=True, dynamic_img_size=True
                )
            except TypeError:
                self._network = timm.create_model(model, pretrained=pretrained, features_only=True)
        except (RuntimeError, ValueError, OSError) as error:
            raise UsageError(
                f"timm cannot make {model!r} ({error})",
                fix="Choose a name from timm.list_models(pretrained=True), and check that its "
                "weights can be downloaded.",
            ) from error
        self._network.eval()
        settings = timm.data.resolve_model_data_config(self._network)
        self._mean = torch.tensor(settings["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(settings["std"]).view(1, 3, 1, 1)
        self.name = name
        self.grid = 16
        licence = (self._network.pretrained_cfg or {}).get("license", "not stated")
        self.origin: dict[str, Any] = {
            "name": model,
            "package": f"timm {timm.__version__}",
            "licence": licence,
            "trained_on": "see the model's card",
        }

    def look(self, images: Tensor) -> list[FeatureMap]:
        """See ``Teacher``."""
        rgb = (_three(images).flip(1) - self._mean) / self._std
        maps = []
        strides = self._network.feature_info.reduction()[-2:]
        for zoom in (1, 2):
            shown = _resize(rgb, zoom, max(32, int(strides[-1])))
            for values, stride in zip(self._network(shown)[-2:], strides, strict=True):
                # Where a network's features lie exactly is not known: taken as centred.
                maps.append(FeatureMap(values, stride / zoom, (stride / zoom - 1) / 2))
        return maps


class CheckpointTeacher:
    """An autoencoder of this project, for frames of its channels: a small one learns from it."""

    def __init__(self, folder: Path, channels: int) -> None:
        self._network, meta = load_model(folder)
        if self._network.config.channels != channels:
            raise UsageError(
                f"teacher {folder} takes {self._network.config.channels} channels, the frames "
                f"have {channels}",
                fix="Use a teacher that was trained on such frames.",
            )
        self.name = str(folder)
        self.grid = self._network.stride
        self.origin: dict[str, Any] = {
            "name": f"{self._network.config.arch} of this project",
            "provenance": meta.get("provenance", {}),
        }

    def look(self, images: Tensor) -> list[FeatureMap]:
        """See ``Teacher``."""
        multiple, stride = self._network.multiple, self._network.stride
        values = self._network.encode(_resize(images, 1, multiple))
        return [FeatureMap(values, stride, (stride - 1) / 2)]


def make_targets(
    teacher: Teacher,
    frames: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    dim: int,
    *,
    folder: Path | None = None,
    tick: Tick | None = None,
) -> Targets:
    """Let a teacher look at every frame once, and keep what it saw in ``folder``.

    Each channel of each map is standardised, each position of a map is scaled to length one, the
    maps are brought to one grid and joined, their first D principal components are kept, and those
    are scaled to length one again. UsageError if D exceeds the teacher's channels.
    """
    key = _key(teacher, frames, held_out, dim)
    kept = None if folder is None else load_arrays(folder / CACHE, key)
    if kept is not None:
        return Targets(kept["frames"], kept["held_out"], teacher.grid, float(kept["explained"][0]))
    fitted = _fit(teacher, frames, dim)
    total = max(1, len(frames) + len(held_out))
    made = []
    done = 0
    for part in (frames, held_out):
        maps = []
        for batch in _batches(part):
            maps.append(fitted(_join(teacher, batch, fitted.scales)).to(torch.float16).numpy())
            done += len(batch)
            if tick is not None:
                tick(done / total)
        shape = (0, dim, part.shape[1] // teacher.grid, part.shape[2] // teacher.grid)
        made.append(np.concatenate(maps) if maps else np.zeros(shape, np.float16))
    targets = Targets(made[0], made[1], teacher.grid, fitted.explained)
    if folder is not None:
        arrays: dict[str, NDArray[Any]] = {
            "frames": targets.frames,
            "held_out": targets.held_out,
            "explained": np.array([targets.explained], np.float32),
        }
        save_arrays(folder / CACHE, arrays, key)
    return targets


Scales = Sequence[tuple[Tensor, Tensor]]
"""Mean and deviation of each channel, for each map: float32 [1, F, 1, 1]."""


@dataclass(frozen=True)
class _Projection:
    """From joined maps to unit targets."""

    scales: Scales
    mean: Tensor
    basis: Tensor
    explained: float

    def __call__(self, joined: Tensor) -> Tensor:
        """[N, F, h, w] -> [N, D, h, w], unit vectors."""
        weight = self.basis.T[:, :, None, None]
        found = functional.conv2d(joined - self.mean[None, :, None, None], weight)
        return functional.normalize(found, dim=1)


@torch.no_grad()
def _fit(teacher: Teacher, frames: NDArray[np.uint8], dim: int) -> _Projection:
    """Find scales and principal components on evenly chosen frames."""
    chosen = frames[evenly(len(frames), FIT_FRAMES)]
    sums: list[list[Tensor]] = []
    for batch in _batches(chosen):
        for index, found in enumerate(teacher.look(batch)):
            values = found.values.double()
            parts = [values.sum((0, 2, 3)), (values**2).sum((0, 2, 3))]
            parts.append(torch.tensor(float(values[:, 0].numel())))
            if index == len(sums):
                sums.append(parts)
            else:
                sums[index] = [a + b for a, b in zip(sums[index], parts, strict=True)]
    scales = []
    for total, squares, number in sums:
        mean = total / number
        deviation = (squares / number - mean**2).clamp(min=0).sqrt() + 1e-6
        scales.append((mean.float().view(1, -1, 1, 1), deviation.float().view(1, -1, 1, 1)))
    joined = [_join(teacher, batch, scales) for batch in _batches(chosen)]
    flat = torch.cat([part.permute(0, 2, 3, 1).flatten(0, 2) for part in joined])
    if dim > flat.shape[1]:
        raise UsageError(
            f"latent dimension {dim} is more than the {flat.shape[1]} channels of teacher "
            f"{teacher.name}",
            fix=f"Use --latent-dim {min(64, flat.shape[1])}.",
        )
    even = evened(view_covariance(lambda images: _join(teacher, images, scales), chosen)).float()
    mean = flat.mean(0)
    centred = (flat - mean) @ even
    covariance = centred.T @ centred / len(centred)
    values, vectors = torch.linalg.eigh(covariance.double())
    basis = vectors[:, -dim:].flip(1)
    # An eigenvector's sign is arbitrary: fixed, so that every machine gives the same targets.
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = even @ (basis * largest.sign()).float()
    explained = float(values[-dim:].sum() / values.sum().clamp(min=1e-12))
    return _Projection(scales, mean, basis, explained)


@torch.no_grad()
def _join(teacher: Teacher, images: Tensor, scales: Scales) -> Tensor:
    """Scale all maps of some images and bring them to one grid: [N, sum F, h, w]."""
    rows, columns = images.shape[2] // teacher.grid, images.shape[3] // teacher.grid
    parts = []
    for found, (mean, deviation) in zip(teacher.look(images), scales, strict=True):
        values = functional.normalize((found.values - mean) / deviation, dim=1)
        parts.append(_sample(values, found, teacher.grid, (rows, columns)))
    return torch.cat(parts, 1)


def _sample(values: Tensor, found: FeatureMap, grid: int, size: tuple[int, int]) -> Tensor:
    """Read a map at the centres of the grid's cells, bilinearly, where they really lie."""
    axes = []
    for cells, have in zip(size, values.shape[2:], strict=True):
        pixels = torch.arange(cells) * grid + (grid - 1) / 2
        place = (pixels - found.offset) / found.stride
        axes.append((2 * place + 1) / have - 1)
    down, along = torch.meshgrid(axes[0], axes[1], indexing="ij")
    where = torch.stack((along, down), -1).to(values).expand(len(values), -1, -1, -1)
    return functional.grid_sample(
        values, where, mode="bilinear", padding_mode="border", align_corners=False
    )


def _batches(frames: NDArray[np.uint8], size: int = 4) -> Iterator[Tensor]:
    for start in range(0, len(frames), size):
        part = torch.from_numpy(frames[start : start + size])
        yield part.permute(0, 3, 1, 2).float().div_(255)


def _three(images: Tensor) -> Tensor:
    """Colour for a teacher of colours: grey is repeated, more than three are left out."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]


def _resize(images: Tensor, zoom: int, multiple: int) -> Tensor:
    """Enlarge, to multiples of a network's stride, by at most a few pixels more."""
    grown = [side * zoom for side in images.shape[2:]]
    if zoom != 1:
        images = functional.interpolate(images, size=grown, mode="bilinear", align_corners=False)
    down, along = (-side % multiple for side in grown)
    if down or along:
        images = functional.pad(images, (0, along, 0, down), mode="replicate")
    return images


def _key(teacher: Teacher, frames: NDArray[np.uint8], held_out: NDArray[np.uint8], dim: int) -> str:
    digest = hashlib.sha256(repr((teacher.name, teacher.grid, dim)).encode())
    if isinstance(teacher, CheckpointTeacher):
        weights = Path(teacher.name) / "weights.safetensors"
        digest.update(hashlib.sha256(weights.read_bytes()).digest())
    for part in (frames, held_out):
        digest.update(repr(part.shape).encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
