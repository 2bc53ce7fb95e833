"""Training repeats bit for bit, survives interruption, and stops early when it must."""

from __future__ import annotations

import json
import math
import resource
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2")
torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from aeseg_edge.calibration.footage.gather import Footage, FootageReport  # noqa: E402
from aeseg_edge.errors import TrainingError, UsageError  # noqa: E402
from aeseg_edge.export import checkpoint  # noqa: E402
from aeseg_edge.export.network.autoencoder import Autoencoder, build_autoencoder  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.training import loop as module  # noqa: E402
from aeseg_edge.export.training.loop import TrainProgress, TrainSettings, train  # noqa: E402
from aeseg_edge.export.training.losses import Batch, Reconstruction  # noqa: E402
from aeseg_edge.export.training.settings import one_cycle  # noqa: E402

SETTINGS = TrainSettings(batch=4, epochs=3, learning_rate=2e-3, crop=(32, 32))


def footage(count: int = 10, held: int = 3, *, seed: int = 0, size: tuple[int, int] = (64, 64)):
    """Frames with a horizon and a few boxes each, so that there is something to learn."""
    random = np.random.default_rng(seed)
    rows, columns = size
    frames = np.zeros((count + held, rows, columns, 3), np.uint8)
    for frame in frames:
        horizon = int(random.integers(rows // 4, 3 * rows // 4))
        frame[:horizon] = random.integers(150, 256, 3)
        frame[horizon:] = random.integers(0, 100, 3)
        y, x = random.integers(0, rows // 2, 2)
        frame[y : y + rows // 3, x : x + columns // 4] = random.integers(0, 256, 3)
    report = FootageReport((), count, held)
    return Footage(frames[:count], frames[count:], report)


def network(arch: str = "shallow", seed: int = 0) -> Autoencoder:
    return build_autoencoder(AutoencoderConfig(arch, latent_dim=4), seed=seed)


def weights(autoencoder: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("edge", {"epochs": 24}),
        ("shallow", {"epochs": 8, "learning_rate": 0.1}),
        ("deep", {"epochs": 8}),
    ],
)
def test_the_loss_falls(tmp_path: Path, arch: str, changes: dict[str, Any]) -> None:
    settings = TrainSettings.for_arch(arch, batch=4, crop=(32, 32), augment=False, **changes)
    result = train(network(arch), footage(10, 2), settings, tmp_path)
    first, last = result.history[0], result.history[-1]
    # Cross-entropy of grey values cannot fall below their entropy, so it falls less.
    share = 0.97 if settings.loss == "bce" else 0.8
    assert last.train_loss < share * first.train_loss
    assert last.validation_loss is not None
    assert first.validation_loss is not None
    assert last.validation_loss < share * first.validation_loss


def test_history_is_told_written_and_returned_alike(tmp_path: Path) -> None:
    told: list[TrainProgress] = []
    result = train(network(), footage(), SETTINGS, tmp_path, progress=told.append)
    records = [progress.record for progress in told if progress.record is not None]
    assert tuple(records) == result.history
    written = json.loads((tmp_path / "history.json").read_text())
    assert written == [asdict(record) for record in records]
    assert [record.epoch for record in records] == [1, 2, 3]
    assert [record.steps for record in records] == [2, 4, 6]
    assert result.to_json()["steps"] == 6
    fractions = [progress.fraction for progress in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert [progress.epoch for progress in told] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_the_network_is_handed_back_ready_to_use(tmp_path: Path) -> None:
    autoencoder = network()
    train(autoencoder, footage(held=0), SETTINGS, tmp_path)
    assert not autoencoder.training
    assert all(p.is_contiguous() for p in autoencoder.parameters())


def test_without_length_there_are_about_1200_steps() -> None:
    assert TrainSettings().epochs_of(steps=25) == 48
    assert TrainSettings().epochs_of(steps=7) == 172
    assert TrainSettings(epochs=5).epochs_of(steps=7) == 5
    assert TrainSettings(minutes=5).epochs_of(steps=7) is None


def test_minutes_end_a_training_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def monotonic() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(module.time, "monotonic", monotonic)
    told: list[TrainProgress] = []
    settings = replace(SETTINGS, epochs=None, minutes=1.0)
    result = train(network(), footage(100), settings, tmp_path, progress=told.append)
    assert 60 <= result.last.seconds < 75
    # In the middle of an epoch, if need be.
    assert result.last.steps < 25 * result.last.epoch
    assert told[-1].epochs is None
    assert told[-1].fraction == 1
    assert result.last.learning_rate < 0.05 * SETTINGS.learning_rate


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_the_schedule_is_torchs_one_cycle(fraction: float) -> None:
    steps = 2001
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps)
    for _ in range(round(fraction * (steps - 1))):
        optimizer.step()
        schedule.step()
    # torch counts the rise one step shorter.
    assert one_cycle(fraction) == pytest.approx(schedule.get_last_lr()[0], abs=2e-3)


# --- batches --------------------------------------------------------------------------------------


class Recorder:
    """An objective that keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[tuple[bool, Batch]] = []

    def prepare(self, autoencoder: Autoencoder, frames: np.ndarray) -> None:
        self.prepared = len(frames)

    def __call__(self, autoencoder: Autoencoder, batch: Batch) -> Tensor:
        self.batches.append((autoencoder.training, batch))
        return Reconstruction("l1")(autoencoder, batch)


def record(tmp_path: Path, settings: TrainSettings, film: Footage) -> Recorder:
    recorder = Recorder()
    train(network(), film, settings, tmp_path, objective=recorder)
    return recorder


def test_training_draws_clean_crops_from_changed_ones(tmp_path: Path) -> None:
    recorder = record(tmp_path, SETTINGS, footage())
    batches = [batch for training, batch in recorder.batches if training]
    assert len(batches) == 6
    for batch in batches:
        assert batch.targets.shape == (4, 3, 32, 32)
        assert batch.windows is not None
        assert not torch.allclose(batch.inputs, batch.targets, atol=0.05)
        assert not batch.held_out
    frames = torch.from_numpy(footage().frames).permute(0, 3, 1, 2) / 255
    for batch in batches:
        assert batch.windows is not None
        expected = batch.windows.cut(frames[batch.indices], (32, 32))
        assert torch.allclose(batch.targets, expected, atol=1e-6)


def test_every_frame_is_seen_before_any_is_seen_again(tmp_path: Path) -> None:
    recorder = record(tmp_path, replace(SETTINGS, epochs=4), footage(12))
    indices = [batch.indices for training, batch in recorder.batches if training]
    for epoch in range(4):
        seen = torch.cat(indices[3 * epoch : 3 * epoch + 3])
        assert sorted(seen.tolist()) == list(range(12))
    assert not torch.equal(torch.cat(indices[:3]), torch.cat(indices[3:6]))


def test_without_augmentation_crops_are_plain(tmp_path: Path) -> None:
    settings = replace(SETTINGS, augment=False)
    for training, batch in record(tmp_path, settings, footage()).batches:
        assert batch.inputs is batch.targets or torch.equal(batch.inputs, batch.targets)
        if training:
            assert batch.inputs.shape == (4, 3, 32, 32)


def test_validation_is_on_whole_unchanged_held_out_frames(tmp_path: Path) -> None:
    film = footage(held=6)
    recorder = record(tmp_path, SETTINGS, film)
    checks = [batch for training, batch in recorder.batches if not training]
    assert [len(batch.indices) for batch in checks] == [4, 2] * 3
    assert all(batch.held_out and batch.windows is None for batch in checks)
    seen = torch.cat([batch.inputs for batch in checks[:2]]).permute(0, 2, 3, 1) * 255
    assert np.array_equal(seen.round().byte().numpy(), film.held_out)


def test_footage_smaller_than_a_batch_is_repeated(tmp_path: Path) -> None:
    recorder = record(tmp_path, replace(SETTINGS, batch=8), footage(3, 0))
    sizes = [len(batch.indices) for _, batch in recorder.batches]
    assert sizes == [8, 8, 8]


def test_without_held_out_frames_there_is_no_validation_loss(tmp_path: Path) -> None:
    result = train(network(), footage(held=0), SETTINGS, tmp_path)
    assert [record.validation_loss for record in result.history] == [None] * 3


# --- repeatable, resumable ------------------------------------------------------------------------


def test_a_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    made = []
    for run, seed in enumerate((1, 1, 2)):
        autoencoder = network("edge")
        torch.rand(run)  # The global generator must not matter.
        train(autoencoder, footage(), replace(SETTINGS, seed=seed), tmp_path / str(run))
        made.append(weights(autoencoder))
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_the_global_generator_and_threads_are_left_alone(tmp_path: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    seen = []

    def look(_: TrainProgress) -> None:
        seen.append(torch.get_num_threads())

    settings = replace(SETTINGS, threads=threads + 1, epochs=1)
    train(network(), footage(4, 1), settings, tmp_path, progress=look)
    assert set(seen) == {threads + 1}
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


class Stop:
    """A progress callback that presses Ctrl-C once, after a whole epoch or inside one."""

    def __init__(self, epoch: int, *, inside: bool) -> None:
        self.epoch = epoch
        self.inside = inside

    def __call__(self, progress: TrainProgress) -> None:
        if progress.epoch == self.epoch and (progress.record is None) == self.inside:
            raise KeyboardInterrupt


@pytest.mark.parametrize("inside", [False, True], ids=["after an epoch", "inside an epoch"])
@pytest.mark.parametrize(
    ("arch", "optimizer"), [("edge", "adamw"), ("shallow", "sgd"), ("deep", "adam")]
)
def test_a_resumed_training_equals_one_without_interruption(
    tmp_path: Path, arch: str, optimizer: str, inside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(SETTINGS, optimizer=optimizer, loss="l1")
    whole = network(arch)
    expected = train(whole, footage(), settings, tmp_path / "whole")

    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(network(arch), footage(), settings, folder, progress=Stop(2, inside=inside))
    done = 1 if inside else 2
    assert f"{done} epochs are saved in {folder}" in caplog.text
    parts = network(arch, seed=5)  # Its weights come from the checkpoint.
    result = train(parts, footage(), settings, folder)

    assert result.resumed_from == done
    assert same(weights(whole), weights(parts))
    assert [(r.epoch, r.train_loss, r.validation_loss) for r in result.history] == [
        (r.epoch, r.train_loss, r.validation_loss) for r in expected.history
    ]


def test_an_interrupt_in_the_first_epoch_starts_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(network(), footage(), SETTINGS, tmp_path, progress=Stop(1, inside=True))
    assert list(tmp_path.iterdir()) == []
    assert train(network(), footage(), SETTINGS, tmp_path).resumed_from == 0


def test_a_complete_training_is_not_repeated(tmp_path: Path) -> None:
    first = network()
    expected = train(first, footage(), SETTINGS, tmp_path)
    again = network(seed=9)
    told: list[TrainProgress] = []
    result = train(again, footage(), SETTINGS, tmp_path, progress=told.append)
    assert told == []
    assert result.history == expected.history
    assert same(weights(first), weights(again))
    state = checkpoint.load_state(tmp_path)
    assert state is not None
    assert not any(name.startswith("optimizer") for name in state.tensors)


def test_fresh_starts_over(tmp_path: Path) -> None:
    train(network(), footage(), SETTINGS, tmp_path)
    other = replace(SETTINGS, epochs=1)
    result = train(network(), footage(), other, tmp_path, resume=False)
    assert result.resumed_from == 0
    assert len(json.loads((tmp_path / "history.json").read_text())) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": 5}, "batch 4, not 5"),
        ({"seed": 3}, "seed 0, not 3"),
        ({"loss": "mse"}, "loss l1, not mse"),
        ({"epochs": 9}, "epochs 3, not 9"),
        ({"crop": (64, 32)}, "crop 32x32, not 64x32"),
        ({"learning_rate": 0.5}, "learning rate 0.002, not 0.5"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    train(network(), footage(), SETTINGS, tmp_path)
    with pytest.raises(TrainingError, match=says) as caught:
        train(network(), footage(), replace(SETTINGS, **changes), tmp_path)
    assert "--fresh" in caught.value.fix


def test_another_network_or_other_footage_is_refused(tmp_path: Path) -> None:
    train(network(), footage(), SETTINGS, tmp_path)
    with pytest.raises(TrainingError, match="arch shallow, not deep"):
        train(network("deep"), footage(), SETTINGS, tmp_path)
    with pytest.raises(TrainingError, match="other footage"):
        train(network(), footage(seed=1), SETTINGS, tmp_path)
    with pytest.raises(TrainingError, match="image size 64x64, not 96x64"):
        train(network(), footage(size=(64, 96)), SETTINGS, tmp_path)


def test_another_number_of_threads_is_no_other_training(tmp_path: Path) -> None:
    train(network(), footage(), SETTINGS, tmp_path)
    assert train(network(), footage(), replace(SETTINGS, threads=2), tmp_path).resumed_from == 3


def test_a_damaged_state_is_refused_and_can_be_started_over(tmp_path: Path) -> None:
    train(network(), footage(), SETTINGS, tmp_path)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TrainingError, match="cut off or damaged"):
        train(network(), footage(), SETTINGS, tmp_path)
    assert train(network(), footage(), SETTINGS, tmp_path, resume=False).resumed_from == 0


# --- stopping early -------------------------------------------------------------------------------


class Spoiled:
    """An objective that goes wrong in the second epoch."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.steps = 0

    def prepare(self, autoencoder: Autoencoder, frames: np.ndarray) -> None:
        """Nothing to look at."""

    def __call__(self, autoencoder: Autoencoder, batch: Batch) -> Tensor:
        loss = Reconstruction("l1")(autoencoder, batch)
        self.steps += autoencoder.training
        if self.how == "validation":
            return loss * math.inf if not autoencoder.training and self.steps > 2 else loss
        if self.steps < 4:
            return loss
        if self.how == "gradient":
            # A finite loss whose gradient is not: the slope of a root at zero.
            return loss + torch.sqrt(0 * sum(p.abs().sum() for p in autoencoder.parameters()))
        return loss * (math.nan if self.how == "nan" else math.inf)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("nan", "the loss is not a finite number in epoch 2, step 2"),
        ("inf", "the loss is not a finite number in epoch 2, step 2"),
        ("validation", "a weight or the validation loss is not a finite number in epoch 2"),
        ("gradient", "a weight or the validation loss is not a finite number in epoch 2"),
    ],
)
def test_a_loss_that_is_not_a_number_stops_at_once_and_keeps_the_last_epoch(
    tmp_path: Path, how: str, says: str
) -> None:
    film = footage(held=3 if how == "validation" else 0)
    with pytest.raises(TrainingError, match=says) as caught:
        train(network(), film, SETTINGS, tmp_path, objective=Spoiled(how))
    assert "--learning-rate 0.0002" in caught.value.fix
    state = checkpoint.load_state(tmp_path)
    assert state is not None
    assert len(state.record["history"]) == 1
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())


