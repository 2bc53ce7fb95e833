"""A bundle whose labels come at another stride: the same encoders and codebook, another head."""

from __future__ import annotations

from dataclasses import replace

import onnx

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.calibration.graphs.assemble import attach_head, detach_head
from aeseg_edge.errors import UsageError


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
