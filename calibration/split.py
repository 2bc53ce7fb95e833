"""The path that one fused graph replaces: an encoder, scikit-learn, and a resize."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from aeseg_edge.backends.choose import choose_entry
from aeseg_edge.bundle import Bundle
from aeseg_edge.codebook import Codebook
from aeseg_edge.errors import MissingDependency, UsageError
from aeseg_edge.geometry import check_frame, fit_frame, import_cv2
from aeseg_edge.session import open_session

from .graph import ENCODED, FRAME, detach_head


class SplitPath:
    """A frame to a label map in three steps, as it is done without a fused graph.

    The encoder of the bundle's graph of the same precision on ONNX Runtime, scikit-learn's
    ``KMeans.predict`` on its latents, and OpenCV's nearest resize of the clusters to the frame's
    own size. Smoothing, margin and bilinear upsampling of scores, which the fused graph has
    besides, are not made up for.

    With a K-means codebook the labels are the bundle's own at the stride of the encoder. For
    other codebooks the centres are the codebook's, and only the time means something: to
    normalise the latents for spherical K-means would cost this path more.

    Args:
        bundle: At the size it is to run at, whose frames are resized by ``stretch``.
        precision: As for ``Segmenter.load``.
        threads: Of the encoder; scikit-learn's are held by ``against.threads_held``.

    Raises:
        MissingDependency: If scikit-learn or onnxruntime is not installed.
        UsageError: If the bundle letterboxes its frames.
        BundleError: If it has no such graph.
    """

    name = "split path (encoder, KMeans.predict, cv2.resize)"

    def __init__(self, bundle: Bundle, *, precision: str = "auto", threads: int = 1) -> None:
        try:
            from sklearn.cluster import KMeans
        except ImportError as error:
            raise MissingDependency(
                f"scikit-learn is not importable ({error})",
                fix="Install it: pip install 'aeseg_edge[calibrate]'.",
            ) from error
        manifest = bundle.manifest
        if manifest.geometry.resize != "stretch":
            raise UsageError(
                f"the split path does not do {manifest.geometry.resize}",
                fix="Use a bundle whose frames are stretched.",
            )
        entry = choose_entry(manifest, precision, "onnxruntime")
        encoder = detach_head(onnx.load_model_from_string(bundle.graph(*entry.key)))
        spec = manifest.spec
        self._session = open_session(
            encoder.SerializeToString(),
            threads=threads,
            sizes={
                "height": spec.height,
                "width": spec.width,
                "latent_height": spec.latent_shape[1],
                "latent_width": spec.latent_shape[2],
            },
        )
        self._geometry = manifest.geometry
        self._resize = import_cv2()
        self._remap = bundle.codebook.remap
        centres = _centres(bundle.codebook)
        # One step from where they lie leaves centres where they are: predict() needs a fit.
        self._means = KMeans(len(centres), init=centres, n_init=1, max_iter=1).fit(centres)
        self._means.cluster_centers_ = centres

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Segment one frame.

        Args:
            frame: uint8 [H, W, C], BGR, any size.

        Returns:
            uint8 [H, W], class ids.
        """
        image = check_frame(frame, self._geometry.channels)
        latents = self.latents(fit_frame(image, self._geometry))
        depth, rows, columns = latents.shape
        clusters = self._means.predict(np.ascontiguousarray(latents.reshape(depth, -1).T))
        labels = self._remap[clusters].reshape(rows, columns)
        cv2 = self._resize
        sized: NDArray[np.uint8] = cv2.resize(
            labels, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST
        )
        return sized

    def latents(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the encoder alone.

        Args:
            frame: uint8 [H, W, C] at the graph's size.

        Returns:
            float32 [D, H/r, W/r].
        """
        found: NDArray[np.float32] = self._session.run(
            [ENCODED], {FRAME: np.ascontiguousarray(frame)[None]}
        )[0][0]
        return found


def _centres(codebook: Codebook) -> NDArray[np.float32]:
    """The centres, or what stands in their place: the part of the weights that is linear."""
    if codebook.centres is not None:
        return np.ascontiguousarray(codebook.centres)
    return np.ascontiguousarray(codebook.weights[:, : codebook.latent_dim])
