"""What every backend does: one graph in, one codebook in, frames through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import LATENTS, MARGIN, GraphSpec
from aeseg_edge.errors import BackendError, CodebookError, FrameError


@dataclass(frozen=True)
class Outputs:
    """What one frame gives.

    Attributes:
        labels: uint8 [H/s, W/s], class ids.
        latents: float32 [D, H/r, W/r] after smoothing, or None when not asked for.
        margin: float32 [H/r, W/r], best minus second-best score, or None.
        milliseconds: ``copy_in``, ``inference`` and ``copy_out``, as far as the
            backend can tell them apart.
    """

    labels: NDArray[np.uint8]
    latents: NDArray[np.float32] | None = None
    margin: NDArray[np.float32] | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)


class Ticket:
    """Stands for one submitted frame until its outputs are collected."""

    __slots__ = ()


WANTABLE = frozenset({LATENTS, MARGIN})
"""Outputs that are copied to the host only when asked for."""


def check_wanted(want: frozenset[str]) -> None:
    """Refuse outputs that are not of ``WANTABLE``: BackendError."""
    if unknown := want - WANTABLE:
        raise BackendError(f"outputs {sorted(unknown)} are unknown", fix=f"Use {sorted(WANTABLE)}.")


def check_codebook(codebook: Codebook, spec: GraphSpec, what: str = "graph") -> None:
    """Refuse a codebook whose latent dimension is not the graph's: CodebookError."""
    if codebook.latent_dim != spec.latent_dim:
        raise CodebookError(
            f"the codebook has {codebook.latent_dim} latent channels, the {what} {spec.latent_dim}",
            fix="Use the codebook of the same bundle, or calibrate again.",
        )


def check_graph_frame(frame: NDArray[np.uint8], spec: GraphSpec, what: str = "graph") -> None:
    """Refuse a frame whose shape or dtype are not the graph's: FrameError."""
    wanted = spec.frame_shape
    if frame.dtype != np.uint8 or frame.shape != wanted:
        raise FrameError(
            f"frame is {frame.dtype} {list(frame.shape)}, the {what} takes uint8 {list(wanted)}",
            fix="Use Segmenter, which resizes frames.",
        )


class Backend(Protocol):
    """Runs one deployed graph. One owner at a time: methods take a lock inside.

    ``submit`` of the next frame may come before ``collect`` of the last one; tickets
    are collected in the order of submission.
    """

    name: str
    spec: GraphSpec

    def set_codebook(self, codebook: Codebook) -> None:
        """Use this codebook from the next submitted frame on; CodebookError for other latents."""
        ...

    def submit(self, frame: NDArray[np.uint8], *, mix: float = 0.0, stream: int = 0) -> Ticket:
        """Start one frame.

        Args:
            frame: uint8 [H, W, C] at the graph's own size, BGR.
            mix: Share of the last frame's latents, 0 (none) to below 1. The first frame of
                a stream is not mixed, nor the first after ``reset`` or after one with 0.
            stream: Whose last frame: each camera's frames are mixed with its own.

        Raises:
            BackendError: If the backend is closed or the device fails.
            FrameError: If shape or dtype are not the graph's.
        """
        ...

    def collect(self, ticket: Ticket, want: frozenset[str] = frozenset()) -> Outputs:
        """Wait for one frame and give its labels, and what is wanted of ``WANTABLE``."""
        ...

    def discard(self, ticket: Ticket) -> None:
        """Give one frame up, so that those after it can be collected."""
        ...

    def reset(self, stream: int | None = None) -> None:
        """Forget last latents, of one stream or of all: the next frame is not smoothed."""
        ...

    def close(self) -> None:
        """Release everything. Further calls raise BackendError; closing twice is fine."""
        ...
