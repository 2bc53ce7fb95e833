"""NAME.train/: what a training leaves on disk, and reading it back.

- ``model.json``: schema, AutoencoderConfig, SHA-256 of the weights, the caller's ``meta``.
- ``weights.safetensors``: the trained network.
- ``state.safetensors``: after each epoch, weights, optimizer and history in ONE file. When
  training is complete it stays, without the optimizer, so that the same command does not
  train again.
- ``history.json``: one record an epoch.
- ``teacher.safetensors``: what a teacher saw, so that a resumed training need not ask again.
- ``frames/``: a sample of the footage, so that a later export needs none, and ``sizes.json``,
  what size each frame had: where letterboxed frames have bars.

Every file is replaced atomically. Nothing is unpickled: safetensors and JSON only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from aeseg_edge.errors import TrainingError, UsageError
from aeseg_edge.export.network.autoencoder import Autoencoder, build_autoencoder
from aeseg_edge.export.network.config import AutoencoderConfig
from aeseg_edge.support.files import write_bytes, write_error
from aeseg_edge.support.require import import_cv2

_log = logging.getLogger(__name__)

SCHEMA = 1
MODEL = "model.json"
WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
HISTORY = "history.json"
FRAMES = "frames"
SIZES = "sizes.json"
_RECORD = "aeseg_edge.state"
_KEY = "aeseg_edge.key"
_AGAIN = "Train again into a fresh folder, or with --fresh into this one."


@dataclass(frozen=True)
class State:
    """Where a training stands at the end of an epoch.

    Attributes:
        tensors: Weights and optimizer state by name.
        record: Everything else, as JSON takes it.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def save_model(folder: Path, autoencoder: Autoencoder, meta: Mapping[str, Any]) -> None:
    """Write the trained network.

    Args:
        folder: NAME.train, made if needed.
        autoencoder: Trained network.
        meta: Geometry, training summary and whatever the caller needs, as JSON takes it.

    Raises:
        TrainingError: If the disk is full or cannot be written; what was there stays.
    """
    data = _pack(autoencoder.state_dict(), {})
    model = {
        "schema": SCHEMA,
        "config": asdict(autoencoder.config),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "meta": dict(meta),
    }
    _write(folder / WEIGHTS, data)
    _write_json(folder / MODEL, model)


def load_model(folder: Path) -> tuple[Autoencoder, dict[str, Any]]:
    """Read a trained network.

    Args:
        folder: NAME.train.

    Returns:
        The network in evaluation mode, and ``meta`` as it was saved.

    Raises:
        TrainingError: If a file is missing, cut off, changed or of a newer schema.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder", fix="Give a NAME.train folder.")
    if not (folder / MODEL).is_file() and (folder / STATE).is_file():
        raise TrainingError(
            f"the training in {folder} is not finished",
            fix="Run the command that started it again: it goes on where it stopped.",
        )
    model = _read_json(folder / MODEL)
    try:
        schema = int(model["schema"])
        if schema > SCHEMA:
            raise TrainingError(
                f"{folder / MODEL} has schema {schema}, this version reads up to {SCHEMA}",
                fix="Install a newer aeseg_edge.",
            )
        config = AutoencoderConfig(**model["config"])
        digest, meta = str(model["weights_sha256"]), dict(model["meta"])
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise TrainingError(f"{folder / MODEL} is damaged ({error})", fix=_AGAIN) from error
    data = _read(folder / WEIGHTS)
    if hashlib.sha256(data).hexdigest() != digest:
        raise TrainingError(
            f"{folder / WEIGHTS} is not the file that {MODEL} was written for: "
            "it is cut off, damaged or from another training",
            fix=_AGAIN,
        )
    autoencoder = build_autoencoder(config)
    load_weights(autoencoder, _unpack(folder / WEIGHTS, data)[0], folder / WEIGHTS)
    return autoencoder.eval(), meta


def load_weights(autoencoder: Autoencoder, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Copy weights into a network.

    Args:
        autoencoder: Changed in place.
        tensors: By the names of its ``state_dict``, all of them.
        origin: Named in errors.

    Raises:
        TrainingError: If names or shapes differ.
    """
    try:
        autoencoder.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise TrainingError(
            f"{origin} does not fit architecture {autoencoder.config.arch} ({error})", fix=_AGAIN
        ) from error


