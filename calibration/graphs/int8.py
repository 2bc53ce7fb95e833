"""INT8 encoders: one that TensorRT fuses, one that ONNX Runtime's CPU kernels fuse.

The two runtimes want different Q/DQ graphs. TensorRT takes symmetric int8 on both inputs
of a convolution and refuses int32 biases; ONNX Runtime makes a convolution a QLinearConv
only when its output is quantised too and its bias is int32. So there are two graphs, both
calibrated on the same frames by onnxruntime.quantization.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from aeseg_edge.backends.session import load_onnxruntime
from aeseg_edge.bundle.contract import ENCODED, FRAME, NORMALISED
from aeseg_edge.calibration.graphs.deployed import finish, to_half, upstream
from aeseg_edge.calibration.graphs.exclude import float_convolutions as float_convolutions
from aeseg_edge.calibration.graphs.exclude import restored
from aeseg_edge.calibration.graphs.ranges import CUT, cut_ranges
from aeseg_edge.errors import CalibrationError
from aeseg_edge.support.progress import Progress, Tick
from aeseg_edge.support.require import require

_log = logging.getLogger(__name__)

SMALLEST_SCALE = 1e-6
"""Below this a float16 scale underflows, which TensorRT refuses."""

RAISED_SCALE = 2.0**-16
"""What smaller scales become; float16 holds it exactly."""

_QDQ = ("QuantizeLinear", "DequantizeLinear")

CPU_OPERATIONS = ("Conv", "Relu", "Clip", "Add", "Resize", "MaxPool")
"""Operations with int8 kernels in ONNX Runtime's CPU provider that the encoders use."""


class _Reader:
    """Feeds frames to onnxruntime's calibrator, one at a time."""

    def __init__(self, frames: Sequence[NDArray[np.uint8]], tick: Tick) -> None:
        self._frames, self._tick, self._done = frames, tick, 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        if self._done == len(self._frames):
            return None
        frame = self._frames[self._done]
        self._done += 1
        self._tick(self._done / len(self._frames))
        return {FRAME: frame[None]}


