"""A teacher's targets lie on the frame, keep its variance, and are made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from aeseg_edge.errors import MissingDependency, UsageError  # noqa: E402
from aeseg_edge.export.checkpoint import save_model  # noqa: E402
from aeseg_edge.export.network.autoencoder import build_autoencoder  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.network.windows import Windows  # noqa: E402
from aeseg_edge.export.training.losses import Batch, Taught  # noqa: E402
from aeseg_edge.export.training.teacher import FeatureMap, Targets, make_targets, open_teacher  # noqa: E402


class Looking:
    """A teacher whose features are mean colours of cells, at an offset that it states."""

    def __init__(self, stride: int = 8, shift: int = 0, stated: int | None = None) -> None:
        self.name, self.grid = f"looking {shift}", 16
        self.origin: dict[str, Any] = {}
        self.stride, self.shift, self.looks = stride, shift, 0
        self.stated = shift if stated is None else stated

    def look(self, images: torch.Tensor) -> list[FeatureMap]:
        self.looks += len(images)
        moved = torch.roll(images, (-self.shift, -self.shift), (2, 3))
        values = torch.nn.functional.avg_pool2d(moved, self.stride)
        return [FeatureMap(values, self.stride, (self.stride - 1) / 2 + self.stated)]


def frames(count: int = 6, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, uint8 [N, 64, 96, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 6, generator=generator)
    large = torch.nn.functional.interpolate(coarse, (64, 96), mode="bicubic").clamp(0, 1)
    return (large * 255).permute(0, 2, 3, 1).byte().numpy()


def test_targets_are_unit_vectors_on_the_grid() -> None:
    targets = make_targets(Looking(), frames(), frames(2, seed=1), 2)
    assert targets.frames.shape == (6, 2, 4, 6)
    assert targets.held_out.shape == (2, 2, 4, 6)
    np.testing.assert_allclose(np.linalg.norm(targets.frames, axis=1), 1, atol=2e-3)


def test_a_teacher_that_looks_elsewhere_and_says_so_gives_the_same_targets() -> None:
    def alike(teacher: Looking) -> np.ndarray:
        """Which cells look alike: whatever the order and signs of the components."""
        found = make_targets(teacher, frames(), frames(0), 3).frames[:, :, 1:-1, 1:-1]
        flat = found.astype(float).reshape(len(found), 3, -1)
        return np.einsum("ndp,ndq->npq", flat, flat)

    straight = alike(Looking())
    honest = np.abs(alike(Looking(shift=8)) - straight).mean()
    lying = np.abs(alike(Looking(shift=8, stated=0)) - straight).mean()
    assert honest < 0.3 * lying


def test_more_components_explain_more_of_the_teacher() -> None:
    shares = [make_targets(Looking(), frames(), frames(0), dim).explained for dim in (1, 2, 3)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] == pytest.approx(1.0, abs=1e-4)


def test_more_components_than_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="more than the 3 channels"):
        make_targets(Looking(), frames(), frames(0), 4)


def test_a_resumed_training_does_not_look_again(tmp_path: Path) -> None:
    teacher = Looking()
    first = make_targets(teacher, frames(), frames(1, 1), 2, folder=tmp_path)
    looks = teacher.looks
    again = make_targets(teacher, frames(), frames(1, 1), 2, folder=tmp_path)
    assert teacher.looks == looks
    np.testing.assert_array_equal(first.frames, again.frames)
    assert again.explained == pytest.approx(first.explained)


@pytest.mark.parametrize("change", ["frames", "teacher", "damage"])
def test_kept_targets_of_something_else_are_made_again(tmp_path: Path, change: str) -> None:
    teacher = Looking()
    make_targets(teacher, frames(), frames(0), 2, folder=tmp_path)
    looks = teacher.looks
    if change == "damage":
        kept = tmp_path / "teacher.safetensors"
        kept.write_bytes(kept.read_bytes()[:-100])
    if change == "teacher":
        teacher.name = "another"
    make_targets(teacher, frames(seed=int(change == "frames")), frames(0), 2, folder=tmp_path)
    assert teacher.looks > looks


def test_a_teacher_may_be_a_network_of_this_project(tmp_path: Path) -> None:
    folder = tmp_path / "large.train"
    network = build_autoencoder(AutoencoderConfig("deep", 4), seed=0)
    save_model(folder, network, {})
    targets = make_targets(open_teacher(str(folder), 3), frames(), frames(0), 2)
    assert targets.grid == 8
    assert targets.frames.shape == (6, 2, 8, 12)
    with pytest.raises(UsageError, match="takes 3 channels"):
        open_teacher(str(folder), 1)


@pytest.mark.parametrize("name", ["efficientnet", "resnet50", ""])
def test_an_unknown_teacher_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown"):
        open_teacher(name, 3)


def test_timm_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependency, match="needs timm"):
        open_teacher("timm:resnet18", 3)


def taught(count: int = 2) -> tuple[Taught, Batch]:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.nn.functional.normalize(torch.randn(count, 4, 4, 6, generator=generator), dim=1)
    targets = Targets(wanted.half().numpy(), wanted.half().numpy()[:0], 16, 1.0)
    images = torch.rand(count, 3, 64, 96, generator=generator)
    return Taught(targets), Batch(images, images, torch.arange(count), None)


def test_latents_that_equal_the_targets_have_no_feature_loss() -> None:
    objective, batch = taught()
    network = build_autoencoder(AutoencoderConfig("deep", 4), seed=0)
    wanted = torch.from_numpy(objective.targets.frames).float()
    perfect = torch.nn.functional.interpolate(3 * wanted, scale_factor=2, mode="nearest")
    network.encode = lambda images: perfect  # type: ignore[method-assign]
    network.decode = lambda latents: batch.targets  # type: ignore[method-assign]
    assert float(objective(network, batch)) == pytest.approx(0, abs=1e-3)
    network.encode = lambda images: -perfect  # type: ignore[method-assign]
    assert float(objective(network, batch)) == pytest.approx(2, abs=1e-3)


def test_a_mirrored_window_is_compared_with_the_mirrored_target() -> None:
    objective, batch = taught()
    network = build_autoencoder(AutoencoderConfig("deep", 4), seed=0)
    wanted = torch.from_numpy(objective.targets.frames).float()
    network.encode = lambda images: torch.nn.functional.interpolate(  # type: ignore[method-assign]
        wanted.flip(3), scale_factor=2, mode="nearest"
    )
    network.decode = lambda latents: batch.targets  # type: ignore[method-assign]
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, -1)
    mirrored = Batch(
        batch.inputs, batch.targets, batch.indices, Windows(whole, torch.tensor([True, True]))
    )
    assert float(objective(network, mirrored)) == pytest.approx(0, abs=1e-3)
    assert float(objective(network, batch)) > 0.3


def test_targets_of_other_footage_are_refused() -> None:
    objective, _ = taught()
    network = build_autoencoder(AutoencoderConfig("deep", 4), seed=0)
    with pytest.raises(UsageError, match="2 frames and 4 latent channels, not for 5"):
        objective.prepare(network, frames(5))
