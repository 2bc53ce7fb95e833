"""Segmenter: a bundle, a backend, and frames of any size in; label maps out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.backends.base import WANTABLE, Backend, Ticket
from aeseg_edge.backends.choose import choose_entry, open_tensorrt
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import ClassInfo, Codebook, default_classes, palette
from aeseg_edge.bundle.contract import LATENTS, MARGIN
from aeseg_edge.bundle.drift import distances
from aeseg_edge.bundle.geometry import (
    apply_region,
    check_frame,
    check_region,
    fit_frame,
    fit_labels,
    fit_region,
)
from aeseg_edge.bundle.manifest import Entry, Manifest
from aeseg_edge.bundle.precisions import BACKENDS, ONNXRUNTIME, PRECISIONS, TENSORRT
from aeseg_edge.errors import BackendError, SourceError, UsageError
from aeseg_edge.segment.decoder import Decoder, Decoding
from aeseg_edge.segment.newest import every_frame, newest_frames
from aeseg_edge.segment.result import Segmentation
from aeseg_edge.segment.smoothing import check_strength
from aeseg_edge.sources.base import Frame, Source
from aeseg_edge.sources.paths import with_range
from aeseg_edge.sources.registry import open_source

_log = logging.getLogger(__name__)

MOST_THREADS = 1024
"""ONNX Runtime ends for want of memory where it is asked for millions."""

_WANTABLE = WANTABLE | {"distance"}

_ASIDE = -1
"""The stream of frames that are not part of any sequence."""


@dataclass(frozen=True)
class SubmittedFrame:
    """A frame on its way, see ``Segmenter.submit``.

    Rows and columns, time of capture, codebook and palette of that moment, and ``perf_counter_ns``
    before and after preprocessing.
    """

    ticket: Ticket
    size: tuple[int, int]
    captured: float | None
    used: tuple[Codebook, NDArray[np.uint8]]
    started: int
    prepared: int


class Segmenter:
    """Turns frames into label maps with one bundle on one backend.

    A context manager. Calls come from one thread at a time.

    Args:
        bundle: A verified bundle.
        backend: An open backend for one of its graphs.
        entry: The manifest entry that the graph belongs to.
        roi: Region of interest, uint8 [h, w], above 127 inside; labels outside are void.
        smooth: Share of the last frame's latents in each frame's, 0 up to below 1.
        decoder: Draws pictures from each result's latents; none when None.

    Raises:
        UsageError: If ``smooth`` is out of range, or ``roi`` no mask or empty.

    Example:
        >>> with Segmenter.load("street.aeseg") as seg:  # doctest: +SKIP
        ...     for result in seg.stream("video.mp4"):
        ...         print(result.labels.shape, result.shares)
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        entry: Entry,
        *,
        roi: NDArray[np.uint8] | None = None,
        smooth: float = 0.0,
        decoder: Decoder | None = None,
    ) -> None:
        self.bundle = bundle
        self.entry = entry
        self.smooth = check_strength(smooth)
        self._backend = backend
        self._decoder = decoder
        self._roi = check_region(roi) if roi is not None else bundle.region
        self._roi_is_framed = roi is not None
        if self._roi is not None and not self._roi.any():
            _log.warning("the region of interest has nothing inside: every label is void")
        self._outside: NDArray[np.bool_] | None = None
        self._unseen: tuple[tuple[int, int], NDArray[np.bool_]] | None = None
        self._use(bundle.codebook)

    @classmethod
    def load(
        cls,
        path: str | Path | Bundle,
        precision: str = "auto",
        backend: str = "auto",
        threads: int | None = None,
        *,
        graph: str | None = None,
        roi: NDArray[np.uint8] | None = None,
        smooth: float = 0.0,
        decoder: bool = False,
        imgsz: tuple[int, int] | None = None,
        cache_dir: Path | None = None,
    ) -> Segmenter:
        """Open a bundle.

        Args:
            path: An ``.aeseg`` file, or a bundle that was read already.
            precision: ``fp32``, ``fp16``, ``int8``, or ``auto``: int8 where the manifest
                recommends it, else fp16 on TensorRT and fp32 on ONNX Runtime.
            backend: ``onnxruntime``, ``tensorrt``, or ``auto``: TensorRT where its
                packages are installed and an engine is in the cache.
            threads: Threads inside one operation (ONNX Runtime); its own choice when None.
            graph: Run the graph that was made for this other backend, on ONNX Runtime,
                as it is written: slow, to measure what a device will compute.
            roi: Region of interest, uint8 [h, w], above 127 inside.
            smooth: Share of the last frame's latents, 0 up to below 1.
            decoder: Give ``decoding`` with every result. The decoder runs on ONNX Runtime,
                also where TensorRT runs the encoder, and only when something is drawn.
            imgsz: Width and height that frames are brought to, instead of the bundle's own:
                multiples of the encoder's deepest stride. TensorRT needs an engine of that size.
            cache_dir: Where TensorRT engines are kept; the user's cache folder when None.

        Raises:
            BundleError: If the file cannot be used, or has no such graph.
            UsageError: If an option is unknown, or the size does not fit the encoder.
            EngineNotBuilt: If TensorRT is asked for and has no engine yet.
            BackendError: If the backend cannot open the graph.
        """
        if precision not in (*PRECISIONS, "auto"):
            raise UsageError(
                f"precision {precision!r} is unknown", fix=f"Use one of {PRECISIONS} or auto."
            )
        if backend not in (*BACKENDS, "auto"):
            raise UsageError(
                f"backend {backend!r} is unknown", fix=f"Use one of {BACKENDS} or auto."
            )
        if graph is not None and graph not in BACKENDS:
            raise UsageError(f"graph {graph!r} is unknown", fix=f"Use one of {BACKENDS}.")
        if threads is not None and not (
            isinstance(threads, (int, np.integer)) and 0 < threads <= MOST_THREADS
        ):
            raise UsageError(
                f"{threads!r} threads cannot be used",
                fix=f"Use a whole number, 1 to {MOST_THREADS}.",
            )
        if not isinstance(path, (str, Path, Bundle)):
            raise UsageError(f"{path!r:.80} is no bundle", fix="Give the path of an .aeseg file.")
        if imgsz is not None and not (isinstance(imgsz, (tuple, list)) and len(imgsz) == 2):
            raise UsageError(f"imgsz {imgsz!r} is no size", fix="Give (width, height) in pixels.")
        check_strength(smooth)
        roi = None if roi is None else check_region(roi)
        bundle = path if isinstance(path, Bundle) else Bundle.open(path)
        if imgsz is not None:
            bundle = bundle.with_size(*imgsz)
        drawer = Decoder.open(bundle, threads=threads) if decoder else None
        if backend in ("auto", TENSORRT) and graph is None:
            opened = open_tensorrt(bundle, precision, cache_dir, required=backend == TENSORRT)
            if opened is not None:
                runner, entry = opened
                return cls(bundle, runner, entry, roi=roi, smooth=smooth, decoder=drawer)
        entry = choose_entry(bundle.manifest, precision, graph or ONNXRUNTIME)
        from aeseg_edge.backends.onnxruntime import OnnxRuntimeBackend

        cpu = OnnxRuntimeBackend(
            bundle.graph(*entry.key),
            bundle.manifest.spec,
            bundle.codebook,
            threads=threads,
            emulate=entry.backend != ONNXRUNTIME,
        )
        return cls(bundle, cpu, entry, roi=roi, smooth=smooth, decoder=drawer)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def codebook(self) -> Codebook:
        """The codebook in use."""
        return self._used[0]

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes in use."""
        return self.codebook.classes

    @property
    def measures_distance(self) -> bool:
        """Whether there is a ``distance``: not in older bundles, nor without centres."""
        return self.manifest.spread is not None and self.codebook.centres is not None

    @property
    def backend(self) -> Backend:
        """The backend, for those who pipeline frames themselves."""
        return self._backend

    def set_codebook(self, codebook: Codebook) -> None:
        """Use other centres, names or colours from the next frame on; CodebookError where unfit."""
        self._backend.set_codebook(codebook)
        self._use(codebook)

    def __call__(
        self,
        frame: NDArray[np.uint8],
        *,
        captured: float | None = None,
        want: str | Iterable[str] = (),
        stream: int = 0,
    ) -> Segmentation:
        """Segment one frame.

        Args:
            frame: uint8 [H, W, C], BGR, any size.
            captured: ``time.monotonic()`` at capture, for the frame age.
            stream: See ``submit``.
            want: Any of ``latents``, ``margin`` and ``distance``.

        Returns:
            Labels at the frame's own size, and what was asked for.

        Raises:
            FrameError: If dtype or channels are not the bundle's.
            BackendError: If the backend is closed or fails, or ``want`` has another name.
        """
        wanted = _wanted(want)
        submitted = self.submit(frame, captured=captured, stream=stream)
        with self._discarding(submitted.ticket):
            return self.collect(submitted, wanted)

    def submit(
        self, frame: NDArray[np.uint8], *, captured: float | None = None, stream: int = 0
    ) -> SubmittedFrame:
        """Start one frame; the next may be submitted before this one is collected.

        Args:
            frame: uint8 [H, W, C], BGR, any size.
            captured: ``time.monotonic()`` at capture, for the frame age.
            stream: Number of the camera, from 0: each is smoothed with its own last frame.

        Raises:
            FrameError: If dtype or channels are not the bundle's.
            BackendError: If the backend is closed or fails.
        """
        started = time.perf_counter_ns()
        image = check_frame(frame, self.manifest.geometry.channels)
        ready = fit_frame(image, self.manifest.geometry)
        prepared = time.perf_counter_ns()
        # Names and colours of this moment: a rename meanwhile is for later frames.
        used = self._used
        ticket = self._backend.submit(ready, mix=self.smooth, stream=stream)
        height, width = image.shape[:2]
        return SubmittedFrame(ticket, (height, width), captured, used, started, prepared)

    def collect(self, submitted: SubmittedFrame, want: str | Iterable[str] = ()) -> Segmentation:
        """Wait for one frame.

        Args:
            submitted: From ``submit``; each once, in the order of submission.
            want: Any of ``latents``, ``margin`` and ``distance``.

        Returns:
            Labels at the frame's own size, and what was asked for. ``total`` runs from
            submission to labels; frames between them count into ``inference``.

        Raises:
            BackendError: If the backend is closed or fails.
        """
        want = _wanted(want)
        if self._decoder is not None:
            want = want | {"latents"}
        far = "distance" in want and self.measures_distance
        codebook, colors = submitted.used
        # The graph's own margin is between clusters; classes are what is shown.
        merged = MARGIN in want and codebook.merges
        asked = want - {"distance"} | ({LATENTS} if far or merged else set())
        asked -= {MARGIN} if merged else set()
        outputs = self._backend.collect(submitted.ticket, asked)
        inferred = time.perf_counter_ns()
        labels = self._finish(outputs.labels, *submitted.size)
        done = time.perf_counter_ns()
        margin, distance, drift = outputs.margin, None, None
        if merged and outputs.latents is not None:
            margin = codebook.class_margins(outputs.latents)
        if far and outputs.latents is not None:
            distance, drift = self._distance(outputs.latents, codebook, *submitted.size)
        started, prepared = submitted.started, submitted.prepared
        spent = (inferred - prepared) / 1e6
        # A backend may measure copies on the device's clock; a part is never above the whole.
        copy_in = min(outputs.milliseconds.get("copy_in", 0.0), spent)
        copy_out = min(outputs.milliseconds.get("copy_out", 0.0), spent - copy_in)
        return Segmentation(
            labels=labels,
            classes=codebook.classes,
            palette=colors,
            milliseconds={
                "preprocess": (prepared - started) / 1e6,
                "copy_in": copy_in,
                "inference": spent - copy_in - copy_out,
                "copy_out": copy_out,
                "postprocess": (done - inferred) / 1e6,
                "total": (done - started) / 1e6,
            },
            frame_age=(
                None if submitted.captured is None else time.monotonic() - submitted.captured
            ),
            margin=margin,
            latents=outputs.latents if "latents" in want else None,
            distance=distance,
            frame_drift=drift,
            decoding=(
                None
                if self._decoder is None or outputs.latents is None
                else Decoding(self._decoder, outputs.latents, codebook, labels)
            ),
        )

    def stream(
        self,
        source: str | Path | int | Source,
        *,
        want: str | Iterable[str] = (),
        drop: str = "auto",
    ) -> Iterator[Segmentation]:
        """Segment frames of a source; what came before it is not smoothed into it.

        Args:
            source: A URI or path (see ``aeseg_edge.sources``), the number of a camera, or an open
                source; it is closed in the end.
            want: Any of ``latents``, ``margin`` and ``distance``.
            drop: ``latest``: a thread of its own reads the source, and whoever is slower gets the
                newest frame; gaps are seen in ``frame.index``. ``none``: every frame in order; a
                camera then gives ever older ones to whoever is slow. ``auto``: ``latest`` for
                cameras, ``none`` for recordings.

        Yields:
            One result a frame, in order, with ``frame`` filled in. ``frame_age`` counts from when
            the frame was read from the camera.

        Raises:
            SourceError: If the source cannot be opened or read.
            UsageError: If ``source``, ``want`` or ``drop`` is none of these.
        """
        wanted = _wanted(want)
        if drop not in ("auto", "latest", "none"):
            raise UsageError(f"drop {drop!r} is unknown", fix="Use auto, latest or none.")
        self.reset(0)
        opened = self._open(source)
        newest = drop == "latest" or (drop == "auto" and getattr(opened, "live", False))
        recording = None
        with closing(newest_frames(opened) if newest else every_frame(opened)) as frames:
            for frame in frames:
                if not isinstance(frame, Frame):
                    raise SourceError(
                        f"the source gives {type(frame).__name__}, not Frame",
                        fix="Give aeseg_edge.sources.base.Frame, or call the segmenter with each "
                        "picture.",
                    )
                if frame.recording != recording:
                    recording = frame.recording
                    self.reset(0)
                result = self(frame.image, captured=frame.captured, want=wanted)
                yield replace(result, frame=frame)

    def _open(self, source: str | Path | int | Source) -> Source:
        if isinstance(source, (str, Path)) or (type(source) is int and source >= 0):
            return open_source(
                with_range(str(source), self.manifest.provenance),
                channels=self.manifest.geometry.channels,
                modalities=self.manifest.modalities,
            )
        if not (hasattr(source, "__iter__") and hasattr(source, "close")):
            raise UsageError(
                f"{source!r:.80} is no source of frames",
                fix="Give a URI or path, the number of a camera, or an open Source; a picture of "
                "your own goes into the segmenter itself: segmenter(frame).",
            )
        assert not isinstance(source, int)
        return source

    def clusters(self, frame: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Give cluster numbers instead of classes; for evaluation and naming.

        The graph's remap is an input, so this is the deployed graph itself. Labels are
        8 bits: with more than 256 clusters it runs twice, for the low and the high byte.

        Args:
            frame: uint8 [H, W, C], BGR, any size.

        Returns:
            int64 [H, W], 0..K-1.
        """
        image = check_frame(frame, self.manifest.geometry.channels)
        ready = fit_frame(image, self.manifest.geometry)
        total = np.zeros(image.shape[:2], np.int64)
        try:
            for shift, codebook in enumerate(self._cluster_codebooks()):
                self._backend.set_codebook(codebook)
                # On a stream of its own: what is looked up is nobody's last frame.
                ticket = self._backend.submit(ready, stream=_ASIDE)
                with self._discarding(ticket):
                    part = self._backend.collect(ticket).labels
                sized = fit_labels(part, self.manifest.geometry, image.shape[0], image.shape[1])
                total += sized.astype(np.int64) << (8 * shift)
        finally:
            self._backend.set_codebook(self.codebook)
        return total

    def reset(self, stream: int | None = None) -> None:
        """Forget the last frame, of one camera or of all: the next one is not smoothed."""
        self._backend.reset(stream)

    def close(self) -> None:
        """Release the backend. Closing twice is fine."""
        self._backend.close()

    def __enter__(self) -> Segmenter:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    @contextmanager
    def _discarding(self, ticket: Ticket) -> Iterator[None]:
        """Give the frame up on any error, Ctrl-C included: the next call starts afresh."""
        try:
            yield
        except BaseException:
            self._backend.discard(ticket)
            raise

    def _use(self, codebook: Codebook) -> None:
        # One assignment: another thread may rename while a frame is submitted.
        self._used = codebook, palette(codebook.classes)

    def _cluster_codebooks(self) -> list[Codebook]:
        book = self.codebook
        numbers = np.arange(book.clusters)
        shifts = [0] if book.clusters <= 256 else [0, 8]
        return [
            Codebook(
                weights=book.weights,
                bias=book.bias,
                remap=((numbers >> shift) & 255).astype(np.uint8),
                classes=default_classes(255),
                method=book.method,
            )
            for shift in shifts
        ]

    def _distance(
        self, latents: NDArray[np.float32], codebook: Codebook, height: int, width: int
    ) -> tuple[NDArray[np.float32] | None, float | None]:
        """Distances in units of the 99th percentile, and how unlike calibration's they are."""
        spread = self.manifest.spread
        if spread is None or codebook.centres is None:
            return None, None
        found = distances(latents, codebook.centres, spread.measure)
        if self._unseen is None or self._unseen[0] != (height, width):
            self._unseen = (height, width), self._unseen_cells(height, width)
        found[self._unseen[1]] = np.nan
        return found / np.float32(max(spread.p99, 1e-9)), spread.drift(found)

    def _unseen_cells(self, height: int, width: int) -> NDArray[np.bool_]:
        """Latents whose middle lies in a letterbox bar or outside the region of interest."""
        geometry, stride = self.manifest.geometry, self.manifest.stride
        top, left, rows, columns = geometry.box(height, width)
        y = np.arange(stride / 2, geometry.height, stride) - top
        x = np.arange(stride / 2, geometry.width, stride) - left
        inside = ((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < columns))
        if self._roi is not None:
            outside = self._outside_frame(height, width)
            at_y = np.clip((y * height / rows).astype(np.intp), 0, height - 1)
            at_x = np.clip((x * width / columns).astype(np.intp), 0, width - 1)
            inside &= ~outside[np.ix_(at_y, at_x)]
        return ~inside

    def _finish(self, labels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        sized = fit_labels(labels, self.manifest.geometry, height, width)
        if self._roi is None:
            return sized
        return apply_region(sized, self._outside_frame(height, width))

    def _outside_frame(self, height: int, width: int) -> NDArray[np.bool_]:
        """Where a frame of this size is not segmented; there is a region of interest."""
        assert self._roi is not None
        if self._outside is None or self._outside.shape != (height, width):
            if self._roi_is_framed:
                self._outside = fit_region(self._roi, height, width)
            else:
                # The bundle's own region lies over the graph's input, bars included.
                self._outside = fit_labels(self._roi, self.manifest.geometry, height, width) <= 127
        return self._outside


def _wanted(want: str | Iterable[str]) -> frozenset[str]:
    """One name, or several, as a set; BackendError where one is no output."""
    names = frozenset(want if isinstance(want, Iterable) and not isinstance(want, str) else [want])
    if unknown := names - _WANTABLE:
        raise BackendError(
            f"outputs {sorted(str(name) for name in unknown)} are unknown",
            fix=f"Use {sorted(_WANTABLE)}.",
        )
    return names
