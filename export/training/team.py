"""Several processes that train one network: ``torchrun -m aeseg_edge.cli train ...``.

Each process takes its share of every batch and all take the same step: gradients are averaged,
and batch normalisation counts the whole batch (Ioffe and Szegedy, 2015, with the sums over all
processes, as torch's ``SyncBatchNorm`` does on a GPU). So two processes with batches of 4 do what
one does with batches of 8, up to the rounding of sums. Who the others are and where is
torchrun's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from aeseg_edge.errors import TrainingError

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Team:
    """The ``size`` processes of one training; this one is ``rank``, from 0."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files, reports and calibrates."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """Take this process' part of a batch, [N, ...] -> [N / size, ...]."""
        part = len(batch) // self.size
        return batch[self.rank * part : (self.rank + 1) * part]

    def average(self, parameters: list[nn.Parameter], loss: float) -> float:
        """Average gradients, in place, and the loss of this process' part, over all processes."""
        if self.size == 1:
            return loss
        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        flat = torch.cat([torch.tensor([loss]), *(each.reshape(-1) for each in grads)])
        self._call(distributed.all_reduce, flat)
        flat /= self.size
        start = 1
        for parameter, grad in zip(parameters, grads, strict=True):
            part = flat[start : start + grad.numel()].view(grad.shape)
            start += grad.numel()
            # In the gradient's own memory layout.
            parameter.grad = grad.copy_(part)
        return float(flat[0])

    def agreed(self, value: float) -> float:
        """Give the first process' value to all: clocks differ."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        self._call(distributed.broadcast, shared, 0)
        return float(shared[0])

    def share_record(self, record: Any) -> Any:
        """Give the first process' record, anything that JSON takes, to all."""
        if self.size == 1:
            return record
        data = json.dumps(record).encode() if self.first else b""
        length = torch.tensor([len(data)], dtype=torch.int64)
        self._call(distributed.broadcast, length, 0)
        text = torch.zeros(int(length), dtype=torch.uint8)
        if self.first:
            text.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self._call(distributed.broadcast, text, 0)
        return json.loads(text.numpy().tobytes())

    def share_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Give the first process' tensors to all; the others pass None."""
        if self.size == 1:
            return dict(tensors or {})
        own = dict(tensors or {}) if self.first else {}
        kinds = {
            name: [list(each.shape), str(each.dtype).removeprefix("torch.")]
            for name, each in own.items()
        }
        found = {}
        for name, (shape, kind) in self.share_record(kinds).items():
            tensor = torch.empty(shape, dtype=getattr(torch, kind))
            if self.first:
                tensor.copy_(own[name])
            # As bytes: not every type can be sent.
            self._call(distributed.broadcast, tensor.reshape(-1).view(torch.uint8), 0)
            found[name] = tensor
        return found

    def share_arrays(self, arrays: Mapping[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
        """Give the first process' arrays to all; the others pass None."""
        own = {
            name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in (arrays or {}).items()
        }
        return {name: tensor.numpy() for name, tensor in self.share_tensors(own).items()}

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Refuse, in each process that differs from the first, to train on different things."""
        first = self.share_record(dict(what))
        mine = json.loads(json.dumps(dict(what)))
        for name, value in mine.items():
            if value != first.get(name):
                told = "" if name == "footage" else f" ({value}, not {first.get(name)})"
                raise TrainingError(
                    f"process {self.rank} has another {name.replace('_', ' ')} than the first"
                    f"{told}",
                    fix="Start all processes with the same command, version and footage.",
                )

    @contextmanager
    def normalising(self, network: Network) -> Iterator[Network]:
        """Let batch normalisation count the whole batch while training."""
        chosen = [] if self.size == 1 else [m for m in network.modules() if _is_norm(m)]
        for module in chosen:
            # The same weights, statistics and names; only how it counts changes.
            module.__class__ = _SharedNorm
        try:
            yield network
        finally:
            for module in chosen:
                module.__class__ = nn.BatchNorm2d

    def _call(self, run: Any, *given: Any) -> None:
        with talking():
            run(*given)


ALONE = Team()
"""One process: nothing is shared, and nothing is asked of torch.distributed."""


def started_together() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


@contextmanager
def join_team() -> Iterator[Team]:
    """Meet the others where torchrun started this process, else give ``ALONE``."""
    if not started_together():
        yield ALONE
        return
    with talking():
        distributed.init_process_group("gloo")
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


@contextmanager
def talking() -> Iterator[None]:
    """Raise TrainingError, in the place of what the transport raised, where another one is gone."""
    try:
        yield
    except (RuntimeError, distributed.DistError) as error:
        text = str(error)
        if not isinstance(error, distributed.DistError) and "gloo" not in text.lower():
            raise
        raise TrainingError(
            f"another process of the training has ended ({text.splitlines()[0][:120]})",
            fix="Its own message says why; the epochs before are saved: run the same command "
            "again to go on.",
        ) from error


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's part gets the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone()
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].clone()
        distributed.all_reduce(whole)
        return whole


def _sum(part: Tensor) -> Tensor:
    whole: Tensor = _Sum.apply(part)  # type: ignore[no-untyped-call]
    return whole


class _SharedNorm(nn.BatchNorm2d):
    """Batch normalisation by the mean and variance of all processes' parts of a batch."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C, H, W]; see ``nn.BatchNorm2d``."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        size = distributed.get_world_size()
        values = input.float()
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        # Parts are equally large: means of means, and of squares about the common mean.
        common = _sum(mean) / size
        spread = _sum(variance + (mean - common) ** 2) / size
        count = size * values[:, 0].numel()
        with torch.no_grad():
            rate = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(common, rate)
            self.running_var.lerp_(spread * (count / (count - 1)), rate)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = torch.rsqrt(spread + self.eps) * self.weight
        shift = self.bias - common * scale
        shaped = values * scale[:, None, None] + shift[:, None, None]
        changed: Tensor = shaped.to(input.dtype)
        return changed


def _is_norm(module: nn.Module) -> bool:
    return type(module) is nn.BatchNorm2d
