"""Codebooks and bundles to time: at another number of clusters, or another label stride."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook, default_classes
from aeseg_edge.calibration.graphs.deployed import attach_head, detach_head
from aeseg_edge.errors import UsageError


def random_codebook(clusters: int, latent_dim: int) -> Codebook:
    """Return a codebook for timing: the cost does not depend on where the centres lie.

    Args:
        clusters: K.
        latent_dim: D.
    """
    centres = np.random.default_rng(0).normal(size=(clusters, latent_dim))
    ids = min(clusters, 200)
    return Codebook.from_centres(
        centres, remap=np.arange(clusters) % ids, classes=default_classes(ids)
    )


def with_output_stride(bundle: Bundle, stride: int) -> Bundle:
    """Give a copy whose graphs upsample to another stride.

    Agreement with fp32 was measured at the old stride and is left as it was.

    Args:
        bundle: Any.
        stride: Label stride s; divides the encoder's.

    Raises:
        UsageError: If it does not.
    """
    manifest = bundle.manifest
    if stride < 1 or manifest.stride % stride:
        raise UsageError(
            f"output stride {stride} does not divide the encoder's {manifest.stride}",
            fix=f"Use 1, 2, 4 or {manifest.stride}.",
        )
    spec = replace(manifest.spec, output_stride=stride)
    graphs = {}
    for path, graph in bundle.graphs.items():
        encoder = detach_head(onnx.load_model_from_string(graph))
        graphs[path] = attach_head(encoder, spec, gate=manifest.gate).SerializeToString()
    made = Bundle.build(
        replace(manifest, output_stride=stride),
        bundle.codebook,
        graphs,
        preview=bundle.preview,
        region=bundle.region,
        decoder=bundle.decoder,
    )
    made.path = bundle.path
    return made
