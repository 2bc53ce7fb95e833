"""The ways to deploy a model: one row for each precision on each backend.

A new precision is a row here and the function that makes its encoder; which backends and
precisions there are, what is tried first and what is emulated where all follow from the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from aeseg_edge.support.lazy import load

ONNXRUNTIME, TENSORRT = BACKENDS = ("onnxruntime", "tensorrt")

TITLES = {ONNXRUNTIME: "ONNX Runtime", TENSORRT: "TensorRT"}
"""Of the backends, for people."""

Layout = Literal["any", "cpu", "tensorrt"]
"""What a head is laid out for; ``any`` is for a CPU first, and TensorRT builds it too."""


@dataclass(frozen=True)
class Variant:
    """A precision on a backend.

    Attributes:
        precision: A property of the graph.
        backend: What the graph is shaped for. ONNX Runtime runs every graph, also one that was
            shaped for another backend: slowly, as the device would compute it.
        width: Bytes of one value.
        graph: Path of the graph inside a bundle; rows may share one.
        layout: Of the head, see ``calibration.graphs.assemble.attach_head``.
        encoder: ``module:function`` that makes the encoder from the float32 one; "" for that
            one itself.
        beside: Precision of what is not quantised; "" where nothing is. With it the function
            also takes frames, ``method``, ``exclude`` and ``progress``.
        note: For people, in the manifest.
    """

    precision: str
    backend: str
    width: int
    graph: str
    layout: Layout
    encoder: str = ""
    beside: str = ""
    note: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """(precision, backend)."""
        return self.precision, self.backend

    def make(self, encoder: Any, *given: Any, **options: Any) -> Any:
        """Make the encoder of this row, an ``onnx.ModelProto``, from the float32 one.

        Frames and options are for quantised rows, and left alone by others.
        """
        if not self.encoder:
            return encoder
        maker = load(self.encoder)
        return maker(encoder, *given, **options) if self.beside else maker(encoder)


VARIANTS = (
    Variant("fp32", ONNXRUNTIME, 4, "graphs/fp32.onnx", "any"),
    Variant(
        "fp32",
        TENSORRT,
        4,
        "graphs/fp32.onnx",
        "any",
        note="the same graph as fp32 for onnxruntime; not run on a GPU here",
    ),
    Variant(
        "fp16",
        TENSORRT,
        2,
        "graphs/fp16.onnx",
        "tensorrt",
        "aeseg_edge.calibration.graphs.deployed:to_half",
        note="agreement measured with fp16 emulated on a CPU",
    ),
    Variant(
        "int8",
        ONNXRUNTIME,
        1,
        "graphs/int8-cpu.onnx",
        "cpu",
        "aeseg_edge.calibration.graphs.int8:quantize_for_cpu",
        beside="fp32",
    ),
    Variant(
        "int8",
        TENSORRT,
        1,
        "graphs/int8-tensorrt.onnx",
        "tensorrt",
        "aeseg_edge.calibration.graphs.int8:quantize_for_tensorrt",
        beside="fp16",
        note="agreement measured with int8 and fp16 emulated on a CPU",
    ),
)

PRECISIONS = tuple(dict.fromkeys(row.precision for row in VARIANTS))
WIDTHS = {row.precision: row.width for row in VARIANTS}
"""Bytes of one value."""

FLOAT = VARIANTS[0].precision
"""The precision that a model is trained in and that others are measured against."""

REFERENCE = VARIANTS[0].key
"""The graph that all others are compared with."""


def variant(precision: str, backend: str) -> Variant:
    """Find a row. The manifest was checked to have none but these; KeyError otherwise."""
    return {row.key: row for row in VARIANTS}[precision, backend]


def by_width(backend: str) -> list[str]:
    """Precisions of a backend as ``auto`` tries them: the narrowest, the fastest, first."""
    rows = [row for row in VARIANTS if row.backend == backend]
    return [row.precision for row in sorted(rows, key=lambda row: row.width)]


ENGINES = tuple(row.precision for row in VARIANTS if row.backend == TENSORRT and row.width < 4)
"""Precisions to build engines of; fp32 ones are for comparing, not for running."""

INT8 = "int8"
"""What ``--int8-exclude`` and its like are about."""
