"""ONNX Runtime sessions: opened here and nowhere else, and fed."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import EXTRAS, GraphSpec, codebook_inputs, feed
from aeseg_edge.errors import BackendError, UsageError
from aeseg_edge.support.require import require, whole

_CHANNELS = (1, 3, 4)

# What the dimensions of an image are called, in lower case.
_BATCH = {"n", "b", "bs", "batch", "batch_size", "batchsize", "unk__0"}
_HEIGHT = {"h", "height", "rows", "image_height", "input_height", "img_height"}
_WIDTH = {"w", "width", "columns", "cols", "image_width", "input_width", "img_width"}

_TYPES: dict[str, type[np.generic]] = {
    "tensor(uint8)": np.uint8,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
}

_PRODUCT = (
    b'\x08\x08:X\n\x18\n\x01x\n\x01w\x12\x01y"\rMatMulInteger\x12\x01g*\x0f\x08\x04\x08\x01\x10\x03B\x01wJ'
    b"\x04\x7f\x7f\x7f\x7fZ\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x01\n\x02\x08\x04b\x13\n\x01y"
    b"\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""ONNX, opset 13: y = MatMulInteger(x, w), x uint8 [1, 4], w int8 [4, 1], four times 127."""


@dataclass(frozen=True)
class TensorInfo:
    """One input of a model; its type as ONNX Runtime has it, such as ``tensor(float)``."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


def load_onnxruntime(*, extra: str = "cpu", for_: str = "") -> Any:
    """Import ONNX Runtime; see ``require``. The only way to it in this project.

    Versions from 1.29 on tell Microsoft of every process and session, and keep an identifier of
    the device in the user's cache, unless this variable is set before the import; their
    ``disable_telemetry_events`` comes too late for that.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    runtime = require("onnxruntime", extra=extra, for_=for_)
    return whole(runtime, "__version__", "InferenceSession", "SessionOptions")


@functools.cache
def saturates(runtime: Any) -> bool:
    """Say whether this CPU adds products of uint8 and int8 in 16 bits, and so loses large ones.

    x86 without VNNI does (AVX2, and AVX-512 alone: VPMADDUBSW), and a byte of the product of a
    bright pixel and a large weight is enough: up to an eighth of all labels were wrong. ONNX
    Runtime is asked, since it alone knows what it uses: 4 * 255 * 127 is too large for 16 bits.
    """
    try:
        session = runtime.InferenceSession(
            _PRODUCT, _options(runtime, threads=1), providers=["CPUExecutionProvider"]
        )
        product = session.run(None, {"x": np.full((1, 4), 255, np.uint8)})[0]
    except Exception:  # onnxruntime raises classes of its own, unexported
        return True  # the exact way is right on every CPU
    return int(product[0, 0]) != 4 * 255 * 127


