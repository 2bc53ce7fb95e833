"""From a checkpoint to a bundle again, at another size or with other clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.geometry import Geometry
from aeseg_edge.bundle.manifest import Modality
from aeseg_edge.calibration.fit import FitSettings
from aeseg_edge.calibration.footage.gather import gather
from aeseg_edge.export.checkpoint import load_frames, load_model, load_sizes
from aeseg_edge.export.finish import Trained, all_frames, finish, reduced, told
from aeseg_edge.export.network.reduce import Wanted
from aeseg_edge.export.region import load_region
from aeseg_edge.export.sizes import check_output_stride, resize_frames, round_size
from aeseg_edge.export.steps import Progress, with_preview


def export_bundle(
    folder: Path,
    output: Path,
    *,
    sources: Sequence[str | Path] = (),
    image_size: tuple[int, int] | None = None,
    output_stride: int | None = None,
    fit: FitSettings | None = None,
    reduce_to: Wanted | None = None,
    max_frames: int = 600,
    region: NDArray[np.uint8] | None = None,
    names_from: Bundle | None = None,
    decoder: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Make a bundle from a checkpoint again, at another size or with other clusters.

    Args:
        folder: ``NAME.train``.
        output: ``OTHER.aeseg``.
        sources: Footage; the frames kept beside the checkpoint when empty.
        image_size: Width, height; as trained when None.
        output_stride: Label stride; as trained when None.
        fit: Clusters and ranges; number and kind of clusters as trained when None.
        reduce_to: Latent channels to keep, or ``auto``; all when None. The checkpoint stays.
        max_frames: Budget, with ``sources``.
        region: Region of interest, uint8 [h, w]; as trained when None.
        names_from: An earlier bundle of this checkpoint, whose names, colours, merges and void
            go to the clusters near its own; None for fresh names.
        decoder: Put the decoder into the bundle.
        progress: Called with a stage, its fraction and a note.

    Raises:
        TrainingError: If the checkpoint is missing or damaged.
        FootageError: If there are no kept frames and no sources.
        UsageError: If kept frames are letterboxed, and ``image_size`` has another aspect.
        BundleError: If the bundle cannot be written.
    """
    tell = progress or (lambda stage, fraction, note: None)
    autoencoder, meta = load_model(folder)
    trained = Geometry(**meta["geometry"])
    size = (
        (trained.width, trained.height)
        if image_size is None
        else round_size(image_size, autoencoder.multiple, autoencoder.config.arch)
    )
    geometry = replace(trained, width=size[0], height=size[1])
    stride = check_output_stride(
        meta["output_stride"] if output_stride is None else output_stride, autoencoder.stride
    )
    provenance = dict(meta["provenance"])
    modalities = tuple(Modality(**each) for each in meta.get("modalities", ()))
    kept = True
    if sources:
        footage = gather(
            sources,
            size=size,
            channels=geometry.channels,
            resize=geometry.resize,
            max_frames=max_frames,
            modalities=modalities,
            progress=lambda done, total, source: tell("footage", done / max(1, total), str(source)),
        )
        tell("footage", 1.0, "")
        frames, sizes = all_frames(footage), footage.sizes
        provenance["calibration_footage"] = [s.source for s in footage.report.sources]
        kept = False
    else:
        sizes = load_sizes(folder) if geometry.resize == "letterbox" else None
        frames = resize_frames(
            load_frames(folder),
            geometry,
            fix="Give the footage again: "
            f"aeseg export {folder} SOURCE --imgsz {size[0]}x{size[1]}.",
        )
    fit = fit or FitSettings(**remembered_fit(folder))
    autoencoder, dimension = reduced(autoencoder, frames, reduce_to, fit)
    fitted = finish(
        autoencoder,
        frames,
        geometry,
        stride,
        fit,
        {**meta["training"], **told(dimension)},
        provenance,
        load_region(folder) if region is None else region,
        tell,
        sizes=sizes,
        names_from=names_from,
        decoder=decoder,
        modalities=modalities,
    )
    fitted = replace(fitted, bundle=with_preview(fitted.bundle, frames if kept else None))
    fitted.bundle.write(output)
    return Trained(fitted, autoencoder, None, (), folder, dimension)


def remembered_fit(folder: Path) -> dict[str, Any]:
    """Give what a training was told about clusters.

    Args:
        folder: ``NAME.train``.

    Returns:
        Arguments of ``FitSettings``; fewer from older trainings.

    Raises:
        TrainingError: If the checkpoint is missing or damaged.
    """
    return FitSettings.recalled(load_model(folder)[1].get("fit", {}))
