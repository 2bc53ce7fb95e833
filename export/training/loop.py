"""Training an autoencoder on footage: repeatable, resumable, one checkpoint an epoch.

All randomness of an epoch comes from (seed, epoch), and an epoch starts from nothing but
the checkpoint before it. So a run that was interrupted and resumed gives, bit for bit, the
weights of one that was not, as long as its length is set in epochs and the number of
threads stays the same. (With ``minutes`` the learning rate follows the clock.)

The weights that count are the last: the learning rate ends near zero, and the validation
loss of a reconstruction says little about a segmentation. There is no early stopping.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aeseg_edge.calibration.footage.gather import Footage
from aeseg_edge.errors import TrainingError, UsageError
from aeseg_edge.export import checkpoint
from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.network.windows import Windows
from aeseg_edge.export.training.augment import Augmentation, disturb, draw_windows
from aeseg_edge.export.training.history import EpochRecord, TrainProgress, TrainResult
from aeseg_edge.export.training.losses import Batch, LabelledObjective, Objective, Reconstruction
from aeseg_edge.export.training.settings import TrainSettings, one_cycle
from aeseg_edge.export.training.team import ALONE, Team, talking

__all__ = ["EpochRecord", "TrainProgress", "TrainResult", "TrainSettings", "train"]

_log = logging.getLogger(__name__)

PRETRAINED_RATE = 0.15
"""Learning rate of weights that were learned elsewhere, as a share of the others'."""

VALIDATION_FRAMES = 32
"""Held-out frames looked at after each epoch, evenly spread, so that it stays cheap."""


def train(
    autoencoder: Autoencoder,
    footage: Footage,
    settings: TrainSettings,
    folder: Path,
    *,
    resume: bool = True,
    progress: Callable[[TrainProgress], None] | None = None,
    objective: Objective | None = None,
    team: Team = ALONE,
) -> TrainResult:
    """Train an autoencoder, with a checkpoint in ``folder`` after each epoch.

    A training that is already complete there, with the same settings and footage, is
    loaded and returned at once.

    Args:
        autoencoder: Changed in place; in evaluation mode afterwards. Its weights are where
            a fresh training starts, and are replaced when resuming.
        footage: Frames at the training size.
        settings: How to train.
        folder: NAME.train, made if needed.
        resume: Go on from a state in ``folder``; False starts over, and the first epoch
            replaces it.
        progress: Called after each step and each epoch. An exception from it ends the
            training.
        objective: What to minimise; None for the reconstruction loss of the settings.
        team: The processes that train together; each with the same arguments. A batch is
            ``settings.batch`` images a process. Only the first reads and writes ``folder``.

    Returns:
        The history.

    Raises:
        UsageError: If settings and frames do not fit together.
        TrainingError: If the loss is not a number, the disk is full, or the state in
            ``folder`` is damaged or of another training.
        KeyboardInterrupt: As it came; all whole epochs are on disk.
    """
    if objective is None:
        objective = Reconstruction(settings.loss)
        objective.check(autoencoder)
    run = _Run(autoencoder, footage, settings, objective, team)
    team.check_same(run.identity)
    state = _shared_state(folder, team) if resume else None
    with _threads(settings.threads), team.normalising(autoencoder), talking():
        if state is None:
            objective.prepare(autoencoder, footage.frames)
        else:
            run.restore(state, folder)
        resumed_from = saved = len(run.history)
        if resumed_from and not run.complete:
            _log.info("resuming %s after epoch %d", folder, resumed_from)
        try:
            while not run.complete:
                run.epoch(progress)
                # The state comes last: with it the epoch counts as done.
                if team.first:
                    checkpoint.save_history(folder, [asdict(record) for record in run.history])
                    checkpoint.save_state(folder, run.state())
                saved = len(run.history)
                if progress is not None:
                    progress(run.progress(run.history[-1].train_loss, run.history[-1]))
        except KeyboardInterrupt:
            _log.warning(
                "interrupted: %d epochs are saved in %s; run the same command%s to go on "
                "from there",
                saved,
                folder,
                "" if resume or not saved else ", without --fresh,",
            )
            raise
    autoencoder.arithmetic = torch.float32
    autoencoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    autoencoder.eval()
    return TrainResult(tuple(run.history), resumed_from)


