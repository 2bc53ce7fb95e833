"""The path that one fused graph replaces: an encoder, scikit-learn, and a resize."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.backends.choose import choose_entry
from aeseg_edge.backends.session import open_session
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import ENCODED, FRAME
from aeseg_edge.bundle.geometry import check_frame, fit_frame, fit_labels
from aeseg_edge.bundle.precisions import ONNXRUNTIME
from aeseg_edge.calibration.graphs.deployed import detach_head
from aeseg_edge.measure.against import threads_held
from aeseg_edge.support.require import import_cv2, require

_PLANES = 64
"""Channels that OpenCV resizes at once; OpenCV 5 takes 128 at most."""

SPLIT = "split path (encoder, KMeans.predict, cv2.resize)"
SMOOTH_SPLIT = "split path that upsamples too (KMeans.transform, cv2.resize, argmin)"


class SplitPath:
    """A frame to a label map in three steps, as it is done without a fused graph.

    The encoder of the bundle's graph of the same precision on ONNX Runtime, scikit-learn's
    ``KMeans.predict`` on its latents, and OpenCV's nearest resize of the clusters to the frame's
    own size. With a K-means codebook these labels are the nearest centres at the encoder's
    stride: blocks, where the fused graph has smooth borders. ``upsample`` does that work too:
    ``KMeans.transform``, squares, a bilinear resize of the K planes to the bundle's output
    stride, and the smallest. Neither smooths over time nor gives a margin.

    For other codebooks the centres are the codebook's, and only the time means something: to
    normalise the latents for spherical K-means would cost this path more. ``threads`` are those
    of the encoder and of scikit-learn; BundleError if there is no such graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: str = "auto",
        threads: int = 1,
        upsample: bool = False,
    ) -> None:
        cluster = require("sklearn.cluster")
        manifest = bundle.manifest
        entry = choose_entry(manifest, precision, ONNXRUNTIME)
        encoder = detach_head(onnx.load_model_from_string(bundle.graph(*entry.key)))
        spec = manifest.spec
        self._session = open_session(
            encoder.SerializeToString(),
            threads=threads,
            sizes=spec.sizes,
        )
        self._geometry = manifest.geometry
        self._cv2 = import_cv2()
        self._factor = spec.stride // spec.output_stride if upsample else 1
        self._remap = bundle.codebook.remap
        centres = _centres(bundle.codebook)
        # predict() needs a fit, which centres of a codebook need not survive (two may be equal),
        # and keeps the number of threads that it was fitted with.
        stand_in = np.random.default_rng(0).normal(size=centres.shape).astype(np.float32)
        with threads_held(threads):
            means = cluster.KMeans(len(centres), init=stand_in, n_init=1, max_iter=1).fit(stand_in)
        means.cluster_centers_ = centres
        self._means = means

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Segment one frame, uint8 [H, W, C], BGR, any size: uint8 [H, W], class ids."""
        image = check_frame(frame, self._geometry.channels)
        latents = self.latents(fit_frame(image, self._geometry))
        depth, rows, columns = latents.shape
        vectors = np.ascontiguousarray(latents.reshape(depth, -1).T)
        clusters = (
            self._means.predict(vectors).reshape(rows, columns)
            if self._factor == 1
            else self._upsampled(
                np.square(self._means.transform(vectors)).reshape(rows, columns, -1)
            )
        )
        return fit_labels(self._remap[clusters], self._geometry, *image.shape[:2])

    def _upsampled(self, distances: NDArray[np.float32]) -> NDArray[np.intp]:
        """Nearest centres after a bilinear resize of squared distances, [h, w, K] -> [hf, wf]."""
        cv2 = self._cv2
        rows, columns, _ = distances.shape
        size = (columns * self._factor, rows * self._factor)
        planes = [
            cv2.resize(distances[..., at : at + _PLANES], size, interpolation=cv2.INTER_LINEAR)
            for at in range(0, distances.shape[2], _PLANES)
        ]
        whole = [plane if plane.ndim == 3 else plane[..., None] for plane in planes]
        joined = whole[0] if len(whole) == 1 else np.concatenate(whole, axis=2)
        nearest: NDArray[np.intp] = np.argmin(joined, axis=2)
        return nearest

    def latents(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the encoder alone on a frame at the graph's size: float32 [D, H/r, W/r]."""
        found: NDArray[np.float32] = self._session.run(
            [ENCODED], {FRAME: np.ascontiguousarray(frame)[None]}
        )[0][0]
        return found


def split_paths(
    bundle: Bundle, *, precision: str = "auto", threads: int = 1
) -> dict[str, SplitPath]:
    """Return the split path by name, plain and, where the bundle upsamples, upsampling too."""
    paths = {SPLIT: SplitPath(bundle, precision=precision, threads=threads)}
    if bundle.manifest.stride > bundle.manifest.output_stride:
        paths[SMOOTH_SPLIT] = SplitPath(bundle, precision=precision, threads=threads, upsample=True)
    return paths


def _centres(codebook: Codebook) -> NDArray[np.float32]:
    """The centres, or what stands in their place: the part of the weights that is linear."""
    if codebook.centres is not None:
        return np.ascontiguousarray(codebook.centres)
    return np.ascontiguousarray(codebook.weights[:, : codebook.latent_dim])
