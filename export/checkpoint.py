"""NAME.train/: what a training leaves on disk, and reading it back.

- ``model.json``: schema, AutoencoderConfig, SHA-256 of the weights, the caller's ``meta``, and
  (not in older ones) which training it is of and a fingerprint of the frames kept.
- ``weights.safetensors``: the trained network.
- ``state.safetensors``: after each epoch, weights, optimizer and history in ONE file. When
  training is complete it stays, without the optimizer, so that the same command does not
  train again.
- ``history.json``: one record an epoch.
- ``teacher.safetensors``: what a teacher saw, so that a resumed training need not ask again.
- ``region.png``: the region of interest, where there is one.
- ``frames/``: a sample of the footage, so that a later export needs none, and ``sizes.json``,
  what size each frame had: where letterboxed frames have bars.
- ``lock``: while a training runs, see ``lock.py``.

Every file is replaced atomically. Nothing is unpickled: safetensors and JSON only.

Network, frames, region and ``meta`` belong together. A training changes nothing but its state
and history until it is complete; then frames and region are replaced, and ``model.json`` last. It
says which training it is of, as the state does: where the two differ, or the state is not
complete, the folder is of a training that is not finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
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

_log = logging.getLogger(__name__)

SCHEMA = 1
MODEL = "model.json"
WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
HISTORY = "history.json"
_RECORD = "aeseg_edge.state"
_KEY = "aeseg_edge.key"
OPTIMIZER = "optimizer."
"""Begins the names of what a state holds beside weights, as long as it is not complete."""
_AGAIN = "Train again into a fresh folder, or with --fresh into this one."


@dataclass(frozen=True)
class State:
    """Where a training stands after an epoch: tensors by name, and a record as JSON takes it."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def save_model(
    folder: Path,
    autoencoder: Autoencoder,
    meta: Mapping[str, Any],
    *,
    frames: str | None = None,
) -> None:
    """Write the trained network and ``meta``; TrainingError on a full disk, the old stays.

    It is taken for the outcome of the training whose state is in the folder; ``frames`` is the
    fingerprint of the frames kept.
    """
    data = _pack(autoencoder.state_dict(), {})
    model = {
        "schema": SCHEMA,
        "config": asdict(autoencoder.config),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "training": _stamp(folder)[0],
        "frames": frames,
        "meta": dict(meta),
    }
    _write(folder / WEIGHTS, data)
    _write_json(folder / MODEL, model)


@dataclass(frozen=True)
class Model:
    """What ``model.json`` says; ``frames`` is None where none were kept, and in older folders."""

    config: AutoencoderConfig
    weights_sha256: str
    meta: dict[str, Any]
    frames: str | None = None


def read_model(folder: Path) -> Model:
    """Read what a folder says of its network; TrainingError if missing, damaged or newer."""
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder", fix="Give a NAME.train folder.")
    if not (folder / MODEL).is_file() and (folder / STATE).is_file():
        raise _unfinished(folder)
    model = _read_json(folder / MODEL)
    _check_finished(folder, model.get("training"))
    try:
        schema = int(model["schema"])
        if schema > SCHEMA:
            raise TrainingError(
                f"{folder / MODEL} has schema {schema}, this version reads up to {SCHEMA}",
                fix="Install a newer aeseg_edge.",
            )
        config = AutoencoderConfig(**model["config"])
        frames = model.get("frames")
        return Model(config, str(model["weights_sha256"]), dict(model["meta"]), frames)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise TrainingError(f"{folder / MODEL} is damaged ({error})", fix=_AGAIN) from error


def load_model(folder: Path) -> tuple[Autoencoder, dict[str, Any]]:
    """Read a trained network, in evaluation mode, and its ``meta``; errors as ``read_model``."""
    model = read_model(folder)
    data = read_file(folder / WEIGHTS)
    if hashlib.sha256(data).hexdigest() != model.weights_sha256:
        raise TrainingError(
            f"{folder / WEIGHTS} is not the file that {MODEL} was written for: "
            "it is cut off, damaged or from another training",
            fix=_AGAIN,
        )
    autoencoder = build_autoencoder(model.config)
    load_weights(autoencoder, _unpack(folder / WEIGHTS, data)[0], folder / WEIGHTS)
    return autoencoder.eval(), model.meta


def load_weights(autoencoder: Autoencoder, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Copy all weights into a network; TrainingError of ``origin`` if names or shapes differ."""
    try:
        autoencoder.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise TrainingError(
            f"{origin} does not fit architecture {autoencoder.config.arch} ({error})", fix=_AGAIN
        ) from error


def save_state(folder: Path, state: State) -> None:
    """Write where a training stands, as one file; on a TrainingError the old one stays."""
    record = json.dumps(state.record, allow_nan=False)
    _write(folder / STATE, _pack(state.tensors, {_RECORD: record}))


def load_state(folder: Path) -> State | None:
    """Read where a training stands, None where none was started; TrainingError if it is damaged."""
    path = folder / STATE
    if not path.exists():
        return None
    tensors, metadata = _unpack(path, read_file(path))
    try:
        record = json.loads(metadata[_RECORD])
        if not isinstance(record, dict):
            raise TypeError("its record is not an object")
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is not a training state ({error})", fix=_AGAIN) from error
    return State(tensors, record)


def save_history(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write one record an epoch, oldest first; TrainingError where the disk is full."""
    _write_json(folder / HISTORY, [dict(record) for record in records])


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], key: str) -> None:
    """Keep arrays that took long to make, with the ``key`` of what they were made from."""
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    _make(path.parent)
    write_bytes(path, safetensors.numpy.save(plain, {_KEY: key}), error=TrainingError)


def load_arrays(path: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """Read what ``save_arrays`` kept; None where it is absent, damaged or of another ``key``."""
    if not path.is_file():
        return None
    try:
        data = read_file(path)
        metadata = _unpack(path, data)[1]
        return safetensors.numpy.load(data) if metadata.get(_KEY) == key else None
    except TrainingError as error:
        _log.warning("%s; it is made again", error.problem)
        return None


def read_file(path: Path) -> bytes:
    """Read one file of a folder; TrainingError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be read ({error.strerror or error})", fix=_AGAIN
        ) from error


def _check_finished(folder: Path, training: str | None) -> None:
    """Refuse a model whose folder is of a later training, as far as its state says."""
    stamp, complete = _stamp(folder)
    if not complete:
        # Older versions replaced frames as soon as a training began.
        instead = f" To go back to the one before, delete {folder / STATE}."
        raise _unfinished(folder, "" if training is None else instead)
    if stamp is not None and stamp != training:
        raise _unfinished(folder)


def _stamp(folder: Path) -> tuple[str | None, bool]:
    """Say which training a state is of, as far as it says so, and whether that is complete."""
    try:
        with safetensors.safe_open(folder / STATE, "numpy") as state:
            names, record = list(state.keys()), json.loads(state.metadata()[_RECORD])
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError):
        return None, True
    complete = record.get("complete", not any(name.startswith(OPTIMIZER) for name in names))
    return record.get("stamp"), bool(complete)


def _unfinished(folder: Path, instead: str = "") -> TrainingError:
    return TrainingError(
        f"the training in {folder} is not finished",
        fix="Run the command that started it again, without --fresh: it goes on where it "
        f"stopped.{instead}",
    )


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_file(path))
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
