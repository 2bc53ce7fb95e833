"""Which part of its frame each image of a batch shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Windows:
    """Which part of its frame each image of a batch shows.

    Boxes are float32 [N, 4]: top, left, height, width as shares of the frame, 0..1.
    """

    boxes: Tensor
    mirrored: Tensor

    def cut(self, images: Tensor, size: tuple[int, int], *, mode: str = "bilinear") -> Tensor:
        """Cut the windows out of frames, or anything laid over them: float32 [N, C, height, width].

        ``mode``: ``bilinear`` for pictures and features, ``nearest`` for labels. A window of
        exactly the result's size on whole pixels is a plain crop (up to float rounding).
        """
        top, left, height, width = self.boxes.unbind(1)
        sign = torch.where(self.mirrored, -1.0, 1.0)
        zero = torch.zeros_like(top)
        # grid_sample counts from -1 to 1 over the frame; its centre of a window is
        # 2 * (left + width / 2) - 1, and half its extent is `width`.
        theta = torch.stack(
            (
                torch.stack((width * sign, zero, 2 * left + width - 1), 1),
                torch.stack((zero, height, 2 * top + height - 1), 1),
            ),
            1,
        )
        grid = functional.affine_grid(
            theta, [len(images), images.shape[1], *size], align_corners=False
        )
        return functional.grid_sample(
            images, grid, mode=mode, padding_mode="border", align_corners=False
        )
