"""How to train: settings, their defaults, and the schedule of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from aeseg_edge.errors import UsageError
from aeseg_edge.export.network.catalogue import ARCHITECTURES, NO_TEACHER
from aeseg_edge.support.options import option, positive

ARITHMETIC = ("auto", "float32", "bfloat16")
OPTIMIZERS = ("sgd", "adam", "adamw")
LOSSES = ("mse", "bce", "l1")
CLASS_WEIGHTS = ("none", "log", "power")
TUNE = ("all", "head")
DEFAULT_STEPS = 1200
"""Steps where neither epochs nor minutes are given, rounded up to whole epochs."""

_BY_ARCHITECTURE = "default: the architecture's"
_TEACHERS = ", ".join(
    f"{row.teacher} for {name}" for name, row in ARCHITECTURES.items() if row.teacher != NO_TEACHER
)


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the help of an option says what its field is.

    Attributes:
        learning_rate: Peak of the OneCycle schedule.
        crop: Width and height of the crops; ``auto`` for about 2/3 of the frame, None for
            whole frames.
        weight_decay: For weights of two and more dimensions (not biases or norms).
        momentum: For ``sgd``.
        seed: Decides every random draw, 0 or more.
        threads: CPU threads; None leaves torch's number. Repeatable for the same number.
        arithmetic: ``float32``; ``bfloat16`` for autocast (weights and losses stay float32);
            ``auto`` for bfloat16 where the processor has matrix units for it (AMX): measured
            2.3 times faster for `edge`, 5 times for `lite`.
    """

    loss: str = option("l1", choices=LOSSES, help=_BY_ARCHITECTURE)
    optimizer: str = option("adamw", choices=OPTIMIZERS, help=_BY_ARCHITECTURE)
    learning_rate: float = option(
        2e-3, "--learning-rate", "--lr", parse=float, metavar="RATE", help="peak learning rate"
    )
    batch: int = option(
        8,
        parse=positive,
        help="images a step; under torchrun, of each process (default: the architecture's)",
    )
    epochs: int | None = option(
        None, parse=positive, apart="length", help="default: about 1200 steps"
    )
    minutes: float | None = option(
        None, parse=float, apart="length", help="train for so long instead"
    )
    crop: tuple[int, int] | Literal["auto"] | None = "auto"
    weight_decay: float = 1e-4
    momentum: float = 0.9
    augment: bool = option(
        True, "--no-augment", off=True, help="no flips, crops, colour jitter and noise"
    )
    seed: int = 0
    threads: int | None = None
    arithmetic: str = "auto"
    teacher: str = option(
        NO_TEACHER,
        metavar="NAME",
        help="whose features to learn: none, efficientnet_lite0, timm:NAME or a NAME.train "
        f"folder (default: {_TEACHERS}, else {NO_TEACHER})",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        if self.loss not in LOSSES:
            raise UsageError(
                f"loss {self.loss!r} is unknown", fix=f"Use one of {', '.join(LOSSES)}."
            )
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
        if self.momentum != TrainSettings.momentum and self.optimizer != "sgd":
            raise UsageError(
                f"momentum {self.momentum} does nothing with {self.optimizer}",
                fix="Use the optimizer sgd, or leave momentum out.",
            )
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
        """Start from what an architecture was made for; changes that are None keep its default."""
        defaults = ARCHITECTURES[arch]
        values: dict[str, Any] = {
            "loss": defaults.loss,
            "optimizer": defaults.optimizer,
            "learning_rate": defaults.learning_rate,
            "batch": defaults.batch,
        }
        return cls(**values | {name: v for name, v in changes.items() if v is not None})

    def crop_of(self, frame: tuple[int, int], multiple: int) -> tuple[int, int]:
        """Find height and width of the crops; UsageError if they do not divide or fit."""
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
        """Find the passes over the footage, of so many steps each; None where the clock decides."""
        if self.epochs is None and self.minutes is None:
            return math.ceil(DEFAULT_STEPS / steps)
        return self.epochs


def one_cycle(fraction: float) -> float:
    """Learning rate as a share of its peak, for a fraction of the training, 0..1.

    Up from 1/25 over the first 30 %, then down to 1/250000, both along half a cosine; momentum
    stays as it is. Source: Smith and Topin, Super-Convergence, 2018 (arXiv:1708.07120), with the
    shape and the constants of torch's ``OneCycleLR``.
    """
    start, end, rise = 1 / 25, 1 / 250_000, 0.3
    if fraction < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * fraction / rise)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (fraction - rise) / (1 - rise))) / 2
