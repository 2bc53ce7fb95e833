"""What a patch looks like does not depend on where exactly its edges lie."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from aeseg_edge.export.network.appearance import AppearanceHead, describe, descriptor_count  # noqa: E402
from aeseg_edge.export.network.windows import Windows  # noqa: E402


def stripes(phase: int, *, period: int = 8, vertical: bool = True) -> torch.Tensor:
    wave = (torch.arange(128) + phase) % period < period // 2
    image = wave.float()[None, :].expand(128, 128)
    image = image if vertical else image.T
    return image.expand(1, 3, 128, 128).contiguous()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_there_is_one_descriptor_vector_a_cell(channels: int) -> None:
    found = describe(torch.rand(2, channels, 64, 96), 8)
    assert found.shape == (2, descriptor_count(channels), 8, 12)
    assert torch.isfinite(found).all()


def test_descriptors_ignore_the_phase_of_a_texture_and_see_its_orientation() -> None:
    middle = (slice(None), slice(None), slice(5, 11), slice(5, 11))
    first, moved = (describe(stripes(phase, period=10), 8)[middle] for phase in (0, 2))
    turned = describe(stripes(0, period=10, vertical=False), 8)[middle]
    assert (first - moved).abs().mean() < 0.15 * (first - turned).abs().mean()


def test_a_flat_image_is_described_by_its_colour() -> None:
    image = torch.tensor([0.1, 0.5, 0.9])[None, :, None, None].expand(1, 3, 64, 64)
    found = describe(image, 8)
    np.testing.assert_allclose(found[0, :6, 4, 4], [0.1, 0.5, 0.9] * 2, atol=1e-6)
    assert found[0, 6:].abs().max() < 1e-3


def test_the_scale_is_learnt_from_the_footage() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 64, 96, 3), dtype=np.uint8)
    head = AppearanceHead(8, 3, 8)
    head.fit(frames)
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    scaled = (describe(images, 8) - head.mean) / head.std
    assert scaled.mean((0, 2, 3)).abs().max() < 1e-2
    assert scaled.std((0, 2, 3)).max() < 1.05


def test_a_window_is_told_where_it_lies_in_its_frame() -> None:
    """A head that knows the whole frame's position has no loss on any crop of it."""
    head = AppearanceHead(2, 1, 8)
    with torch.no_grad():
        head.predict.weight.zero_()
        head.predict.bias.zero_()
        head.predict.weight[-2, 0] = 1.0
        head.predict.weight[-1, 1] = 1.0
    boxes = torch.tensor([[0.25, 0.5, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5]])
    windows = Windows(boxes, torch.tensor([True, False]))
    images = torch.full((2, 1, 32, 32), 0.5)
    cell = (torch.arange(4) + 0.5) / 4
    latents = torch.empty(2, 2, 4, 4)
    for index, (top, left, height, width) in enumerate(boxes.tolist()):
        down = top + cell * height
        along = left + (1 - cell if index == 0 else cell) * width
        latents[index, 0] = (1.7 * (2 * down - 1))[:, None]
        latents[index, 1] = (3.0 * ((2 * along - 1).abs() - 0.5))[None]
    head.mean.copy_(describe(images, 8).mean((0, 2, 3), keepdim=True))
    right = head.loss(latents, images, windows)
    wrong = head.loss(latents.flip(2), images, windows)
    assert right < 1e-6
    assert wrong > 1e-2
