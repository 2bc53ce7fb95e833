"""Every architecture has one interface, keeps sizes, and is made of what it says."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn  # noqa: E402

from aeseg_edge.errors import UsageError  # noqa: E402
from aeseg_edge.export.network.autoencoder import (  # noqa: E402
    ARCHITECTURES,
    Autoencoder,
    AutoencoderConfig,
    build_autoencoder,
)

ARCHS = sorted(ARCHITECTURES)
STRIDES = {"edge": (8, 32), "lite": (8, 32), "shallow": (4, 4), "deep": (8, 8)}
EDGE_OPERATIONS = {"Conv2d", "BatchNorm2d", "ReLU", "relu", "add", "interpolate"}
"""Normalisation is folded into the convolution before it when the graph is exported."""


def network(arch: str, dim: int = 6, channels: int = 3, seed: int | None = 0) -> Autoencoder:
    return build_autoencoder(AutoencoderConfig(arch, dim, channels), seed=seed).eval()


def layers(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def test_there_are_four_architectures() -> None:
    assert ARCHS == ["deep", "edge", "lite", "shallow"]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("arch", ARCHS)
def test_images_come_back_at_their_size_with_their_channels(arch: str, channels: int) -> None:
    model = network(arch, channels=channels)
    assert (model.stride, model.multiple) == STRIDES[arch]
    with torch.no_grad():
        latents, images = model(torch.rand(2, channels, 64, 96))
    assert latents.shape == (2, 6, 64 // model.stride, 96 // model.stride)
    assert images.shape == (2, channels, 64, 96)


@pytest.mark.parametrize("arch", ARCHS)
def test_sizes_are_any_multiples_of_the_deepest_stride(arch: str) -> None:
    model = network(arch)
    step = model.multiple
    for rows, columns in ((step, step), (step, 3 * step), (5 * step, 2 * step)):
        with torch.no_grad():
            latents, images = model(torch.rand(1, 3, rows, columns))
        assert latents.shape[2:] == (rows // model.stride, columns // model.stride)
        assert images.shape[2:] == (rows, columns)


@pytest.mark.parametrize("dim", [1, 8, 64])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_1x1_projection_decides_the_latent_dimension(arch: str, dim: int) -> None:
    model = network(arch, dim)
    assert (model.project.kernel_size, model.project.out_channels) == ((1, 1), dim)
    assert model.project.bias is not None
    step = model.multiple
    assert model.encode(torch.rand(1, 3, step, step)).shape[1] == dim


@pytest.mark.parametrize("arch", ARCHS)
def test_decoding_is_the_activation_of_the_logits(arch: str) -> None:
    model = network(arch)
    latents = 20 * torch.randn(1, 6, 8, 8)
    logits = model.logits(latents)
    if arch == "deep":
        assert model.decoder_activation == "sigmoid"
        assert torch.equal(model.decode(latents), torch.sigmoid(logits))
    else:
        assert model.decoder_activation == "identity"
        assert torch.equal(model.decode(latents), logits)


@pytest.mark.parametrize("arch", ARCHS)
def test_bytes_are_normalised_without_loss(arch: str) -> None:
    model = network(arch)
    levels = torch.arange(256).float().reshape(1, 1, 16, 16) / 255
    normalised = (levels - model.mean[:, :1]) / model.std[:, :1]
    assert torch.allclose(normalised, (torch.arange(256).reshape(1, 1, 16, 16) - 128) / 64)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_seed_repeats_the_weights_and_leaves_the_global_generator_alone(arch: str) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = network(arch, seed=7).state_dict()
    torch.rand(5)
    second = network(arch, seed=7).state_dict()
    torch.set_rng_state(state)
    other = network(arch, seed=8).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["project.weight"], other["project.weight"])


@pytest.mark.parametrize("arch", ARCHS)
def test_without_a_seed_weights_differ(arch: str) -> None:
    first, second = network(arch, seed=None), network(arch, seed=None)
    assert not torch.equal(first.project.weight, second.project.weight)


# --- what each is made of -------------------------------------------------------------------------


def test_edge_has_at_most_1_2_million_parameters_with_its_context_and_neck() -> None:
    for dim in (32, 64):
        model = network("edge", dim)
        parts = (model.trunk, model.project)
        assert sum(p.numel() for part in parts for p in part.parameters()) <= 1_200_000


def test_edge_has_no_depthwise_or_grouped_convolution() -> None:
    model = network("edge")
    convolutions = layers(model.trunk, nn.Conv2d)
    assert len(convolutions) > 10
    assert all(convolution.groups == 1 for convolution in convolutions)


def test_edge_uses_only_the_operations_it_names() -> None:
    graph = fx.symbolic_trace(network("edge").trunk)
    found = set()
    for node in graph.graph.nodes:
        if node.op == "call_module":
            found.add(type(graph.get_submodule(node.target)).__name__)
        elif node.op in ("call_function", "call_method"):
            found.add(getattr(node.target, "__name__", node.target))
        if getattr(node.target, "__name__", "") == "interpolate":
            assert node.kwargs["mode"] == "nearest"
    assert found == EDGE_OPERATIONS


def test_edge_normalises_after_a_convolution_and_nowhere_else() -> None:
    for unit in layers(network("edge").trunk, nn.Sequential):
        for before, after in zip(unit, list(unit)[1:], strict=False):
            if isinstance(after, nn.BatchNorm2d):
                assert isinstance(before, nn.Conv2d)
                assert before.bias is None


def test_shallow_is_the_network_of_the_first_article() -> None:
    model = network("shallow")
    kinds = [type(layer).__name__ for layer in model.trunk]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d"] * 2
    assert [c.out_channels for c in layers(model.trunk, nn.Conv2d)] == [32, 64]
    assert {c.kernel_size for c in layers(model.trunk, nn.Conv2d)} == {(3, 3)}
    up = layers(model.decoder, nn.ConvTranspose2d)
    assert [c.out_channels for c in up] == [64, 32, 3]
    assert len(layers(model.decoder, nn.Upsample)) == 2
    defaults = ARCHITECTURES["shallow"]
    assert (defaults.loss, defaults.optimizer, defaults.learning_rate) == ("mse", "sgd", 0.01)
    assert defaults.image_size == (224, 224)


def test_deep_is_the_network_of_the_second_article() -> None:
    model = network("deep")
    kinds = [type(layer).__name__ for layer in model.trunk]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d"] * 3
    assert [c.out_channels for c in layers(model.trunk, nn.Conv2d)] == [64, 128, 256]
    assert [c.out_channels for c in layers(model.decoder, nn.Conv2d)] == [256, 128, 64, 3]
    assert len(layers(model.decoder, nn.Upsample)) == 3
    defaults = ARCHITECTURES["deep"]
    assert (defaults.loss, defaults.optimizer) == ("bce", "adam")
    assert defaults.image_size == (256, 256)


@pytest.mark.parametrize("arch", ARCHS)
def test_defaults_are_sizes_the_network_takes_after_rounding(arch: str) -> None:
    defaults = ARCHITECTURES[arch]
    assert min(defaults.image_size) >= network(arch).multiple
    assert defaults.batch >= 1
    assert defaults.help


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("unet", 32, 3), "'unet' is unknown"),
        (("edge", 0, 3), "latent dimension 0"),
        (("edge", 1025, 3), "latent dimension 1025"),
        (("edge", 32, 0), "0 image channels"),
        (("edge", 32, 17), "17 image channels"),
    ],
)
def test_what_no_network_can_be_built_from_is_refused(
    values: tuple[str, int, int], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        AutoencoderConfig(*values)
    assert caught.value.fix
