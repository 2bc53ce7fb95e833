"""Two processes with half the batch take the steps of one with the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from aeseg_edge.calibration.footage.gather import Footage, FootageReport  # noqa: E402
from aeseg_edge.cli.main import main  # noqa: E402
from aeseg_edge.errors import TrainingError  # noqa: E402
from aeseg_edge.export.network.autoencoder import build_autoencoder  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.training import team as module  # noqa: E402
from aeseg_edge.export.training.augment import Augmentation, disturb  # noqa: E402
from aeseg_edge.export.training.loop import TrainSettings, train  # noqa: E402
from aeseg_edge.export.training.team import ALONE, Team, join_team, talking  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

# What each of two processes does; the first argument is a folder.
SCRIPT = """
import hashlib, json, sys
from dataclasses import asdict
from pathlib import Path
import numpy as np
import torch
from aeseg_edge.errors import AesegError
from aeseg_edge.export.network.autoencoder import AutoencoderConfig, build_autoencoder
from aeseg_edge.calibration.footage.gather import Footage, FootageReport
from aeseg_edge.export.training.team import join_team
from aeseg_edge.export.training.loop import TrainSettings, train
from aeseg_edge.sources.scene import draw_scene

torch.set_num_threads(1)
here, fails = Path(sys.argv[1]), sys.argv[2:] == ["fails"]
frames = np.stack([draw_scene(23 * i, 96, 64) for i in range(14)])
footage = Footage(frames[:12], frames[12:], FootageReport((), 12, 2))
settings = TrainSettings(batch=2, epochs=3, arithmetic="float32", crop=(96, 64))

def digest(network):
    found = hashlib.sha256()
    for tensor in network.state_dict().values():
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()

def stop(at):
    if fails and at.record is None and at.epoch == 2:
        raise AesegError("the cable was cut", fix="Mend it.")

with join_team() as team:
    told = {"size": team.size}
    folder = here / f"{team.rank}.train"
    for time in ("first", "again"):
        network = build_autoencoder(AutoencoderConfig("edge", latent_dim=4), seed=0)
        progress = stop if team.rank == 1 else None
        result = train(network, footage, settings, folder, team=team, progress=progress)
        told[time] = [asdict(record) for record in result.history]
        told[f"{time} weights"] = digest(network)
        told[f"{time} from"] = result.resumed_from
    told["norms"] = sorted({type(m).__name__ for m in network.modules() if "Norm" in str(type(m))})
    (here / f"{team.rank}.json").write_text(json.dumps(told))
