"""What a decoder needs of calibration frames: mean latents, and how large errors usually are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import DecoderParts
from aeseg_edge.bundle.geometry import fit_region
from aeseg_edge.calibration.clusters.methods import measure_of
from aeseg_edge.segment.decoder import Decoder, Decoding
from aeseg_edge.segment.segmenter import Segmenter

FRAMES = 64
"""Frames looked at: 169,000 latents at 480x352 and stride 8."""


def attach_decoder(
    bundle: Bundle,
    graph: bytes,
    frames: Sequence[NDArray[np.uint8]],
    *,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Bundle:
    """Put a decoder into a bundle, with what it needs of calibration frames.

    Article 1 decodes K-means centres. Centres are not always latents (those of spherical
    K-means are directions, a linear codebook has none), so each cluster is drawn from the mean
    of the latents assigned to it, which is the same thing for K-means.

    Args:
        bundle: With its final codebook.
        graph: Serialised ONNX of the decoder, for the bundle's centred latents.
        frames: uint8 [H, W, C] each, at the graph's size.
        threads: For ONNX Runtime.
        progress: Called with the fraction done.

    Returns:
        A bundle with the decoder; its reconstruction errors are those of at most 64 of the
        frames, evenly spread, with the fp32 graph.
    """
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, FRAMES).astype(int))]
    codebook, manifest = bundle.codebook, bundle.manifest
    parts = DecoderParts(graph, None, 0.0, 0.0, len(chosen))
    decoder = Decoder(parts, manifest.spec, manifest.geometry, codebook, threads=threads)
    sums = np.zeros((codebook.clusters, codebook.latent_dim))
    counts = np.zeros(codebook.clusters, np.int64)
    norm, errors = 0.0, []
    outside = None
    if bundle.region is not None:
        outside = fit_region(bundle.region, *manifest.spec.latent_shape[1:]).ravel()
    with Segmenter.load(bundle, precision="fp32", backend="onnxruntime", threads=threads) as run:
        for index, frame in enumerate(chosen):
            result = run(frame, want=frozenset({"latents"}))
            assert result.latents is not None
            measured = Decoding(decoder, result.latents, codebook, result.labels).errors(frame)
            errors.append(measured[~np.isnan(measured)])
            flat = result.latents.reshape(codebook.latent_dim, -1).T
            flat = flat if outside is None else flat[~outside]
            clusters = codebook.assign(flat)
            counts += np.bincount(clusters, minlength=codebook.clusters)
            np.add.at(sums, clusters, flat)
            norm += float(np.linalg.norm(flat, axis=1).sum())
            if progress is not None:
                progress((index + 1) / len(chosen))
    means = sums / np.maximum(counts, 1)[:, None]
    lost = counts == 0
    means[lost] = _stand_in(codebook, norm / max(1, counts.sum()))[lost]
    pooled = np.concatenate(errors)
    median, p99 = np.percentile(pooled, [50, 99]) if pooled.size else (0.0, 0.0)
    return bundle.with_decoder(
        replace(
            parts,
            latents=means.astype(np.float32),
            median=round(float(median), 4),
            p99=round(float(p99), 4),
        )
    )


def _stand_in(codebook: Codebook, norm: float) -> NDArray[np.float64]:
    """What clusters that no latent was assigned to are drawn from: float64 [K, D]."""
    if codebook.centres is None:
        return np.zeros((codebook.clusters, codebook.latent_dim))
    centres = codebook.centres.astype(np.float64)
    # Unit centres are directions: they get the length that latents have.
    return centres * norm if measure_of(codebook.method) == "cosine" else centres
