"""What a training tells while it runs, and what it leaves: one record an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """One line of the history.

    Attributes:
        epoch: 1 for the first.
        steps: Steps since the start of the training.
        train_loss: Mean over the steps of the epoch.
        validation_loss: On held-out frames, whole and unchanged; None where there are none.
        learning_rate: Of the last step.
        seconds: Since the start of the training, without pauses between runs.
        validation_miou: With labels, mIoU (0..1) on the held-out frames; None without.
    """

    epoch: int
    steps: int
    train_loss: float
    validation_loss: float | None
    learning_rate: float
    seconds: float
    validation_miou: float | None = None


@dataclass(frozen=True)
class TrainProgress:
    """What the progress callback is told, after each step and after each epoch.

    Attributes:
        epoch: The current one, 1 for the first.
        epochs: How many there will be; None with ``minutes``.
        fraction: Of the whole training, 0..1.
        loss: Mean over the current epoch so far.
        learning_rate: Of the last step.
        seconds: Since the start of the training.
        record: Set once the epoch is over and its checkpoint is on disk.
    """

    epoch: int
    epochs: int | None
    fraction: float
    loss: float
    learning_rate: float
    seconds: float
    record: EpochRecord | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a training gave; the weights are in the autoencoder that was passed in.

    Attributes:
        history: One record an epoch, those before a resume included.
        resumed_from: Epochs that an earlier run had done.
    """

    history: tuple[EpochRecord, ...]
    resumed_from: int

    @property
    def last(self) -> EpochRecord:
        """The last epoch."""
        return self.history[-1]

    def to_json(self) -> dict[str, Any]:
        """Return a summary for manifests and reports.

        Without the time it took: the same seed gives the same bundle, byte for byte.
        """
        return {
            "epochs": self.last.epoch,
            "steps": self.last.steps,
            "train_loss": self.last.train_loss,
            "validation_loss": self.last.validation_loss,
            **(
                {}
                if self.last.validation_miou is None
                else {"validation_miou": self.last.validation_miou}
            ),
        }