def test_a_learning_rate_far_too_high_is_said(tmp_path: Path) -> None:
    settings = replace(SETTINGS, optimizer="sgd", learning_rate=1e12, loss="mse", epochs=20)
    with pytest.raises(TrainingError, match=r"learning rate 1e\+12"):
        train(network(), footage(), settings, tmp_path)


def test_a_full_disk_stops_training_and_keeps_the_last_epoch(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: TrainProgress) -> None:
        if progress.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))

    try:
        with pytest.raises(TrainingError, match="cannot be written"):
            train(network(), footage(), SETTINGS, tmp_path, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.json", "state.safetensors"]
    result = train(network(), footage(), SETTINGS, tmp_path)
    assert result.resumed_from == 1


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "multiple", "expected"),
    [
        ((352, 480), 32, (224, 320)),
        ((224, 224), 4, (148, 148)),
        ((256, 256), 8, (168, 168)),
        ((64, 64), 32, (64, 64)),
        ((32, 32), 8, (24, 24)),
    ],
)
def test_crops_are_two_thirds_of_the_frame(
    frame: tuple[int, int], multiple: int, expected: tuple[int, int]
) -> None:
    assert TrainSettings().crop_of(frame, multiple) == expected


def test_crops_can_be_given_or_left_out() -> None:
    assert TrainSettings(crop=None).crop_of((352, 480), 32) == (352, 480)
    assert TrainSettings(crop=(320, 256)).crop_of((352, 480), 32) == (256, 320)


