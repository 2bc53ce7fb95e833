"""What a training can be told beside how to train. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.geometry import RESIZE_MODES
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.export.network.catalogue import ARCHITECTURES
from aeseg_edge.export.network.config import AutoencoderConfig, dimension
from aeseg_edge.export.training.settings import CLASS_WEIGHTS, TUNE, TrainSettings
from aeseg_edge.support.options import option, positive, size

_SIZES: dict[tuple[int, int], list[str]] = {}
for _name, _row in ARCHITECTURES.items():
    _SIZES.setdefault(_row.image_size, []).append(_name)


@dataclass(frozen=True)
class Labels:
    """What is known of the classes of labelled footage; for the rest see the help.

    Attributes:
        masks: Folder of 8-bit index PNGs, named as the images.
        class_names: Of the classes 0, 1, ... of the masks.
        ignore: Mask value that does not count, or None.
        start: NAME.train whose encoder is where training starts; None for fresh weights.
    """

    masks: Path
    class_names: tuple[str, ...]
    ignore: int | None = None
    class_weights: str = option(
        "none",
        choices=CLASS_WEIGHTS,
        help="power: frequency^-0.3; log: 1/ln(1.02 + frequency), for rare classes "
        "(default: {default})",
    )
    start: Path | None = option(  # noqa: RUF009
        None,
        "--from",
        parse=Path,
        metavar="NAME.train",
        help="start from the encoder of an earlier training: its architecture, size and --resize",
    )
    tune: str = option(
        "all",
        choices=TUNE,
        help="head: leave the encoder of --from as it is (default: {default})",
    )


@dataclass(frozen=True)
class TrainOptions:
    """What ``aeseg train`` can be told; the help of an option says what its field is.

    Attributes:
        model: Architecture, latent dimension, channels; not used with ``labels.start``.
        image_size: Width and height, rounded to multiples of the deepest stride; those of
            ``labels.start``, or the architecture's own, when None.
        resize: One of ``RESIZE_MODES``; that of ``labels.start``, or the first of them, when None.
        training: Loss, optimiser, length. With labels its loss is not used, and its teacher
            only for the weights that the trunk starts from.
        fit: Clusters and ranges; with labels what it says of clusters is not used.
        labels: What masks show; None for a training without labels.
        region: Region of interest, uint8 [h, w], or None; goes into the bundle.
        provenance: What is known of origin and licence of the footage.
    """

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    image_size: tuple[int, int] | None = option(
        None,
        "--imgsz",
        parse=size,
        metavar="WxH",
        help="default: {default}",
        shown=", ".join(
            f"{width}x{height} ({', '.join(names)})" for (width, height), names in _SIZES.items()
        ),
    )
    resize: str | None = option(
        None,
        choices=RESIZE_MODES,
        help="how frames of another aspect are fitted (default {default})",
        shown="stretch, or that of --from",
    )
    output_stride: int | None = option(
        None,
        parse=positive,
        metavar="S",
        help="label stride: 1, 2, 4 or 8 (default: {default})",
        shown="half that of the encoder",
    )
    training: TrainSettings = field(default_factory=TrainSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    labels: Labels | None = None
    max_frames: int = option(
        600,
        parse=positive,
        metavar="N",
        help="frames to take from SOURCE, sampled evenly (default {default})",
        before="600",
    )
    keep_frames: bool = option(
        True,
        "--no-keep-frames",
        off=True,
        help="keep no frames beside the checkpoint (private footage)",
    )
    fresh: bool = option(False, on=True, help="do not resume an earlier run")
    region: NDArray[np.uint8] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    reduce_to: int | Literal["auto"] | None = option(
        None,
        "--latent-dim",
        parse=dimension,
        metavar="D|auto",
        help="keep this many principal components of the latents, without training again "
        "(default: all)",
    )
    decoder: bool = option(
        False,
        "--with-decoder",
        on=True,
        help="put the decoder into the bundle: aeseg run --view decoded and --view error (an "
        "export does not take it over from the training)",
    )
