"""Random changes stay in range, repeat under a seed, and cut everything in the same place."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from aeseg_edge.export.network.windows import Windows  # noqa: E402
from aeseg_edge.export.training.augment import LUMA_BGR, Augmentation, disturb, draw_windows  # noqa: E402

STILL = Augmentation(
    flip=0, zoom=(1, 1), gain=0, contrast=0, saturation=0, channel_gain=0, gamma=0, noise=0
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp(count: int, rows: int, columns: int) -> Tensor:
    """Images whose two channels are the row and the column of each pixel."""
    row, column = torch.meshgrid(
        torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij"
    )
    return torch.stack((row, column)).expand(count, 2, rows, columns)


# --- where ----------------------------------------------------------------------------------------


def test_crops_without_augmentation_are_whole_pixels_of_the_frame() -> None:
    windows = draw_windows(50, (40, 60), (24, 32), seeded(), None)
    crops = windows.cut(ramp(50, 40, 60), (24, 32))
    top, left = crops[:, 0, 0, 0].round().int(), crops[:, 1, 0, 0].round().int()
    for crop, y, x in zip(crops, top.tolist(), left.tolist(), strict=True):
        expected = ramp(1, 40, 60)[0, :, y : y + 24, x : x + 32]
        assert torch.allclose(crop, expected, atol=1e-4)
    assert set(top.tolist()) == set(range(17))
    assert left.min() < 3
    assert left.max() > 25


def test_windows_stay_inside_the_frame() -> None:
    windows = draw_windows(500, (48, 64), (32, 40), seeded(), Augmentation())
    corner, extent = windows.boxes[:, :2], windows.boxes[:, 2:]
    assert (corner >= 0).all()
    assert (corner + extent <= 1 + 1e-6).all()


def test_scale_crops_keep_proportions_and_use_the_whole_range() -> None:
    windows = draw_windows(500, (480, 640), (240, 320), seeded(), Augmentation(zoom=(0.5, 1.5)))
    height, width = 480 * windows.boxes[:, 2], 640 * windows.boxes[:, 3]
    assert torch.allclose(height / width, torch.full((500,), 240 / 320))
    assert 0.5 <= height.min() / 240 < 0.52
    assert 1.48 < height.max() / 240 <= 1.5001


def test_a_crop_of_the_whole_frame_only_zooms_in() -> None:
    windows = draw_windows(100, (48, 64), (48, 64), seeded(), Augmentation())
    assert (windows.boxes[:, 2:] <= 1).all()
    assert (windows.boxes[:, 2:] < 0.95).any()


def test_a_mirrored_window_is_the_same_window_mirrored() -> None:
    images = torch.rand(3, 4, 40, 60, generator=seeded())
    boxes = draw_windows(3, (40, 60), (20, 30), seeded(), Augmentation()).boxes
    plain = Windows(boxes, torch.zeros(3, dtype=torch.bool)).cut(images, (20, 30))
    mixed = Windows(boxes, torch.tensor([True, False, True])).cut(images, (20, 30))
    assert torch.allclose(mixed[0], plain[0].flip(-1), atol=1e-5)
    assert torch.allclose(mixed[1], plain[1])
    assert torch.allclose(mixed[2], plain[2].flip(-1), atol=1e-5)


def test_half_of_the_windows_are_mirrored() -> None:
    mirrored = draw_windows(1000, (48, 64), (32, 32), seeded(), Augmentation()).mirrored
    assert 430 < mirrored.sum() < 570


def test_a_feature_map_is_cut_where_its_frame_is() -> None:
    # The same windows on an eighth of the size, as a teacher's features would be.
    fine = ramp(20, 64, 96)
    coarse = torch.nn.functional.avg_pool2d(fine, 8)
    windows = draw_windows(20, (64, 96), (32, 48), seeded(), Augmentation(zoom=(0.7, 1)))
    cut = windows.cut(coarse, (4, 6))
    expected = torch.nn.functional.avg_pool2d(windows.cut(fine, (32, 48)), 8)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert torch.allclose(cut[inner], expected[inner], atol=0.35)


# --- colour and noise -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_disturbed_images_stay_in_range_and_differ(channels: int) -> None:
    images = torch.rand(16, channels, 24, 32, generator=seeded())
    before = images.clone()
    changed = disturb(images, Augmentation(), seeded(1))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(images, before)
    assert (changed - images).abs().mean(dim=(2, 3)).min() > 0.005


def test_the_seed_repeats_a_batch_bit_for_bit() -> None:
    images = torch.rand(4, 3, 24, 32, generator=seeded())
    first, again, other = (disturb(images, Augmentation(), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_reach_nothing_changes() -> None:
    images = torch.rand(4, 4, 24, 32, generator=seeded())
    assert torch.allclose(disturb(images, STILL, seeded(1)), images, atol=1e-6)


def test_noise_has_a_random_strength_up_to_its_limit() -> None:
    images = torch.full((400, 3, 24, 32), 0.5)
    changed = disturb(images, replace(STILL, noise=0.05), seeded())
    sigma = changed.std(dim=(1, 2, 3))
    assert sigma.max() < 0.053
    assert sigma.max() > 0.047
    assert sigma.min() < 0.003
    assert abs(float(sigma.mean()) - 0.025) < 0.002


def test_saturation_keeps_grey_and_brightness() -> None:
    images = 0.25 + 0.5 * torch.rand(8, 3, 24, 32, generator=seeded())
    luma = torch.tensor(LUMA_BGR).view(1, 3, 1, 1)
    changed = disturb(images, replace(STILL, saturation=0.4), seeded(1))
    assert torch.allclose((changed * luma).sum(1), (images * luma).sum(1), atol=1e-5)
    assert not torch.allclose(changed, images, atol=1e-2)


def test_contrast_keeps_the_mean() -> None:
    images = 0.4 + 0.2 * torch.rand(8, 3, 24, 32, generator=seeded())
    changed = disturb(images, replace(STILL, contrast=0.4), seeded(1))
    assert torch.allclose(changed.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-5)
    ratio = changed.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.6 <= ratio.min() < ratio.max() <= 1.4


def test_a_gain_is_one_factor_an_image_and_thermal_has_its_own() -> None:
    images = 0.2 + 0.3 * torch.rand(8, 4, 24, 32, generator=seeded())
    factors = disturb(images, replace(STILL, gain=0.4), seeded(1)) / images
    colour, thermal = factors[:, :3].flatten(1), factors[:, 3].flatten(1)
    assert torch.allclose(colour, colour[:, :1].expand_as(colour), atol=1e-5)
    assert torch.allclose(thermal, thermal[:, :1].expand_as(thermal), atol=1e-5)
    assert (colour[:, 0] - thermal[:, 0]).abs().max() > 0.05


def test_thermal_takes_no_part_in_colour_changes() -> None:
    images = torch.rand(8, 4, 24, 32, generator=seeded())
    change = replace(STILL, contrast=0.4, saturation=0.4, channel_gain=0.1, gamma=0.4)
    changed = disturb(images, change, seeded(1))
    assert torch.equal(changed[:, 3], images[:, 3])
    assert not torch.allclose(changed[:, :3], images[:, :3], atol=0.05)


def test_gamma_keeps_black_and_white() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3).expand(50, 3, 2, 3)
    changed = disturb(images, replace(STILL, gamma=0.5), seeded())
    assert (changed[..., 0] == 0).all()
    assert (changed[..., 2] == 1).all()
    exponent = changed[:, 0, 0, 1].log() / torch.tensor(0.5).log()
    assert 1 / 1.5 <= exponent.min() < 0.75
    assert 1.35 < exponent.max() <= 1.5001