@pytest.mark.parametrize("crop", [(320, 400), (100, 64), (0, 64)])
def test_crops_that_do_not_fit_are_refused(crop: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=f"crop {crop[0]}x{crop[1]} does not suit"):
        TrainSettings(crop=crop).crop_of((352, 480), 32)


def test_an_image_size_that_does_not_divide_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"480x360 .* multiples of 32") as caught:
        TrainSettings().crop_of((360, 480), 32)
    assert "352 instead of 360" in caught.value.fix


def test_frames_and_network_must_have_the_same_channels(tmp_path: Path) -> None:
    grey = Footage(footage().frames[..., :1], footage().held_out[..., :1], footage().report)
    with pytest.raises(UsageError, match="frames have 1 channels, the network 3"):
        train(network(), grey, SETTINGS, tmp_path)


def test_cross_entropy_needs_a_sigmoid(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bce needs a decoder with sigmoid"):
        train(network("edge"), footage(), replace(SETTINGS, loss="bce"), tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"loss": "l7"},
        {"optimizer": "lion"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"batch": 0},
        {"epochs": 0},
        {"minutes": -1.0},
        {"minutes": math.inf},
        {"epochs": 2, "minutes": 2.0},
        {"weight_decay": -1.0},
        {"momentum": 1.0},
        {"momentum": 0.5},
        {"seed": -1},
        {"threads": 0},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainSettings(**values)


def test_settings_of_an_architecture_can_be_changed_one_by_one() -> None:
    settings = TrainSettings.for_arch("deep", loss=None, learning_rate=0.5)
    assert (settings.loss, settings.optimizer, settings.learning_rate) == ("bce", "adam", 0.5)
