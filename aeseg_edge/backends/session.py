"""A bare ONNX Runtime session for measuring: any model, its threads pinned down, no spinning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import GraphSpec
from aeseg_edge.errors import BackendError, MissingDependency, UsageError

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


@dataclass(frozen=True)
class TensorInfo:
    """One input of a model.

    Attributes:
        name: Its name.
        type: As ONNX Runtime has it, such as ``tensor(float)``.
        shape: A number, a name or None for each dimension.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]


def open_session(
    model: bytes | Path,
    *,
    threads: int,
    sizes: Mapping[str, int] | None = None,
    profile: Path | None = None,
    optimised: Path | None = None,
) -> Any:
    """Open a model on ONNX Runtime's CPU provider, as the runtime's own backend does.

    Args:
        model: A file, or its bytes.
        threads: Threads inside one operation; they do not spin while they wait, so that an
            idle session takes nothing from the one that is timed.
        sizes: Values of symbolic dimensions, by name.
        profile: Prefix of the file that per-node times are written to; none when None.
        optimised: Where the graph is written as it runs, after all fusions.

    Returns:
        An ``onnxruntime.InferenceSession``.

    Raises:
        MissingDependency: If onnxruntime is not installed.
        BackendError: If the model cannot be opened.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            f"onnxruntime is not importable ({error})",
            fix="Install it: pip install 'aeseg_edge[cpu]'.",
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    what = "the graph" if isinstance(model, bytes) else str(model)
    if isinstance(model, Path) and not model.is_file():
        raise BackendError(f"there is no file {model}", fix="Check the path.")
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # onnxruntime raises classes of its own, unexported
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {what}: {error}",
            fix="Give a model that this version of ONNX Runtime can run.",
        ) from error


def inputs_of(session: Any) -> list[TensorInfo]:
    """Return the inputs of an open session."""
    return [TensorInfo(each.name, each.type, tuple(each.shape)) for each in session.get_inputs()]


def synthesise(
    inputs: list[TensorInfo], model: str, *, width: int, height: int
) -> dict[str, NDArray[Any]]:
    """Make inputs for a model from their types and shapes alone.

    The batch is 1. Symbolic sides of a picture become the given size: sides are told by their
    names, or by a fixed number of channels (1, 3 or 4) behind the batch or at the end.

    Args:
        inputs: Of the model.
        model: Its name, for errors.
        width: Pixels, for symbolic sides.
        height: Likewise.

    Returns:
        By name: uint8 noise, standard normal float16 or float32, zeros in int64 (always a
        valid index). The same for the same shapes.

    Raises:
        UsageError: If a type is not among these, or a dimension cannot be known.
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
    """Give what a deployed graph is run with.

    Args:
        session: The graph, open.
        spec: Its sizes.
        codebook: Its codebook.
        frame: uint8 [H, W, C] at the graph's size.
        everything: Smooth over time and give latents and margin; labels alone otherwise, as
            most frames are run.

    Returns:
        Every input by name.
    """
    feed: dict[str, NDArray[Any]] = {
        "frame": np.ascontiguousarray(frame)[None],
        "weights": codebook.columns(spec.squares),
        "bias": np.ascontiguousarray(codebook.bias[:, None]),
        "remap": codebook.remap.astype(np.float32),
        "previous": np.zeros((1, *spec.latent_shape), np.float32),
        "mix": np.array([0.9 if everything else 0.0], np.float32),
    }
    if any(each.name == "extras" for each in session.get_inputs()):
        feed["extras"] = np.array([everything])
    return feed