class _Run:
    """One training: what changes from step to step, and what it is made of."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        footage: Footage,
        settings: TrainSettings,
        loss: Objective,
        team: Team,
    ) -> None:
        """Check sizes and set up; nothing is read from disk yet."""
        count, rows, columns, channels = footage.frames.shape
        if channels != autoencoder.config.channels:
            raise UsageError(
                f"frames have {channels} channels, the network {autoencoder.config.channels}",
                fix="Gather the footage with the network's channels.",
            )
        self.crop = settings.crop_of((rows, columns), autoencoder.multiple)
        cells = self.crop[0] * self.crop[1] // autoencoder.multiple**2
        if settings.batch * cells < 2:
            raise UsageError(
                "batch 1 of the smallest crop gives batch normalisation a single value",
                fix="Use a larger batch or a larger crop.",
            )
        self.autoencoder = autoencoder
        self.footage = footage
        self.settings = settings
        self.objective = loss
        self.labelled = loss if isinstance(loss, LabelledObjective) else None
        usual = Augmentation() if self.labelled is None else self.labelled.augmentation
        self.augmentation = usual if settings.augment else None
        self.team = team
        self.batch = settings.batch * team.size
        self.epoch_steps: int = max(1, count // self.batch)
        self.epochs = settings.epochs_of(self.epoch_steps)
        self.arithmetic = _arithmetic(settings.arithmetic)
        autoencoder.arithmetic = torch.bfloat16 if self.arithmetic == "bfloat16" else torch.float32
        # Measured on 2 cores: as fast for `edge`, 1.2 to 2 times faster for the others.
        autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(autoencoder, settings)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.identity = self._identity()
        self.history: list[EpochRecord] = []
        self.steps = 0
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._clock = 0.0

    @property
    def seconds(self) -> float:
        """Time spent training, without pauses between runs."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def fraction(self) -> float:
        """How much of the training is done, 0..1."""
        if self.epochs is not None:
            return self.steps / (self.epochs * self.epoch_steps)
        return min(1.0, self._clock / (60 * (self.settings.minutes or 1)))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do, by the history alone: the clock runs on."""
        if not self.history:
            return False
        if self.epochs is not None:
            return len(self.history) >= self.epochs
        return self.history[-1].seconds >= 60 * (self.settings.minutes or 1)

    def progress(self, loss: float, record: EpochRecord | None = None) -> TrainProgress:
        """Describe where the training stands."""
        return TrainProgress(
            epoch=len(self.history) + (record is None),
            epochs=self.epochs,
            fraction=self.fraction,
            loss=loss,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            seconds=self.seconds,
            record=record,
        )

    def epoch(self, progress: Callable[[TrainProgress], None] | None) -> None:
        """Pass over the footage once, validate, and add to the history."""
        number = len(self.history) + 1
        drawn = np.random.SeedSequence([self.settings.seed, number]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(drawn[0]))
        total, done = 0.0, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(drawn[0]))
            self.autoencoder.train()
            for indices in self._order(generator):
                if self.settings.minutes is not None:
                    # All processes follow the first one's clock.
                    self._clock = self.team.agreed(self.seconds)
                    if done and self.fraction >= 1:
                        break
                done += 1
                total += self._step(self._batch(indices, generator), f"epoch {number}, step {done}")
                if progress is not None:
                    progress(self.progress(total / done))
            validation = self._validate()
        weights = self.autoencoder.state_dict().values()
        if not (validation is None or math.isfinite(validation)) or not all(
            bool(tensor.isfinite().all()) for tensor in weights
        ):
            raise self._diverged("a weight or the validation loss", f"epoch {number}")
        self.history.append(
            EpochRecord(
                epoch=number,
                steps=self.steps,
                train_loss=total / done,
                validation_loss=validation,
                learning_rate=float(self.optimizer.param_groups[0]["lr"]),
                seconds=self.team.agreed(self.seconds),
                validation_miou=None if self.labelled is None else self.labelled.take_miou(),
            )
        )

    def _order(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the frames of each step, int64 [batch].

        The rest of a division is left out, another one each epoch; footage smaller than a batch is
        repeated (its crops differ). Each of several processes draws the same for all and takes its
        own part of each step.
        """
        count, batch = len(self.footage.frames), self.batch
        order = torch.randperm(count, generator=generator)
        order = order.repeat(math.ceil(batch / count))
        for step in range(self.epoch_steps):
            yield order[step * batch : (step + 1) * batch]

    def _batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Cut clean crops and change what the encoder will see."""
        total, indices = len(indices), self.team.share(indices)
        targets = _images(self.footage.frames, indices)
        frame = (targets.shape[2], targets.shape[3])
        windows: Windows | None = None
        if self.augmentation is not None or self.crop != frame:
            drawn = draw_windows(total, frame, self.crop, generator, self.augmentation)
            windows = Windows(self.team.share(drawn.boxes), self.team.share(drawn.mirrored))
            targets = windows.cut(targets, self.crop)
        inputs = targets
        if self.augmentation is not None:
            among = (self.team.rank * len(indices), total)
            inputs = disturb(targets, self.augmentation, generator, among=among)
        return Batch(
            inputs.contiguous(memory_format=torch.channels_last),
            targets.contiguous(memory_format=torch.channels_last),
            indices,
            windows,
        )

    def _step(self, batch: Batch, place: str) -> float:
        """Take one step of the optimizer; return the loss."""
        rate = self.settings.learning_rate * one_cycle(self.fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        loss = self.objective(self.autoencoder, batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        value = self.team.average(self.trained, float(loss.detach()))
        if not math.isfinite(value):
            raise self._diverged("the loss", place)
        self.optimizer.step()
        self.steps += 1
        return value

    def _validate(self) -> float | None:
        """Return the loss on held-out frames, whole and unchanged."""
        frames = self.footage.held_out
        if not len(frames):
            return None
        chosen = torch.linspace(0, len(frames) - 1, min(len(frames), VALIDATION_FRAMES)).long()
        self.autoencoder.eval()
        total = 0.0
        with torch.no_grad():
            for indices in torch.split(chosen, self.settings.batch):
                images = _images(frames, indices)
                batch = Batch(images, images, indices, None, held_out=True)
                total += len(indices) * float(self.objective(self.autoencoder, batch))
        return total / len(chosen)

    def _diverged(self, what: str, place: str) -> TrainingError:
        rate = self.settings.learning_rate
        return TrainingError(
            f"{what} is not a finite number in {place}, at learning rate {rate:g}",
            fix=f"Lower the learning rate (try --learning-rate {rate / 10:g}) or use another "
            f"--loss or --optimizer; {len(self.history)} epochs are saved.",
        )

    def _identity(self) -> dict[str, Any]:
        """Return what must not change between the runs of one training, as JSON has it."""
        frames = self.footage.frames
        digest = hashlib.sha256()
        for part in (frames, self.footage.held_out):
            digest.update(repr(part.shape).encode())
            digest.update(np.ascontiguousarray(part).data)
        settings = asdict(self.settings)
        # Another number of threads changes the last bits of a sum and nothing else.
        del settings["threads"]
        # However many processes share it.
        settings["batch"] = self.batch
        network = asdict(self.autoencoder.config)
        # Channels are reduced after training, never before or within it.
        del network["trained_dim"]
        if self.labelled is None:
            del network["classes"], network["head"]
        return {
            **network,
            "image size": f"{frames.shape[2]}x{frames.shape[1]}",
            **settings,
            "arithmetic": self.arithmetic,
            "epochs": self.epochs,
            "crop": f"{self.crop[1]}x{self.crop[0]}",
            "footage": digest.hexdigest(),
            **({} if self.labelled is None else self.labelled.identity()),
        }

    @property
    def stamp(self) -> str:
        """Say in a few letters which training this is."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def state(self) -> checkpoint.State:
        """Collect everything that a resume needs; when complete, no optimizer."""
        tensors = {f"model.{k}": v for k, v in self.autoencoder.state_dict().items()}
        if not self.complete:
            for index, values in self.optimizer.state_dict()["state"].items():
                for name, value in values.items():
                    if value is not None:
                        tensors[f"{checkpoint.OPTIMIZER}{index}.{name}"] = value
        record = {
            "identity": self.identity,
            "stamp": self.stamp,
            "complete": self.complete,
            "history": [asdict(record) for record in self.history],
        }
        return checkpoint.State(tensors, record)

    def restore(self, state: checkpoint.State, folder: Path) -> None:
        """Go back to where a state was saved; TrainingError if it is of another training."""
        try:
            self._compare(state.record["identity"], folder)
            self.history = [EpochRecord(**record) for record in state.record["history"]]
            self.steps = self.history[-1].steps
            self._seconds_before = self.history[-1].seconds
            model = {k[6:]: v for k, v in state.tensors.items() if k.startswith("model.")}
            checkpoint.load_weights(self.autoencoder, model, folder / checkpoint.STATE)
            self._restore_optimizer(state.tensors)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{folder / checkpoint.STATE} lacks something ({error!r})",
                fix="Use another folder, or start over with --fresh.",
            ) from error

    def _compare(self, saved: dict[str, Any], folder: Path) -> None:
        for name, now in self.identity.items():
            before = saved[name]
            if before == now:
                continue
            was, now_is = ("other footage", "this") if name == "footage" else (before, now)
            raise TrainingError(
                f"{folder} holds a training with {name.replace('_', ' ')} {was}, not {now_is}",
                fix="Use the same settings and footage to go on with it, another folder, or "
                "--fresh to start over in this one.",
            )

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        values: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(checkpoint.OPTIMIZER):
                _, index, key = name.split(".", 2)
                values.setdefault(int(index), {})[key] = tensor
        for number, entries in values.items():
            like = parameters[number]
            # In the parameter's own memory layout, so that the next step adds up exactly
            # as it would have without the interruption.
            self.optimizer.state[like] = {
                key: torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
                for key, tensor in entries.items()
            }


