"""From a label-free network and frames to a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.manifest import Modality
from aeseg_edge.bundle.variants import REFERENCE
from aeseg_edge.calibration.decoding import attach_decoder
from aeseg_edge.calibration.fit import FitSettings, Fitted, fit_bundle
from aeseg_edge.calibration.footage.gather import Footage
from aeseg_edge.errors import FootageError
from aeseg_edge.export.network.autoencoder import Autoencoder
from aeseg_edge.export.network.reduce import DimensionChoice, Wanted, reduce_latents
from aeseg_edge.export.onnx.decoder import export_decoder, folded_mean
from aeseg_edge.export.region import frame_region
from aeseg_edge.export.steps import Progress, deployed_encoder
from aeseg_edge.export.training.history import EpochRecord


@dataclass(frozen=True)
class Trained:
    """A finished bundle, and what led to it.

    Attributes:
        fitted: Bundle, clustering, agreement.
        autoencoder: In evaluation mode.
        footage: The frames used; None for an export from a checkpoint.
        history: One record an epoch; empty for an export from a checkpoint.
        folder: The checkpoint.
        dimension: How latent channels were reduced; None where they were not.
    """

    fitted: Fitted
    autoencoder: Autoencoder
    footage: Footage | None
    history: Sequence[EpochRecord]
    folder: Path
    dimension: DimensionChoice | None = None


def finish(
    autoencoder: Autoencoder,
    frames: NDArray[np.uint8],
    geometry: Geometry,
    output_stride: int,
    fit: FitSettings,
    training: Mapping[str, Any],
    provenance: Mapping[str, Any],
    region: NDArray[np.uint8] | None,
    tell: Progress,
    *,
    sizes: NDArray[np.int64] | None = None,
    names_from: Bundle | None = None,
    decoder: bool,
    modalities: tuple[Modality, ...],
) -> Fitted:
    """Export the encoder, fit the codebook, build every graph, and draw if asked.

    Args:
        autoencoder: Trained; is put into evaluation mode.
        frames: uint8 [N, H, W, C] at the graph's size.
        geometry: How frames of other sizes are brought to it.
        output_stride: Label stride s.
        fit: Clusters and ranges.
        training: For the manifest.
        provenance: For the manifest.
        region: Region of interest, uint8 [h, w], or None.
        tell: Called with a stage, its fraction and a note.
        sizes: int64 [N, 2], rows and columns of each frame at its source, see ``fit_bundle``.
        names_from: An earlier bundle, whose names go to the clusters near its own.
        decoder: Put the decoder into the bundle.
        modalities: Of the channels, where they are of several cameras.

    Raises:
        CalibrationError: If the frames cannot support what is asked.
    """
    encoder, spec = deployed_encoder(autoencoder, geometry, output_stride, tell)
    inside = None if region is None else frame_region(region, geometry)
    fitted = fit_bundle(
        encoder,
        list(frames),
        spec=spec,
        geometry=geometry,
        multiple=autoencoder.multiple,
        settings=fit,
        training=training,
        provenance=provenance,
        region=inside,
        sizes=sizes,
        names_from=names_from,
        progress=lambda stage, fraction: tell(stage, fraction, ""),
    )
    if modalities:
        fitted = replace(fitted, bundle=fitted.bundle.with_modalities(modalities))
    if not decoder:
        return fitted
    deployed = onnx.load_from_string(fitted.bundle.graph(*REFERENCE))
    drawing = export_decoder(autoencoder, folded_mean(encoder, deployed))
    bundle = attach_decoder(
        fitted.bundle,
        drawing.SerializeToString(),
        list(frames),
        threads=fit.threads,
        progress=lambda fraction: tell("decoder", fraction, ""),
    )
    return replace(fitted, bundle=bundle)


def reduced(
    autoencoder: Autoencoder, frames: NDArray[np.uint8], to: Wanted | None, fit: FitSettings
) -> tuple[Autoencoder, DimensionChoice | None]:
    """Keep fewer latent channels of a network; all of them where ``to`` is None."""
    return (autoencoder, None) if to is None else reduce_latents(autoencoder, frames, to, fit)


def told(dimension: DimensionChoice | None) -> dict[str, Any]:
    """Give what the manifest says of the latent channels, where they were reduced."""
    if dimension is None:
        return {}
    return {"latent_dim": dimension.chosen, "reduced_from": dimension.trained}


def all_frames(footage: Footage) -> NDArray[np.uint8]:
    """Give the frames of training and those held out, uint8 [N, H, W, C].

    Raises:
        FootageError: If there are none.
    """
    parts = [part for part in (footage.frames, footage.held_out) if len(part)]
    if not parts:
        raise FootageError("the footage has no frames", fix="Give some.")
    return np.concatenate(parts)
