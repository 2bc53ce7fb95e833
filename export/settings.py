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
from aeseg_edge.export.network.catalogue import AutoencoderConfig, dimension
from aeseg_edge.export.training.settings import CLASS_WEIGHTS, TUNE, TrainSettings
from aeseg_edge.support.options import option, positive, size


@dataclass(frozen=True)
class BundleOptions:
    """What every training can be told; the help of an option says what its field is.

    Attributes:
        model: Architecture, latent dimension, channels.
        image_size: Width and height, rounded to multiples of the deepest stride.
        training: Loss, optimiser, length.
        fit: Clusters and ranges.
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
        shown="480x360 (edge, lite), 224x224 (shallow), 256x256 (deep)",
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


@dataclass(frozen=True)
class TrainOptions(BundleOptions):
    """What ``aeseg train`` and ``aeseg export`` can be told."""

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


@dataclass(frozen=True)
class SuperviseOptions(BundleOptions):
    """What ``aeseg train --masks`` can be told.

    The loss and the teacher of ``training`` are not used, nor what ``fit`` says of clusters;
    size, resizing and ``model`` are those of ``start`` where it is given.

    Attributes:
        class_names: Of the classes 0, 1, ... of the masks.
        ignore: Mask value that does not count, or None.
        pretrained: Let the trunk start from its architecture's weights.
    """

    class_names: tuple[str, ...] = field(kw_only=True)
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
    pretrained: bool = False
