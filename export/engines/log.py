"""What a TensorRT build log says about the engine: kernels, and the precision of each convolution.

With detailed profiling verbosity the builder ends its log with a line for each kernel:
`Name: ..., LayerType: ..., Inputs: [ {...}, ... ], Constants: [...], Outputs: [...],
TacticName: ..., Metadata: [ONNX Layer: node][ONNX Layer: node]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<rest>.*)$")
_TENSOR = re.compile(
    r"\{ Name: [^{}]*?Dimensions: \[(?P<shape>[^\]]*)\][^{}]*?Datatype: (?P<dtype>[^,}]*)"
)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_TACTIC = re.compile(r"TacticName: ([^,]*)")
_SYNCHRONISATION = frozenset({"signal", "wait"})


@dataclass(frozen=True)
class Kernel:
    """One kernel of an engine.

    Attributes:
        name: TensorRT's name for it.
        kind: TensorRT's layer type, such as "correlation" or "kgen".
        nodes: Names of the ONNX nodes that went into it; a node may be in several.
        inputs: Element type of each input: "fp32", "fp16", "int8", "uint8", or TensorRT's word.
        weights: Element type of its weights (a constant of rank 4), "" where it has none.
        tactic: Name of the chosen implementation, "" where the log has none.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: str
    tactic: str


@dataclass(frozen=True)
class ConvolutionReport:
    """Where one ONNX convolution went.

    `precision` is "fp32", "fp16" or "int8": what its multiplications run in; "unknown" where no
    kernel of the log names the node. `fused` are the other ONNX nodes of its kernel.
    """

    node: str
    precision: str
    kernel: str
    fused: tuple[str, ...]


def parse_kernels(log: Iterable[str]) -> tuple[Kernel, ...]:
    """Read the kernels from a detailed build log: TensorRT's messages in order, lines in each.

    Kernels are in the order of execution, without the entries that only order streams. Empty where
    the log was not detailed.
    """
    kernels = []
    for message in log:
        for line in message.splitlines():
            found = _LINE.match(line)
            if found is None or found["kind"] in _SYNCHRONISATION:
                continue
            inputs, _, rest = found["rest"].partition("Constants: ")
            constants, _, _ = rest.partition("Outputs: ")
            if not rest:
                inputs, _, _ = inputs.partition("Outputs: ")
            kernels.append(
                Kernel(
                    name=found["name"],
                    kind=found["kind"],
                    nodes=tuple(dict.fromkeys(_NODE.findall(line))),
                    inputs=tuple(_plain(t["dtype"]) for t in _TENSOR.finditer(inputs)),
                    weights=next(
                        (
                            _plain(t["dtype"])
                            for t in _TENSOR.finditer(constants)
                            if len(t["shape"].split(",")) == 4 and _spans(t["shape"])
                        ),
                        "",
                    ),
                    tactic=(_TACTIC.search(line) or ["", ""])[1].strip(),
                )
            )
    return tuple(kernels)


def explain(
    convolutions: Sequence[str], kernels: Sequence[Kernel]
) -> tuple[ConvolutionReport, ...]:
    """Say for each convolution of the graph, in its order, in which precision it runs."""
    reports = []
    for node in convolutions:
        holders = [kernel for kernel in kernels if node in kernel.nodes]
        # Reformatting and quantising kernels may carry the node's name too; the one that
        # multiplies is the one with weights, or else of a convolution's type.
        best = next((k for k in holders if k.weights), None) or next(
            (k for k in holders if re.search(r"corr|conv", k.kind, re.IGNORECASE)),
            holders[0] if holders else None,
        )
        if best is None:
            reports.append(ConvolutionReport(node, "unknown", "", ()))
            continue
        precision = best.weights or (best.inputs[0] if best.inputs else "unknown")
        fused = tuple(name for name in best.nodes if name != node)
        reports.append(ConvolutionReport(node, precision, best.name, fused))
    return tuple(reports)


def _spans(shape: str) -> bool:
    """Whether a constant of rank 4 is a filter: biases and scales are 1 x C x 1 x 1."""
    first = shape.split(",")[0].strip()
    return first != "1"


def _plain(dtype: str) -> str:
    """TensorRT's spellings ("Half", "Row major linear FP16 format") in this project's words."""
    text = dtype.strip().lower()
    for pattern, name in (
        (r"uint8", "uint8"),
        (r"int8", "int8"),
        (r"half|fp16|float16", "fp16"),
        (r"bfloat16|bf16", "bf16"),
        (r"float|fp32", "fp32"),
    ):
        if re.search(rf"\b(?:{pattern})", text):
            return name
    return text
