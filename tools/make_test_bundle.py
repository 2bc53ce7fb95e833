"""Make a tiny bundle for the tests: ``python tools/make_test_bundle.py tests/data/v1.aeseg``.

Tests of the runtime read it without torch. The committed file of each schema version stays,
since every later version must read it; make a new one only when the schema version grows.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from aeseg_edge.calibration.fit import FitSettings
from aeseg_edge.export.network.config import AutoencoderConfig
from aeseg_edge.export.pipeline import train_bundle
from aeseg_edge.export.settings import TrainOptions
from aeseg_edge.export.training.settings import TrainSettings


def scene(index: int, *, width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """Draw a drifting landscape: sky, hills, a road and a moving box, with some noise."""
    generator = np.random.default_rng(index)
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = (200, 160, 110)
    horizon = height // 2 + int(4 * np.sin(index / 5))
    frame[horizon:] = (60, 120, 70)
    x = width // 2 + int(12 * np.sin(index / 7))
    road = np.array([[x - 3, horizon], [x + 3, horizon], [x + 26, height], [x - 26, height]])
    cv2.fillPoly(frame, [road.astype(np.int32)], (95, 95, 95))
    left = (index * 3) % width
    cv2.rectangle(frame, (left, horizon - 6), (left + 12, horizon + 6), (30, 30, 190), -1)
    noise = generator.normal(0, 4, frame.shape)
    return np.clip(frame + noise, 0, 255).astype(np.uint8)


def main() -> None:
    """Draw footage, train for a few seconds, write the bundle."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        footage = Path(folder) / "footage"
        footage.mkdir()
        for index in range(60):
            cv2.imwrite(str(footage / f"{index:03d}.png"), scene(index))
        draft = Path(folder) / "tiny.aeseg"
        train_bundle(
            [footage],
            draft,
            TrainOptions(
                model=AutoencoderConfig("shallow", latent_dim=8),
                image_size=(96, 64),
                training=TrainSettings.for_arch(
                    "shallow", optimizer="adam", learning_rate=2e-3, epochs=20
                ),
                fit=FitSettings(clusters=5),
                keep_frames=False,
                provenance={"footage": ["drawn"], "footage_licence": "Apache-2.0"},
            ),
        )
        output.write_bytes(draft.read_bytes())


if __name__ == "__main__":
    main()
