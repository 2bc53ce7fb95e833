"""Directions that change from view to view count for less."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from aeseg_edge.export.network.autoencoder import Autoencoder, build_autoencoder  # noqa: E402
from aeseg_edge.export.network.config import AutoencoderConfig  # noqa: E402
from aeseg_edge.export.training.augment import disturb  # noqa: E402
from aeseg_edge.export.training.invariance import PLACES, even_latents, evened, view_covariance  # noqa: E402


def frames(count: int = 6) -> np.ndarray:
    """Smooth random pictures, uint8 [N, 64, 96, 3]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 6, generator=generator)
    large = torch.nn.functional.interpolate(coarse, (64, 96), mode="bicubic").clamp(0, 1)
    return (large * 255).permute(0, 2, 3, 1).byte().numpy()


def position_and_hue(images: torch.Tensor) -> torch.Tensor:
    """Two features: the row, which another view moves, and a ratio of colours, which it keeps."""
    small = torch.nn.functional.avg_pool2d(images, 8)
    row = torch.linspace(-1, 1, small.shape[2])[None, None, :, None].expand_as(small[:, :1])
    hue = (small[:, 2:] - small[:, :1]) / (small.sum(1, keepdim=True) + 1)
    return torch.cat((row, hue), 1)


def test_what_another_view_moves_differs_more_than_what_it_keeps() -> None:
    covariance = view_covariance(position_and_hue, frames())
    assert covariance.shape == (2, 2)
    assert covariance[0, 0] > 20 * covariance[1, 1]
    torch.testing.assert_close(covariance, covariance.T)


def test_views_are_the_same_each_time_and_a_feature_of_the_whole_frame_does_not_differ() -> None:
    first, second = (view_covariance(position_and_hue, frames()) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    constant = view_covariance(lambda images: torch.ones(len(images), 1, 4, 4), frames())
    assert float(constant) == 0


def test_evened_makes_unsteady_directions_smaller_and_steady_ones_larger() -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    covariance = (turn.double() * torch.tensor([9.0, 1.0, 0.0])) @ turn.double().T
    matrix = evened(covariance, ridge=0.1)
    scale = (turn.double().T @ matrix @ turn.double()).diagonal()
    assert scale[0] < scale[1] < scale[2]
    # Exactly (N + e I)^(-1/2): with a small ridge, what differed by 9 and by 1 is alike.
    assert float(scale[1] / scale[0]) == pytest.approx(np.sqrt(9.333333 / 1.333333), rel=1e-4)
    assert float(torch.linalg.eigvalsh(matrix).mean()) == pytest.approx(1.0)


def test_where_nothing_differs_nothing_changes() -> None:
    torch.testing.assert_close(
        evened(torch.zeros(4, 4, dtype=torch.float64)), torch.eye(4, dtype=torch.float64)
    )


def test_evened_latents_are_steadier_and_the_decoder_draws_the_same() -> None:
    before = build_autoencoder(AutoencoderConfig("edge", latent_dim=8), seed=0).eval()
    after = even_latents(before, frames())
    image = torch.from_numpy(frames(1)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        old, new = before.encode(image), after.encode(image)
        torch.testing.assert_close(after.decode(new), before.decode(old), rtol=1e-3, atol=1e-3)

    def spread(network: Autoencoder) -> float:
        """Largest variance between views over the mean of all directions."""
        found = view_covariance(
            lambda images: torch.nn.functional.normalize(network.encode(images), dim=1),
            frames(),
            views=PLACES,
        )
        values = torch.linalg.eigvalsh(found)
        return float(values[-1] / values.mean())

    assert spread(after) < 0.8 * spread(before)


def test_views_in_their_own_colours_change_no_pixel() -> None:
    image = torch.from_numpy(frames(2)).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(disturb(image, PLACES, generator), image, rtol=0, atol=1e-6)
