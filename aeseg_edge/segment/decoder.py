"""The decoder at run time: pictures from latents.

It always runs on ONNX Runtime's CPU provider, whatever runs the encoder: a decoded picture is
for looking at and for the reconstruction error, and no label depends on it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.backends.session import open_session
from aeseg_edge.bundle.codebook import VOID, Codebook
from aeseg_edge.bundle.contract import DECODED, LATENTS, DecoderParts, GraphSpec
from aeseg_edge.bundle.geometry import Geometry, fit_frame, fit_labels, fit_picture
from aeseg_edge.errors import BackendError, BundleError

if TYPE_CHECKING:
    from aeseg_edge.bundle.archive import Bundle


_HEAT_AT_P99 = 0.6
"""Where on the heat map's scale, 0..1, the calibration frames' 99th percentile lies."""

_HOW = "Export again with it: aeseg export NAME.train -o NAME.aeseg --with-decoder."


class Decoder:
    """Draws pictures from latents.

    `geometry` says how frames are brought to the graph's sizes, and `codebook` is the one that
    ``parts.latents`` belong to. BackendError where the graph cannot be opened.
    """

    def __init__(
        self,
        parts: DecoderParts,
        spec: GraphSpec,
        geometry: Geometry,
        codebook: Codebook,
        *,
        threads: int | None = None,
    ) -> None:
        self.parts = parts
        self.spec = spec
        self.geometry = geometry
        self._codebook = codebook
        self._session = open_session(parts.graph, threads=threads, what="the decoder", fix=_HOW)

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int | None = None) -> Decoder:
        """Open the decoder of a bundle; BundleError where it has none."""
        parts = bundle.decoder
        if parts is None:
            name = "the bundle" if bundle.path is None else str(bundle.path)
            raise BundleError(f"{name} has no decoder", fix=_HOW)
        manifest = bundle.manifest
        return cls(parts, manifest.spec, manifest.geometry, bundle.codebook, threads=threads)

    def __call__(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Draw latents, float32 [D, h, w], as a picture: uint8 [h r, w r, C], BGR first."""
        ready = np.ascontiguousarray(latents[None], np.float32)
        try:
            drawn: NDArray[np.uint8] = self._session.run([DECODED], {LATENTS: ready})[0][0]
        except Exception as error:
            # ONNX Runtime's exceptions have no common base but Exception.
            raise BackendError(f"the decoder failed ({error})", fix=_HOW) from error
        return drawn

    def centres(self, codebook: Codebook) -> NDArray[np.float32]:
        """Give what each cluster is drawn from: float32 [K, D].

        BundleError where the codebook is not the one that was calibrated with the decoder.
        """
        found = self.parts.latents
        # Names, colours and merges leave weights and biases as they are.
        same = codebook.weights is self._codebook.weights or (
            np.array_equal(codebook.weights, self._codebook.weights)
            and np.array_equal(codebook.bias, self._codebook.bias)
        )
        if found is None or not same:
            raise BundleError(
                f"there are no mean latents for this codebook ({codebook.method}): it is not the "
                "one that the decoder was exported with",
                fix="Decode with the bundle as it was exported, or find the means again: aeseg "
                "calibrate NAME.aeseg SOURCE -o OTHER.aeseg.",
            )
        return found


class Decoding:
    """One frame's latents, drawn when somebody first asks; callable from any thread.

    `latents` are float32 [D, h/r, w/r], `labels` the frame's label map, uint8 [H, W], and the
    codebook is the one it was segmented with.
    """

    def __init__(
        self,
        decoder: Decoder,
        latents: NDArray[np.float32],
        codebook: Codebook,
        labels: NDArray[np.uint8],
    ) -> None:
        self.decoder = decoder
        self._latents = latents
        self._codebook = codebook
        self._labels = labels
        self._lock = threading.Lock()
        self._segmented: NDArray[np.uint8] | None = None
        self._errors: NDArray[np.float32] | None = None

    def segmented(self) -> NDArray[np.uint8]:
        """Draw the segmented image: every latent replaced by its cluster's mean, decoded.

        uint8 [H, W, C] at the frame's own size. Merged classes are drawn cluster by cluster, void
        is black. BundleError where the codebook is not the one of the decoder's export.
        """
        with self._lock:
            if self._segmented is None:
                centres = self.decoder.centres(self._codebook)
                clusters = self._codebook.assign(self._latents.transpose(1, 2, 0))
                picture = self.decoder(centres[clusters].transpose(2, 0, 1))
                self._segmented = fit_picture(
                    picture, self.decoder.geometry, *self._labels.shape[:2]
                )
                self._segmented[self._labels == VOID] = 0
            return self._segmented

    def errors(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Measure the reconstruction error: how far decoded latents are from the frame.

        float32 [h/r, w/r], grey levels: the absolute difference, averaged over channels and over
        the r x r pixels of each latent. NaN where the frame is void, and in the bars of a
        letterboxed one.
        """
        with self._lock:
            if self._errors is None:
                spec = self.decoder.spec
                framed = fit_frame(image, self.decoder.geometry)
                drawn = self.decoder(self._latents).astype(np.int16)
                rows, columns = spec.latent_shape[1:]
                blocks = np.abs(framed - drawn).reshape(
                    rows, spec.stride, columns, spec.stride, spec.channels
                )
                errors = blocks.mean(axis=(1, 3, 4), dtype=np.float32)
                errors[self._left_out(rows, columns)] = np.nan
                self._errors = errors
            return self._errors

    def error(self, image: NDArray[np.uint8]) -> float | None:
        """Give the mean reconstruction error of a frame, grey levels; None where all is void."""
        errors = self.errors(image)
        known = errors[~np.isnan(errors)]
        return float(known.mean()) if known.size else None

    def heat(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Give the reconstruction error on a scale that is the same for every frame.

        uint8 [H, W]: 0 for none or void, 153 for the calibration frames' 99th percentile, 255 from
        1.67 times that on.
        """
        errors = np.nan_to_num(self.errors(image))
        levels = np.clip(errors * (255 / self.full_scale), 0, 255).astype(np.uint8)
        return fit_labels(levels, self.decoder.geometry, *image.shape[:2])

    @property
    def full_scale(self) -> float:
        """Grey levels at the top of the heat map's scale."""
        return max(self.decoder.parts.p99, 1e-3) / _HEAT_AT_P99

    def _left_out(self, rows: int, columns: int) -> NDArray[np.bool_]:
        """Latents that lie in a bar, or on void: bool [rows, columns]."""
        geometry = self.decoder.geometry
        height, width = self._labels.shape
        top, left, high, wide = geometry.box(height, width)
        y = ((np.arange(rows) + 0.5) * geometry.height / rows - top) * height / high
        x = ((np.arange(columns) + 0.5) * geometry.width / columns - left) * width / wide
        bars = ((y < 0) | (y >= height))[:, None] | ((x < 0) | (x >= width))[None]
        at_y = np.clip(y.astype(np.intp), 0, height - 1)
        at_x = np.clip(x.astype(np.intp), 0, width - 1)
        return np.asarray(bars | (self._labels[at_y][:, at_x] == VOID))
