"""Latent channels that are left out after training, without training again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("sklearn")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.calibration.fit import FitSettings  # noqa: E402
from aeseg_edge.cli import main  # noqa: E402
from aeseg_edge.errors import UsageError  # noqa: E402
from aeseg_edge.export.checkpoint import load_model, save_model  # noqa: E402
from aeseg_edge.export.kept_frames import save_frames  # noqa: E402
from aeseg_edge.export.network.autoencoder import Autoencoder, build_autoencoder  # noqa: E402
from aeseg_edge.export.network.catalogue import ARCHITECTURES  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.network.reduce import fold, principal_axes, reduce_latents  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402

FIT = FitSettings(clusters=4, clustering="kmeans", restarts=3, samples=2000, threads=1)


def network(arch: str = "shallow", dim: int = 12, *, rank: int | None = None) -> Autoencoder:
    """An untrained network; with a rank, its latents lie in so many dimensions."""
    made = build_autoencoder(AutoencoderConfig(arch, dim), seed=0).eval()
    if rank is not None:
        with torch.no_grad():
            weight = made.project.weight[:, :, 0, 0]
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            values = torch.where(torch.arange(len(values)) < rank, 1.0, 1e-4)
            made.project.weight.copy_((left * values @ right)[:, :, None, None])
    return made


def images(count: int = 6) -> np.ndarray:
    return np.stack([draw_scene(9 * index, 96, 64) for index in range(count)])


def batch(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
@torch.no_grad()
def test_all_components_decode_to_the_same_picture(arch: str) -> None:
    before = network(arch)
    shown = batch(images())
    latents, drawn = before(shown)
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 12).numpy()
    mean, axes, variance = principal_axes(flat)
    assert (np.diff(variance) <= 0).all()
    after = fold(before, mean, axes)
    turned, again = after(shown)
    np.testing.assert_allclose(again.numpy(), drawn.numpy(), atol=1e-4)
    expected = (flat - mean) @ axes
    got = turned.permute(0, 2, 3, 1).reshape(-1, 12).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


@torch.no_grad()
def test_fewer_components_are_the_best_linear_reconstruction_of_latents() -> None:
    before = network()
    shown = batch(images())
    flat = before.encode(shown).permute(0, 2, 3, 1).reshape(-1, 12).numpy()
    mean, axes, variance = principal_axes(flat)
    after = fold(before, mean, axes[:, :5])
    expand = after.decoder[0]
    back = expand(after.encode(shown)).permute(0, 2, 3, 1).reshape(-1, 12).numpy()
    lost = ((back - flat) ** 2).sum(axis=1).mean() * len(flat) / (len(flat) - 1)
    assert lost == pytest.approx(variance[5:].sum(), rel=1e-3)
    picture = before.logits(torch.from_numpy(back[:384].T.reshape(1, 12, 16, 24)))
    np.testing.assert_allclose(after(shown[:1])[1].numpy(), picture.numpy(), atol=1e-4)


@torch.no_grad()
def test_reducing_twice_is_reducing_once() -> None:
    frames = images()
    once, _ = reduce_latents(network(), frames, 4, FIT)
    first, _ = reduce_latents(network(), frames, 8, FIT)
    twice, choice = reduce_latents(first, frames, 4, FIT)
    assert (choice.trained, twice.config.trained_dim, twice.config.latent_dim) == (8, 12, 4)
    shown = batch(frames)
    np.testing.assert_allclose(twice(shown)[1].numpy(), once(shown)[1].numpy(), atol=1e-3)


def test_auto_finds_how_many_dimensions_latents_have() -> None:
    found, choice = reduce_latents(network(rank=3), images(), "auto", FIT)
    assert choice.automatic
    assert choice.chosen == found.config.latent_dim <= 3
    at = choice.values.index(choice.chosen)
    assert choice.explained[at] >= 0.95
    assert choice.agreement[at] >= 0.9
    assert choice.values[-1] == 12
    assert choice.explained[-1] == pytest.approx(1)
    assert choice.agreement[-1] == pytest.approx(1, abs=0.02)
    smaller = [e < 0.95 or a < 0.9 for e, a in zip(choice.explained, choice.agreement, strict=True)]
    assert all(smaller[:at])
    again = reduce_latents(network(rank=3), images(), "auto", FIT)[1]
    assert again == choice


def test_more_channels_than_there_are_cannot_be_kept() -> None:
    with pytest.raises(UsageError, match=r"20 latent channels are not within 1\.\.12"):
        reduce_latents(network(), images(), 20, FIT)
    with pytest.raises(UsageError, match="no reduction of 4"):
        AutoencoderConfig("shallow", latent_dim=8, trained_dim=4)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
@torch.no_grad()
def test_a_reduced_network_is_saved_and_read_like_any_other(arch: str, tmp_path: Path) -> None:
    found, _ = reduce_latents(network(arch), images(), 5, replace(FIT, clustering="spherical"))
    save_model(tmp_path / "a.train", found, {})
    loaded, _ = load_model(tmp_path / "a.train")
    assert loaded.config == AutoencoderConfig(arch, 5, 3, trained_dim=12)
    shown = batch(images(2))
    np.testing.assert_array_equal(loaded(shown)[1].numpy(), found(shown)[1].numpy())


def checkpoint(folder: Path) -> Path:
    save_model(
        folder,
        network(),
        {
            "geometry": {"width": 96, "height": 64, "channels": 3, "resize": "stretch"},
            "output_stride": 2,
            "training": {"arch": "shallow", "latent_dim": 12},
            "provenance": {},
            "fit": {"clusters": 4, "clustering": "kmeans"},
        },
    )
    save_frames(folder, images(9))
    return folder


def test_export_keeps_as_many_latents_as_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "a.train")
    options = ["--restarts", "2", "--threads", "1", "--json", "-"]
    for wanted in ("5", "auto"):
        output = tmp_path / f"{wanted}.aeseg"
        assert (
            main(["export", str(folder), "-o", str(output), "--latent-dim", wanted, *options]) == 0
        )
        told = json.loads(capsys.readouterr().out)
        bundle = Bundle.open(output)
        chosen = told["latents_chosen"]
        assert bundle.manifest.latent_dim == bundle.codebook.latent_dim == chosen["chosen"]
        assert bundle.manifest.training["latent_dim"] == chosen["chosen"]
        assert bundle.manifest.training["reduced_from"] == 12
        assert wanted == "auto" or chosen["chosen"] == 5
        assert json.loads((tmp_path / f"{wanted}.latents.json").read_text()) == chosen
    # The checkpoint itself stays as wide as it was trained.
    assert load_model(folder)[0].config.latent_dim == 12
    assert main(["export", str(folder), "-o", str(output), "--latent-dim", "13", *options]) == 2
    assert "13 latent channels are not within 1..12" in capsys.readouterr().err


def test_train_auto_trains_wide_and_saves_the_reduced_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    (tmp_path / "in").mkdir()
    for index, image in enumerate(images(9)):
        cv2.imwrite(str(tmp_path / "in" / f"{index}.png"), image)
    command = ["train", str(tmp_path / "in"), "-o", str(tmp_path / "a.aeseg"), "--arch", "shallow"]
    command += ["--imgsz", "96x64", "--epochs", "1", "--latent-dim", "auto", "--clusters", "4"]
    command += ["--threads", "1", "--restarts", "2"]
    for _ in range(2):  # The second run finds the training complete.
        assert main([*command, "--json", str(tmp_path / "a.json")]) == 0
        told = json.loads((tmp_path / "a.json").read_text())["latents_chosen"]
        assert told["trained"] == 64
        config = load_model(tmp_path / "a.train")[0].config
        assert (config.latent_dim, config.trained_dim) == (told["chosen"], 64)
    assert (tmp_path / "a.latents.json").exists()
    export = [
        "export",
        str(tmp_path / "a.train"),
        "-o",
        str(tmp_path / "b.aeseg"),
        "--restarts",
        "2",
    ]
    assert main(export) == 0
    assert Bundle.open(tmp_path / "b.aeseg").manifest.latent_dim == told["chosen"]
    capsys.readouterr()