"""


def torchrun(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [*TORCHRUN, str(script), str(folder), *more],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).resolve().parents[3],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )


def told(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{rank}.json").read_text())
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_loss_curve_is_that_of_one_process_with_twice_the_batch(
    two: Path, tmp_path: Path
) -> None:
    frames = np.stack([draw_scene(23 * i, 96, 64) for i in range(14)])
    footage = Footage(frames[:12], frames[12:], FootageReport((), 12, 2))
    settings = TrainSettings(batch=4, epochs=3, arithmetic="float32", crop=(96, 64))
    network = build_autoencoder(AutoencoderConfig("edge", latent_dim=4), seed=0)
    one = train(network, footage, settings, tmp_path / "one.train").history
    shared = told(two, 0)["first"]
    assert [each.steps for each in one] == [each["steps"] for each in shared] == [3, 6, 9]
    # The same batches, crops, colours and noise: what differs is the rounding of sums.
    for alone, together in zip(one, shared, strict=True):
        assert together["train_loss"] == pytest.approx(alone.train_loss, rel=2e-3)
        assert together["validation_loss"] == pytest.approx(alone.validation_loss, rel=1e-2)
    assert shared[0]["train_loss"] == pytest.approx(one[0].train_loss, rel=1e-5)


@pytest.mark.slow
def test_all_processes_end_with_the_same_weights_and_only_the_first_writes(two: Path) -> None:
    first, second = told(two, 0), told(two, 1)
    assert first["size"] == second["size"] == 2
    assert first["first weights"] == second["first weights"]
    assert first["first"] == second["first"]
    assert (two / "0.train").is_dir()
    assert not (two / "1.train").exists()
    # Normalisation is the usual one again, as checkpoints and exports know it.
    assert first["norms"] == ["BatchNorm2d"]


@pytest.mark.slow
def test_what_the_first_process_has_on_disk_is_where_all_go_on_from(two: Path) -> None:
    for rank in (0, 1):
        found = told(two, rank)
        assert (found["first from"], found["again from"]) == (0, 3)
        assert found["again weights"] == found["first weights"]


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "fails")
    assert done.returncode != 0
    assert "the cable was cut" in done.stderr
    assert not list(tmp_path.glob("?.json"))
    # The epoch before is on disk.
    history = json.loads((tmp_path / "0.train" / "history.json").read_text())
    assert len(history) == 1


@pytest.mark.slow
def test_the_command_trains_on_two_processes_and_writes_one_bundle(tmp_path: Path) -> None:
    import cv2

    clip = tmp_path / "clip"
    clip.mkdir()
    for index in range(10):
        cv2.imwrite(str(clip / f"{index}.png"), draw_scene(31 * index, 96, 64))
    command = ["train", str(clip), "-o", str(tmp_path / "two.aeseg"), "--imgsz", "96x64"]
    options = ["--epochs", "1", "--batch", "2", "--clusters", "3", "--restarts", "1"]
    done = subprocess.run(
        [*TORCHRUN, "-m", "aeseg_edge.cli", *command, *options, "--latent-dim", "4"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("two.aeseg") == 1
    from aeseg_edge.bundle.archive import Bundle

    training = Bundle.open(tmp_path / "two.aeseg").manifest.training
    assert training["processes"] == 2
    assert (training["steps"], training["settings"]["batch"]) == (2, 2)


# --- without other processes ----------------------------------------------------------------------


def test_shares_of_a_batch_are_all_of_it_once() -> None:
    batch = torch.arange(12).reshape(6, 2)
    parts = [Team(rank, 3).share(batch) for rank in range(3)]
    assert torch.equal(torch.cat(parts), batch)
    assert all(len(part) == 2 for part in parts)


def test_a_part_is_changed_as_it_is_among_the_others() -> None:
    images = torch.rand((6, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    whole = disturb(images, Augmentation(), torch.Generator().manual_seed(2))
    for start in (0, 2, 4):
        generator = torch.Generator().manual_seed(2)
        part = disturb(images[start : start + 2], Augmentation(), generator, among=(start, 6))
        torch.testing.assert_close(part, whole[start : start + 2], rtol=0, atol=1e-6)


def test_a_process_by_itself_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object, **more: object) -> None:
        raise AssertionError("torch.distributed was asked")

    for name in ("init_process_group", "all_reduce", "broadcast"):
        monkeypatch.setattr(module.distributed, name, never)
    parameter = nn.Parameter(torch.ones(2))
    with join_team() as team:
        assert team is ALONE
        assert team.average([parameter], 3.0) == 3.0
        assert team.agreed(2.0) == 2.0
        assert team.share_record({"a": 1}) == {"a": 1}
        team.check_same({"a": 1})
        network = nn.Sequential(nn.BatchNorm2d(3))
        with team.normalising(network) as normalising:
            assert type(normalising[0]) is nn.BatchNorm2d


def test_processes_that_were_told_different_things_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Team, "share_record", lambda self, record: {"seed": 1, "footage": "a"})
    Team(1, 2).check_same({"seed": 1, "footage": "a"})
    with pytest.raises(TrainingError, match=r"process 1 has another seed than the first \(2, not"):
        Team(1, 2).check_same({"seed": 2, "footage": "a"})
    with pytest.raises(TrainingError, match="process 1 has another footage than the first"):
        Team(1, 2).check_same({"seed": 1, "footage": "b"})


def test_a_lost_connection_is_said_in_words_and_other_faults_stay() -> None:
    with pytest.raises(TrainingError, match="another process of the training has ended"), talking():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    with pytest.raises(RuntimeError, match="out of memory"), talking():
        raise RuntimeError("out of memory")


def test_training_with_labels_is_refused_on_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "started_together", lambda: True)
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    command = ["train", str(tmp_path), "-o", str(tmp_path / "a.aeseg"), "--masks", str(tmp_path)]
    assert main([*command, "--classes", str(tmp_path / "classes.txt")]) == 2
    assert "training with labels runs in one process" in capsys.readouterr().err


def test_build_autoencoder_has_norms_to_share() -> None:
    """Without any, the curves of two processes would agree for no reason."""
    network = build_autoencoder(AutoencoderConfig("edge", latent_dim=4), seed=0)
    assert any(type(each) is nn.BatchNorm2d for each in network.modules())
