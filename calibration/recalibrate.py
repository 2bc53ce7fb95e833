"""New centres and ranges for a bundle, from other footage and without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.manifest import Manifest
from aeseg_edge.calibration.assemble import Material
from aeseg_edge.calibration.clusters.match import encoder_of
from aeseg_edge.calibration.clusters.methods import BALANCES, method_of
from aeseg_edge.calibration.fit import Fitted, fit_bundle
from aeseg_edge.calibration.graphs.exclude import RECORD
from aeseg_edge.calibration.settings import FitSettings
from aeseg_edge.support.progress import Progress


def recalibrate(
    bundle: Bundle,
    frames: Sequence[NDArray[np.uint8]],
    settings: FitSettings,
    *,
    sizes: NDArray[np.int64] | None = None,
    provenance: Mapping[str, Any] | None = None,
    names_from: Bundle | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit new centres and ranges for a bundle on other footage, without torch.

    Args:
        bundle: Its fp32 graph is the encoder; it stays as it is.
        frames: uint8 [H, W, C] each, at the graph's size.
        settings: See ``FitSettings``.
        sizes: int64 [N, 2], rows and columns of each frame at its source, see ``Material``.
        provenance: Of the new footage, for the manifest.
        names_from: Whose names to keep, see ``fit_bundle``; may be ``bundle`` itself.
        progress: Called with a stage and its fraction.

    Raises:
        CalibrationError: If the frames are too few or too alike.
        ExportError: If the bundle's graph is not one of this project.
    """
    manifest = bundle.manifest
    encoder = encoder_of(bundle)
    decoder = bundle.decoder
    material = Material(
        encoder,
        frames,
        manifest.spec,
        manifest.geometry,
        manifest.multiple,
        region=bundle.region,
        sizes=sizes,
        modalities=manifest.modalities,
        # The encoder is as it was, and so its decoder; means and errors are the new footage's.
        decoder=None if decoder is None else lambda _: decoder.graph,
        training={k: v for k, v in manifest.training.items() if k != "calibration"},
        provenance={**manifest.provenance, **(provenance or {})},
    )
    return fit_bundle(material, settings, centre=False, names_from=names_from, progress=progress)


def settings_of(manifest: Manifest) -> dict[str, Any]:
    """Give how a bundle's codebook was fitted, for ``FitSettings``, as far as it is known."""
    told: dict[str, Any] = {"clusters": manifest.clusters}
    recorded = manifest.training.get("calibration", {})
    excluded = recorded.get(RECORD)
    if isinstance(excluded, Mapping):
        asked = excluded.get("asked", ())
        told["int8_exclude"] = asked if asked == "auto" else tuple(str(name) for name in asked)
        if asked == "auto" and isinstance(excluded.get("target"), float):
            told["int8_target"] = excluded["target"]
    if recorded.get("balance") in BALANCES:
        told["balance"] = recorded["balance"]
    for method in (manifest.method, recorded.get("method")):
        name, _, covariance = str(method).partition("-")
        if method_of(name) is not None:
            told["clustering"] = name
            if covariance:
                told["covariance"] = covariance
            break
    return told