def save_state(folder: Path, state: State) -> None:
    """Write where a training stands, as one file.

    Args:
        folder: NAME.train, made if needed.
        state: What to write.

    Raises:
        TrainingError: If the disk is full or cannot be written; the state before it stays.
    """
    record = json.dumps(state.record, allow_nan=False)
    _write(folder / STATE, _pack(state.tensors, {_RECORD: record}))


def load_state(folder: Path) -> State | None:
    """Read where a training stands.

    Args:
        folder: NAME.train.

    Returns:
        None where no training was started.

    Raises:
        TrainingError: If the file is cut off or damaged.
    """
    path = folder / STATE
    if not path.exists():
        return None
    tensors, metadata = _unpack(path, _read(path))
    try:
        record = json.loads(metadata[_RECORD])
        if not isinstance(record, dict):
            raise TypeError("its record is not an object")
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is not a training state ({error})", fix=_AGAIN) from error
    return State(tensors, record)


def clear(folder: Path) -> None:
    """Forget an earlier training: its state and history (not its model or frames).

    Args:
        folder: NAME.train; need not exist.
    """
    for name in (STATE, HISTORY):
        (folder / name).unlink(missing_ok=True)


def save_history(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write one record an epoch.

    Args:
        folder: NAME.train, made if needed.
        records: Oldest first.

    Raises:
        TrainingError: If the disk is full or cannot be written; what was there stays.
    """
    _write_json(folder / HISTORY, [dict(record) for record in records])


def save_frames(
    folder: Path, frames: NDArray[np.uint8], sizes: NDArray[np.int64] | None = None
) -> None:
    """Keep a sample of the footage beside the checkpoint, replacing an older one.

    Three channels are stored as JPEG of quality 95 without colour subsampling, other numbers
    as PNG, which loses nothing: what PNG has no form for as grey planes under one another.

    Args:
        folder: NAME.train, made if needed.
        frames: uint8 [N, H, W, C], BGR.
        sizes: int64 [N, 2], rows and columns of each at its source: where letterboxed frames
            have bars. None where not known.

    Raises:
        TrainingError: If the disk is full or cannot be written; an older sample stays.
    """
    cv2 = import_cv2()
    suffix, options = ".png", []
    if frames.shape[3] == 3:
        suffix = ".jpg"
        options = [cv2.IMWRITE_JPEG_QUALITY, 95]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    fresh, old = folder / f"{FRAMES}.new", folder / f"{FRAMES}.old"
    for left_over in (fresh, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        for index, frame in enumerate(frames):
            name, picture = f"{index:06d}{suffix}", frame
            if frame.shape[2] not in (1, 3, 4):
                name = f"{index:06d}.planes{frame.shape[2]}{suffix}"
                picture = np.concatenate(list(frame.transpose(2, 0, 1)))
            (fresh / name).write_bytes(cv2.imencode(suffix, picture, options)[1])
        if sizes is not None:
            (fresh / SIZES).write_text(json.dumps(sizes.tolist()))
        # A folder cannot be replaced in one step; the old one steps aside first.
        if (folder / FRAMES).exists():
            (folder / FRAMES).rename(old)
        fresh.rename(folder / FRAMES)
    except OSError as problem:
        raise write_error(folder / FRAMES, problem, error=TrainingError) from problem
    finally:
        if old.exists() and not (folder / FRAMES).exists():
            old.rename(folder / FRAMES)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def forget_frames(folder: Path) -> None:
    """Remove the sample of frames, and what a crash while one was saved may have left.

    Args:
        folder: NAME.train.
    """
    for name in (FRAMES, f"{FRAMES}.new", f"{FRAMES}.old"):
        shutil.rmtree(folder / name, ignore_errors=True)


def load_frames(folder: Path) -> NDArray[np.uint8]:
    """Read the sample of frames kept beside a checkpoint.

    Args:
        folder: NAME.train.

    Returns:
        uint8 [N, H, W, C], BGR, in the order saved.

    Raises:
        TrainingError: If none were kept, or one is damaged.
    """
    cv2 = import_cv2()
    paths = sorted((folder / FRAMES).glob("[0-9]*.*"))
    if not paths:
        raise TrainingError(
            f"{folder} keeps no frames", fix="Give the footage again: aeseg export ... SOURCE."
        )
    frames: list[NDArray[np.uint8]] = []
    for path in paths:
        data = np.frombuffer(_read(path), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        planes = re.search(r"\.planes(\d+)\.", path.name)
        if image is not None and image.ndim == 2:
            count = int(planes[1]) if planes else 1
            if image.shape[0] % count == 0:
                image = np.stack(np.split(image, count), axis=2)
        if image is None or (frames and image.shape != frames[0].shape):
            raise TrainingError(
                f"{path} is damaged", fix=f"Delete {folder / FRAMES} and give the footage again."
            )
        frames.append(image)
    return np.stack(frames)


def load_sizes(folder: Path) -> NDArray[np.int64] | None:
    """Read what size the frames kept beside a checkpoint had at their source.

    Args:
        folder: NAME.train.

    Returns:
        int64 [N, 2], rows and columns in the order of ``load_frames``; None where they were not
        kept, as in older folders.

    Raises:
        TrainingError: If the file is damaged.
    """
    path = folder / FRAMES / SIZES
    if not path.exists():
        return None
    damaged = TrainingError(
        f"{path} is damaged", fix=f"Delete {folder / FRAMES} and give the footage again."
    )
    try:
        sizes = np.array(json.loads(_read(path)), np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged from error
    count = len(list((folder / FRAMES).glob("[0-9]*.*")))
    if sizes.shape != (count, 2) or sizes.min(initial=1) < 1:
        raise damaged
    return sizes


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], key: str) -> None:
    """Keep arrays that took long to make.

    Args:
        path: Target, replaced atomically.
        arrays: By name.
        key: What they were made from; ``load_arrays`` asks for the same.

    Raises:
        TrainingError: If the disk is full or cannot be written.
    """
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    _make(path.parent)
    write_bytes(path, safetensors.numpy.save(plain, {_KEY: key}), error=TrainingError)


def load_arrays(path: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """Read what ``save_arrays`` kept.

    Args:
        path: The file; need not exist.
        key: What the arrays must have been made from.

    Returns:
        None where there is no such file, it is damaged, or it was made from something else:
        whoever asks makes the arrays again.
    """
    if not path.is_file():
        return None
    try:
        data = _read(path)
        metadata = _unpack(path, data)[1]
        return safetensors.numpy.load(data) if metadata.get(_KEY) == key else None
    except TrainingError as error:
        _log.warning("%s; it is made again", error.problem)
        return None


def _pack(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    # Weights may be stored channels-last; the file holds them in the usual order.
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata)


def _unpack(path: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = safetensors.torch.load(data)
        # The library reads metadata from files only. The header was checked just now: its
        # length in 8 bytes, little-endian, then JSON (safetensors format specification).
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, dict(header.get("__metadata__", {}))
    except (safetensors.SafetensorError, ValueError) as error:
        raise TrainingError(f"{path} is cut off or damaged ({error})", fix=_AGAIN) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be read ({error.strerror or error})", fix=_AGAIN
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise TrainingError(f"{path} is cut off or damaged ({error})", fix=_AGAIN) from error
    if not isinstance(value, dict):
        raise TrainingError(f"{path} is not a JSON object", fix=_AGAIN)
    return value


def _write_json(path: Path, value: object) -> None:
    _write(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _write(path: Path, data: bytes) -> None:
    _make(path.parent)
    write_bytes(path, data, error=TrainingError)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise write_error(folder, problem, error=TrainingError) from problem