def _shared_state(folder: Path, team: Team) -> checkpoint.State | None:
    """Read the state, in the first process alone: other machines do not have the folder."""
    state = checkpoint.load_state(folder) if team.first else None
    record = team.share_record(None if state is None else state.record)
    if record is None:
        return None
    return checkpoint.State(team.share_tensors(None if state is None else state.tensors), record)


def _optimizer(autoencoder: Autoencoder, settings: TrainSettings) -> torch.optim.Optimizer:
    """Make the optimizer; weight decay leaves biases and normalisation alone."""
    slow = {id(weight) for weight in autoencoder.pretrained_weights()}
    groups = []
    for scale, pretrained in ((1.0, False), (PRETRAINED_RATE, True)):
        chosen = [
            weight
            for weight in autoencoder.parameters()
            if weight.requires_grad and (id(weight) in slow) == pretrained
        ]
        for decay, many in ((settings.weight_decay, True), (0.0, False)):
            part = [weight for weight in chosen if (weight.ndim > 1) == many]
            if part:
                groups.append({"params": part, "weight_decay": decay, "scale": scale})
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.learning_rate, momentum=settings.momentum)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, settings.learning_rate)


def _images(frames: NDArray[np.uint8], indices: Tensor) -> Tensor:
    """Turn frames [N, H, W, C] into images: float32 [n, C, H, W] in 0..1, channels last."""
    chosen = torch.from_numpy(frames[indices.numpy()])
    return chosen.permute(0, 3, 1, 2).to(torch.float32).div_(255)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set torch's CPU threads, and put them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _arithmetic(asked: str) -> str:
    """Give ``float32`` or ``bfloat16``, as this machine decides for ``auto``."""
    if asked != "auto":
        return asked
    return "bfloat16" if torch.cpu.get_capabilities().get("amx_bf16") else "float32"
