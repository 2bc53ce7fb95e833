"""Losses are the formulas that they name, and refuse decoders that they do not suit."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from aeseg_edge.errors import UsageError  # noqa: E402
from aeseg_edge.export.network.autoencoder import Autoencoder, build_autoencoder  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.training.losses import LOSSES, Batch, Reconstruction  # noqa: E402

PREDICTION = torch.tensor([[[[0.0, 2.0], [-1.0, 0.5]]]])
TARGET = torch.tensor([[[[0.0, 1.0], [1.0, 0.25]]]])


def binary_cross_entropy(logit: float, target: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -target * math.log(probability) - (1 - target) * math.log(1 - probability)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", (0 + 1 + 4 + 0.0625) / 4),
        ("l1", (0 + 1 + 2 + 0.25) / 4),
        (
            "bce",
            sum(binary_cross_entropy(*p) for p in ((0, 0), (2, 1), (-1, 1), (0.5, 0.25))) / 4,
        ),
    ],
)
def test_a_loss_is_its_formula(name: str, expected: float) -> None:
    assert float(LOSSES[name](PREDICTION, TARGET)) == pytest.approx(expected, rel=1e-6)


def make(arch: str) -> tuple[Autoencoder, Batch]:
    autoencoder = build_autoencoder(AutoencoderConfig(arch, latent_dim=4), seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.rand(2, 2, 3, 32, 32, generator=generator)
    return autoencoder, Batch(inputs, targets, torch.tensor([0, 1]), None)


@pytest.mark.parametrize(("arch", "name"), [("shallow", "mse"), ("deep", "l1"), ("deep", "bce")])
def test_a_reconstruction_is_of_the_input_and_compared_with_the_target(
    arch: str, name: str
) -> None:
    autoencoder, batch = make(arch)
    loss = Reconstruction(name)(autoencoder, batch)
    drawn: Tensor = autoencoder(batch.inputs)[1]
    if name == "bce":
        expected = torch.nn.functional.binary_cross_entropy(drawn, batch.targets)
    else:
        expected = LOSSES[name](drawn, batch.targets)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_every_weight_gets_a_gradient() -> None:
    autoencoder, batch = make("edge")
    autoencoder.train()
    Reconstruction("l1")(autoencoder, batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in autoencoder.parameters())


def test_cross_entropy_refuses_a_decoder_without_sigmoid() -> None:
    with pytest.raises(UsageError, match="edge is identity"):
        Reconstruction("bce").check(make("edge")[0])
    Reconstruction("bce").check(make("deep")[0])


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(UsageError, match="'l3' is unknown"):
        Reconstruction("l3")
