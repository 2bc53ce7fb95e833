"""How to train: settings, their defaults, and the schedule of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from aeseg_edge.errors import UsageError
from aeseg_edge.export.network.catalogue import ARCHITECTURES
from aeseg_edge.export.training.losses import Reconstruction

ARITHMETIC = ("auto", "float32", "bfloat16")
OPTIMIZERS = ("sgd", "adam", "adamw")
DEFAULT_STEPS = 1200
"""Steps where neither epochs nor minutes are given, rounded up to whole epochs."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        loss: ``l1``, ``mse`` or ``bce`` (``bce`` for decoders with sigmoid output).
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        learning_rate: Peak of the OneCycle schedule.
        batch: Images a step.
        epochs: Passes over the footage; None for about 1200 steps.
        minutes: Wall-clock limit instead of epochs; the schedule follows the clock.
        crop: Width and height of the crops; ``auto`` for about 2/3 of the frame, None for
            whole frames.
        weight_decay: For weights of two and more dimensions (not biases or norms).
        momentum: For ``sgd``.
        augment: Mirror, scale, colour and noise; without it crops only move.
        seed: Decides every random draw, 0 or more.
        threads: CPU threads; None leaves torch's number. Repeatable for the same number.
        arithmetic: ``float32``; ``bfloat16`` for autocast (weights and losses stay float32);
            ``auto`` for bfloat16 where the processor has matrix units for it (AMX): measured
            2.3 times faster for `edge`, 5 times for `lite`.
        teacher: Whose features latents have to give back, see ``teacher.open_teacher``;
            ``none`` for pixels (and, with `edge`, appearance).
    """

    loss: str = "l1"
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    batch: int = 8
    epochs: int | None = None
    minutes: float | None = None
    crop: tuple[int, int] | Literal["auto"] | None = "auto"
    weight_decay: float = 1e-4
    momentum: float = 0.9
    augment: bool = True
    seed: int = 0
    threads: int | None = None
    arithmetic: str = "auto"
    teacher: str = "none"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        Reconstruction(self.loss)
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(
                f"optimizer {self.optimizer!r} is unknown", fix=f"Use one of {OPTIMIZERS}."
            )
        if self.arithmetic not in ARITHMETIC:
            raise UsageError(
                f"arithmetic {self.arithmetic!r} is unknown", fix=f"Use one of {ARITHMETIC}."
            )
        if self.epochs is not None and self.minutes is not None:
            raise UsageError("both epochs and minutes are given", fix="Give one of them.")
        limits: dict[str, tuple[float | None, bool]] = {
            "learning rate": (self.learning_rate, self.learning_rate > 0),
            "batch": (self.batch, self.batch >= 1),
            "epochs": (self.epochs, self.epochs is None or self.epochs >= 1),
            "minutes": (self.minutes, self.minutes is None or self.minutes > 0),
            "weight decay": (self.weight_decay, self.weight_decay >= 0),
            "momentum": (self.momentum, 0 <= self.momentum < 1),
            "seed": (self.seed, self.seed >= 0),
            "threads": (self.threads, self.threads is None or self.threads >= 1),
        }
        for name, (value, good) in limits.items():
            if not good or (value is not None and not math.isfinite(value)):
                raise UsageError(
                    f"{name} {value} is out of range", fix="Leave it out to get the default."
                )

    @classmethod
    def for_arch(cls, arch: str, **changes: Any) -> TrainSettings:
        """Start from what an architecture was made for.

        Args:
            arch: A key of ``ARCHITECTURES``.
            changes: Settings that differ; those that are None keep the default.

        Returns:
            The settings.
        """
        defaults = ARCHITECTURES[arch]
        values: dict[str, Any] = {
            "loss": defaults.loss,
            "optimizer": defaults.optimizer,
            "learning_rate": defaults.learning_rate,
            "batch": defaults.batch,
        }
        return cls(**values | {name: v for name, v in changes.items() if v is not None})

    def resolved_arithmetic(self) -> str:
        """Give ``float32`` or ``bfloat16``, as this machine decides for ``auto``."""
        if self.arithmetic != "auto":
            return self.arithmetic
        return "bfloat16" if torch.cpu.get_capabilities().get("amx_bf16") else "float32"

    def crop_of(self, frame: tuple[int, int], multiple: int) -> tuple[int, int]:
        """Find the size of the crops.

        Args:
            frame: Height and width of the frames in pixels.
            multiple: What heights and widths must be multiples of.

        Returns:
            Height and width in pixels.

        Raises:
            UsageError: If frames or crops do not divide, or crops exceed the frames.
        """
        for side in frame:
            if side % multiple:
                nearest = max(1, round(side / multiple)) * multiple
                raise UsageError(
                    f"image size {frame[1]}x{frame[0]} does not suit this architecture, whose "
                    f"sizes are multiples of {multiple}",
                    fix=f"Use {nearest} instead of {side} in --imgsz.",
                )
        if self.crop is None:
            return frame
        if self.crop == "auto":
            # Below 3 cells of the deepest stride the context would see next to nothing.
            rows, columns = (
                max(min(side, 3 * multiple), round(side * 2 / 3 / multiple) * multiple)
                for side in frame
            )
            return rows, columns
        width, height = self.crop
        for side, limit in ((height, frame[0]), (width, frame[1])):
            if side < 1 or side > limit or side % multiple:
                raise UsageError(
                    f"crop {width}x{height} does not suit frames of {frame[1]}x{frame[0]}",
                    fix=f"Use multiples of {multiple} that are no larger than the frame.",
                )
        return height, width

    def epochs_of(self, steps: int) -> int | None:
        """Find the number of epochs.

        Args:
            steps: Steps an epoch.

        Returns:
            Passes over the footage; None where the clock decides.
        """
        if self.epochs is None and self.minutes is None:
            return math.ceil(DEFAULT_STEPS / steps)
        return self.epochs


def one_cycle(fraction: float) -> float:
    """Learning rate as a share of its peak.

    Up from 1/25 over the first 30 %, then down to 1/250000, both along half a cosine;
    momentum stays as it is. Source: Smith and Topin, Super-Convergence, 2018
    (arXiv:1708.07120), with the shape and the constants of torch's ``OneCycleLR``.

    Args:
        fraction: Of the training, 0..1.

    Returns:
        0..1.
    """
    start, end, rise = 1 / 25, 1 / 250_000, 0.3
    if fraction < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * fraction / rise)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (fraction - rise) / (1 - rise))) / 2
