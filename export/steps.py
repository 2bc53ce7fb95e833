"""Steps of every training and export, label-free or with labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.variants import REFERENCE
from aeseg_edge.calibration.score.sensitivity import check_names
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.errors import AesegError
from aeseg_edge.export.checkpoint import forget_frames, save_frames
from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.onnx.encoder import export_encoder
from aeseg_edge.export.training.history import TrainProgress
from aeseg_edge.segment.segmenter import Segmenter
from aeseg_edge.support.require import import_cv2

Progress = Callable[[str, float, str], None]
"""(stage, fraction of that stage, short note)."""

KEPT_FRAMES = 256
"""Frames that stay beside the checkpoint: enough for ranges, agreement and K up to 1024."""


def train_folder(output: Path) -> Path:
    """Give the checkpoint folder that belongs to a bundle: ``NAME.train``."""
    return output.with_suffix(".train")


def check_excluded(autoencoder: Autoencoder, geometry: Geometry, fit: FitSettings) -> None:
    """Refuse, before training, convolutions to leave out of int8 that there will not be.

    Raises:
        UsageError: If one of the names is not in the exported encoder.
    """
    if fit.excluded:
        encoder = export_encoder(autoencoder.eval(), height=geometry.height, width=geometry.width)
        check_names(encoder, fit.excluded)


def keep_frames(
    folder: Path,
    frames: NDArray[np.uint8],
    *,
    sizes: NDArray[np.int64] | None = None,
    wanted: bool,
) -> None:
    """Keep a sample of the frames beside the checkpoint, or forget those of an earlier run.

    Args:
        folder: ``NAME.train``.
        frames: uint8 [N, H, W, C].
        sizes: int64 [N, 2], rows and columns of each at its source; None where not known.
        wanted: False for private footage.
    """
    if wanted:
        kept = None if sizes is None else evenly(sizes, KEPT_FRAMES)
        save_frames(folder, evenly(frames, KEPT_FRAMES), kept)
    else:
        forget_frames(folder)


def deployed_encoder(
    autoencoder: Autoencoder, geometry: Geometry, output_stride: int, tell: Progress
) -> tuple[onnx.ModelProto, GraphSpec]:
    """Export the encoder of a trained network.

    Args:
        autoencoder: Is put into evaluation mode.
        geometry: Sizes of the graph.
        output_stride: Label stride s.
        tell: Called with a stage, its fraction and a note.

    Returns:
        float32 encoder, ``frame`` -> ``encoded``, and the sizes of its deployed graph.
    """
    autoencoder.eval()
    tell("exporting", 0.0, "")
    encoder = export_encoder(autoencoder, height=geometry.height, width=geometry.width)
    tell("exporting", 1.0, "")
    spec = GraphSpec(
        height=geometry.height,
        width=geometry.width,
        channels=geometry.channels,
        latent_dim=autoencoder.config.encoded_dim,
        stride=autoencoder.stride,
        output_stride=output_stride,
    )
    return encoder, spec


def with_preview(bundle: Bundle, frames: NDArray[np.uint8] | None) -> Bundle:
    """Add a small picture of one frame and its labels; none for private footage.

    Args:
        bundle: Left as it is.
        frames: uint8 [N, H, W, C], or None for private footage.

    Returns:
        The bundle with its picture.
    """
    if frames is None or frames.shape[3] < 3:
        return bundle
    cv2 = import_cv2()
    frame = frames[len(frames) // 2]
    with Segmenter.load(bundle, *REFERENCE) as segmenter:
        result = segmenter(frame)
    picture = np.concatenate([frame[..., :3], result.palette[result.labels]], axis=1)
    scale = min(1.0, 640 / picture.shape[1])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise AesegError(
            "OpenCV cannot write a JPEG preview", fix="Use an OpenCV build with JPEG support."
        )
    return bundle.with_preview(data.tobytes())


def training_note(at: TrainProgress) -> str:
    """Give a few words on where a training stands."""
    of = f"/{at.epochs}" if at.epochs else ""
    return f"epoch {at.epoch}{of}, loss {at.loss:.4f}"


def evenly(frames: NDArray[Any], count: int) -> NDArray[Any]:
    """Choose frames that lie evenly over all, at most ``count``."""
    if len(frames) <= count:
        return frames
    chosen: NDArray[Any] = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    return chosen