def quantize_for_tensorrt(
    encoder: onnx.ModelProto,
    frames: Sequence[NDArray[np.uint8]],
    *,
    method: str = "minmax",
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> onnx.ModelProto:
    """Make the int8 encoder that TensorRT builds with int8 tensor cores.

    Symmetric per-tensor activations and per-channel weights, Q/DQ on convolution inputs only, fp16
    between them: the settings of NVIDIA's Model Optimizer. Frames: uint8 [H, W, C] each, at the
    graph's size; ``exclude``: what stays in fp16 beside the projection. CalibrationError if there
    are no frames, or a range is not usable.
    """
    model = _quantize(
        # Ranges are found on the float32 graph (fp16 is emulated on a CPU and slow); the
        # result is brought to fp16 afterwards.
        encoder,
        frames,
        method=method,
        operations=("Conv",),
        activation_unsigned=False,
        exclude=exclude,
        progress=progress,
        options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "DedicatedQDQPair": False,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    )
    _raise_small_scales(model)
    half = to_half(model)
    half = restored(half, encoder, exclude) if exclude else half
    _check_symmetric(half)
    return half


def quantize_for_cpu(
    encoder: onnx.ModelProto,
    frames: Sequence[NDArray[np.uint8]],
    *,
    method: str = "minmax",
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> onnx.ModelProto:
    """Make the int8 encoder that ONNX Runtime runs with its integer kernels.

    Asymmetric uint8 activations, per-channel int8 weights, int32 biases, quantised outputs. The
    camera's bytes are the first convolution's input as they are: the normalisation ``(x - 128) /
    64`` is the dequantisation with zero point 128 and scale 1/64, exactly. Arguments and errors as
    in ``quantize_for_tensorrt``, with float32 for fp16.
    """
    model = _quantize(
        encoder,
        frames,
        method=method,
        operations=CPU_OPERATIONS,
        activation_unsigned=True,
        exclude=exclude,
        progress=progress,
        options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    model = _feed_bytes(model)
    return restored(model, encoder, exclude) if exclude else model


def _quantize(
    encoder: onnx.ModelProto,
    frames: Sequence[NDArray[np.uint8]],
    *,
    method: str,
    operations: Sequence[str],
    activation_unsigned: bool,
    exclude: Sequence[str],
    progress: Progress | None,
    options: dict[str, Any],
) -> onnx.ModelProto:
    if not len(frames):
        raise CalibrationError("there are no frames to calibrate on", fix="Give some footage.")
    load_onnxruntime(extra="calibrate")
    ortq = require("onnxruntime.quantization", extra="calibrate")
    if method not in ("minmax", *CUT):
        raise CalibrationError(
            f"calibration method {method!r} is unknown",
            fix=f"Use one of {', '.join(('minmax', *CUT))}.",
        )
    fixed = _with_sizes(encoder, frames[0])
    projection = next(n.name for n in fixed.graph.node if ENCODED in n.output)
    _check_excluded(fixed, exclude)
    scale, unsigned = _byte_scale(fixed), activation_unsigned

    def tell(fraction: float) -> None:
        if progress is not None:
            progress("int8 ranges", fraction)

    activation = ortq.QuantType.QUInt8 if unsigned else ortq.QuantType.QInt8
    zero = np.array(128, np.uint8) if unsigned else np.array(0, np.int8)
    overrides = {
        NORMALISED: [
            {"quant_type": activation, "scale": np.array(scale, np.float32), "zero_point": zero}
        ]
    }
    shown = frames
    if method in CUT:
        ranges = cut_ranges(fixed, frames, operations, method=method, unsigned=unsigned, tick=tell)
        for name, (low, high) in ranges.items():
            overrides.setdefault(name, [{"quant_type": activation, "rmin": low, "rmax": high}])
        # The quantiser asks for ranges of its own; all are overridden.
        shown, tell = frames[:1], lambda fraction: None
    extra = {"TensorQuantOverrides": overrides, **options}
    with _temporary_folder() as folder:
        target = folder / "int8.onnx"
        with _calm_logging():
            ortq.quantize_static(
                fixed,
                str(target),
                _Reader(shown, tell),
                quant_format=ortq.QuantFormat.QDQ,
                op_types_to_quantize=list(operations),
                per_channel=True,
                activation_type=activation,
                weight_type=ortq.QuantType.QInt8,
                nodes_to_exclude=[projection],
                calibrate_method=ortq.CalibrationMethod.MinMax,
                extra_options=extra,
            )
        model = onnx.load(target)
    del model.graph.value_info[:]
    for item, original in zip(
        (*model.graph.input, *model.graph.output),
        (*encoder.graph.input, *encoder.graph.output),
        strict=True,
    ):
        item.CopyFrom(original)
    _check_scales(model)
    return finish(model)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Give the quantiser, which works through files, a folder; it is removed again."""
    try:
        with tempfile.TemporaryDirectory(prefix="aeseg-int8-") as folder:
            yield Path(folder)
    except OSError as error:
        raise CalibrationError(
            f"the folder for temporary files cannot be used: {error.strerror or error}",
            fix="Free some space, or set TMPDIR to a folder on another disk.",
        ) from error


def _calm_logging() -> Any:
    """Keep onnxruntime's advice about pre-processing out of the user's terminal."""

    @contextmanager
    def calm() -> Iterator[None]:
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(level)

    return calm()


def _with_sizes(encoder: onnx.ModelProto, frame: NDArray[np.uint8]) -> onnx.ModelProto:
    """Fix H and W, and infer every shape: the quantiser asks for both."""
    model = onnx.ModelProto()
    model.CopyFrom(encoder)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(dims, (1, *frame.shape), strict=True):
        dim.dim_value = size
    for dim in model.graph.output[0].type.tensor_type.shape.dim:
        if dim.dim_param:
            dim.Clear()
    return onnx.shape_inference.infer_shapes(model)


def _byte_scale(model: onnx.ModelProto) -> float:
    """Scale of one byte after normalisation: ``normalised = (x - 128) * scale``."""
    multiply = next(n for n in model.graph.node if NORMALISED in n.output)
    names = {item.name: item for item in model.graph.initializer}
    factor = next((names[name] for name in multiply.input if name in names), None)
    values = numpy_helper.to_array(factor).ravel() if factor is not None else np.zeros(0)
    if values.size == 0 or not np.allclose(values, values[0], rtol=1e-6):
        raise CalibrationError(
            "the encoder's normalisation is not one scale for all channels",
            fix="Export the model again with this version of aeseg_edge.",
        )
    return float(values[0])


def _check_excluded(model: onnx.ModelProto, exclude: Sequence[str]) -> None:
    known = {node.name for node in model.graph.node if node.op_type == "Conv"}
    unknown = sorted(set(exclude) - known)
    if unknown:
        raise CalibrationError(
            f"the encoder has no convolution named {', '.join(unknown)}",
            fix=f"Choose from {', '.join(sorted(known))}.",
        )


def _check_scales(model: onnx.ModelProto) -> None:
    weights = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in _QDQ:
            continue
        scale = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise CalibrationError(
                f"the int8 range of {node.input[0]} is empty or not finite",
                fix="Calibrate on frames that differ from one another, or train again.",
            )


def _raise_small_scales(model: onnx.ModelProto) -> None:
    """Lift scales that float16 cannot hold; what they scale is silent and becomes zero.

    A channel that training never used has weights of 1e-6 or so. Without this its scale
    underflows, which TensorRT refuses.
    """
    used = {n.input[1] for n in model.graph.node if n.op_type in _QDQ}
    for item in model.graph.initializer:
        if item.name in used:
            scale = numpy_helper.to_array(item)
            if (scale < RAISED_SCALE).any():
                raised = np.maximum(scale, np.float32(RAISED_SCALE))
                item.CopyFrom(numpy_helper.from_array(raised, item.name))


def _check_symmetric(model: onnx.ModelProto) -> None:
    """Assert what TensorRT demands of Q/DQ: int8, zero points 0, scales that fp16 holds."""
    weights = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in _QDQ:
            continue
        scale = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
        zero = numpy_helper.to_array(weights[node.input[2]])
        if zero.dtype != np.int8 or zero.any():
            raise CalibrationError(
                f"{node.name} has a zero point that TensorRT refuses ({zero.dtype})",
                fix="Report this with the version of onnxruntime.",
            )
        if not (np.isfinite(scale).all() and (scale > SMALLEST_SCALE).all()):
            raise CalibrationError(
                f"the int8 scale of {node.input[0]} underflows float16 ({scale.min():g})",
                fix="Train longer or with another seed: that layer is almost silent.",
            )


def _feed_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the first convolution read the frame's bytes: drop the float detour.

    Cast, Transpose, subtract, scale, QuantizeLinear(scale, 128) is the identity on bytes.
    """
    graph = model.graph
    quantise = [n for n in graph.node if n.op_type == "QuantizeLinear" and NORMALISED in n.input]
    if len(quantise) != 1:
        raise CalibrationError(
            f"the normalised image is quantised {len(quantise)} times, not once",
            fix="Report this with the version of onnxruntime.",
        )
    target = quantise[0].output[0]
    prefix = upstream(model, NORMALISED)
    kept = [n for n in graph.node if n.name not in prefix and n.name != quantise[0].name]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
    del graph.node[:]
    graph.node.append(
        helper.make_node("Transpose", [FRAME], [target], name="frame_planes", perm=[0, 3, 1, 2])
    )
    graph.node.extend(copies)
    used = {name for node in graph.node for name in node.input}
    weights = [
        onnx.TensorProto.FromString(item.SerializeToString())
        for item in graph.initializer
        if item.name in used
    ]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    return finish(model)