def _options(runtime: Any, *, threads: int | None) -> Any:
    """Options of every session."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options


def open_session(
    model: bytes | Path,
    *,
    threads: int | None = None,
    sizes: Mapping[str, int] | None = None,
    spin: bool = False,
    disabled: Sequence[str] = (),
    profile: Path | None = None,
    optimised: Path | None = None,
    what: str = "the graph",
    extra: str = "cpu",
    fix: str = "Give a model that this version of ONNX Runtime can run.",
) -> Any:
    """Open a model on ONNX Runtime's CPU provider: every session of this project is made here.

    Args:
        model: A file, or its bytes.
        threads: Threads inside one operation; ONNX Runtime's own choice when None.
        sizes: Values of symbolic dimensions, by name.
        spin: Whether threads spin while they wait for work. Idle ones then take the cores that
            capture, delivery and other sessions need.
        disabled: Names of optimisers that are left out.
        profile: Prefix of the file that per-node times are written to; none when None.
        optimised: Where the graph is written as it runs, after all fusions.
        what: What the bytes are, for errors.
        extra: The extra to name where onnxruntime is missing.
        fix: What to do where the model cannot be opened.

    Returns:
        An ``onnxruntime.InferenceSession``.

    Raises:
        MissingDependency: If onnxruntime is not installed.
        BackendError: If the model cannot be opened.
    """
    runtime = load_onnxruntime(extra=extra, for_=what)
    options = _options(runtime, threads=threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if saturates(runtime):
        # Weights become uint8: products are added in 32 bits then. Left alone where this is no x86.
        options.add_session_config_entry("session.x64quantprecision", "1")
    for name, value in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if isinstance(model, Path) and not model.is_file():
        what = f"{model} is a folder" if model.is_dir() else f"there is no file {model}"
        raise BackendError(what, fix="Check the path.")
    try:
        return runtime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(disabled) or None,
        )
    except Exception as error:  # onnxruntime raises classes of its own, unexported
        raise BackendError(
            f"ONNX Runtime {runtime.__version__} cannot open "
            f"{what if isinstance(model, bytes) else model}: {error}",
            fix=fix,
        ) from error


def inputs_of(session: Any) -> list[TensorInfo]:
    """Return the inputs of an open session."""
    return [TensorInfo(each.name, each.type, tuple(each.shape)) for each in session.get_inputs()]


def synthesise(
    inputs: list[TensorInfo], model: str, *, width: int, height: int
) -> dict[str, NDArray[Any]]:
    """Make inputs for a model from their types and shapes alone; the same for the same shapes.

    The batch is 1. Symbolic sides of a picture become the given size, in pixels: sides are told by
    their names, or by a fixed number of channels (1, 3 or 4) behind the batch or at the end. By
    name: uint8 noise, standard normal float16 or float32, zeros in int64 (always a valid index);
    UsageError for other types, and for a dimension that cannot be known.
    """
    random = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for each in inputs:
        dtype = _TYPES.get(each.type)
        if dtype is None:
            raise UsageError(
                f"{model}: input {each.name} is {each.type}, which cannot be made up",
                fix=f"Give a model whose inputs are among {', '.join(_TYPES)}.",
            )
        shape = _resolve(each, model, width, height)
        if dtype is np.uint8:
            made[each.name] = random.integers(0, 256, shape, np.uint8)
        elif dtype is np.int64:
            made[each.name] = np.zeros(shape, np.int64)
        else:
            made[each.name] = random.standard_normal(shape, np.float32).astype(dtype)
    return made


def _resolve(tensor: TensorInfo, model: str, width: int, height: int) -> tuple[int, ...]:
    shape = tensor.shape
    by_place = _places(shape, width, height)
    found = []
    for place, dimension in enumerate(shape):
        if isinstance(dimension, int) and dimension >= 0:
            found.append(dimension)
            continue
        name = re.sub(r"\W", "_", str(dimension or "")).lower()
        by_name = 1 if name in _BATCH else height if name in _HEIGHT else None
        by_name = width if name in _WIDTH else by_name
        size = by_name if by_name is not None else by_place.get(place)
        if size is None:
            shown = ", ".join("?" if d is None else str(d) for d in shape)
            raise UsageError(
                f"{model}: dimension {place} of input {tensor.name} [{shown}] is not known",
                fix="Export the model with a fixed shape, or with dimensions called batch, "
                "height and width.",
            )
        found.append(size)
    return tuple(found)


def _places(shape: tuple[int | str | None, ...], width: int, height: int) -> dict[int, int]:
    """Sizes by place where the shape is a picture's: NCHW, NHWC, CHW or HWC."""
    batch = {0: 1} if len(shape) > 1 else {}
    if len(shape) not in (3, 4):
        return batch
    first = len(shape) - 3
    batch = {0: 1} if first else {}
    if shape[first] in _CHANNELS:
        return {**batch, first + 1: height, first + 2: width}
    if shape[-1] in _CHANNELS:
        return {**batch, first: height, first + 1: width}
    return batch


def label_feed(
    session: Any,
    spec: GraphSpec,
    codebook: Codebook,
    frame: NDArray[np.uint8],
    *,
    everything: bool = False,
) -> dict[str, NDArray[Any]]:
    """Give what a deployed graph is run with, by name; `frame` is uint8 [H, W, C] at its size.

    With `everything` it smooths over time and gives latents and margin; labels alone otherwise,
    as most frames are run.
    """
    asks = any(each.name == EXTRAS for each in session.get_inputs())
    blank = np.zeros((1, *spec.latent_shape), np.float32)
    mix = 0.9 if everything else 0.0
    given = codebook_inputs(codebook, spec)
    return feed(given, frame, blank, mix, everything if asks else None)
