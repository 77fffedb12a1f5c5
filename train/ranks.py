"""The processes of one run: a single one, or as many as torchrun started. Rank 0 prints and writes, the others work."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from train.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world: int = 1
    local: int = 0  # of the ranks on this machine, which one, and how many there are
    local_world: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Ranks":
        """As torchrun tells it. Raises UserError where a scheduler has set some of its variables and not the others."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if environment.get("WORLD_SIZE", "1") == "1":
            return cls()
        try:
            return cls(*(int(environment[name]) for name in names))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(names)} are not all numbers: start by "
                "torchrun, or unset WORLD_SIZE for one process"
            ) from error

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device that this rank trains on, for --device."""
        if name == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: this PyTorch sees no CUDA device")
        if name == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        if self.local >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started {self.local_world} processes here, this PyTorch sees {torch.cuda.device_count()} "
                "CUDA devices; start as many, or train on --device cpu"
            )
        return torch.device("cuda", self.local) if self.world > 1 else torch.device("cuda")

    @contextmanager
    def process_group(self, device: torch.device) -> Iterator[None]:
        """The process group, if there are several ranks, for as long as nothing fails."""
        if self.world == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield
        # Not after an error: a rank that fails must end, and not wait for the others.
        torch.distributed.destroy_process_group()

    def wrap_model(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model with its gradients averaged over the ranks, all of which begin with rank 0's weights."""
        if self.world == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    @torch.no_grad()
    def broadcast(self, model: nn.Module, *, buffers_only: bool = False) -> None:
        """Give every rank rank 0's weights and buffers: BatchNorm's statistics are each rank's own between steps."""
        if self.world > 1:
            for tensor in model.buffers() if buffers_only else model.state_dict().values():
                whole = tensor.contiguous()  # ranks may have it in another memory layout
                torch.distributed.broadcast(whole, 0)
                if whole is not tensor:
                    tensor.copy_(whole)

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def broadcast_from_first(self, value: T) -> T:
        """Rank 0's value."""
        values = [value]
        if self.world > 1:
            torch.distributed.broadcast_object_list(values, 0)
        return values[0]


ALONE = Ranks()


@contextmanager
def quiet(ranks: Ranks) -> Iterator[None]:
    """One log: what other ranks than the first print goes nowhere. Errors, on stderr, come from every rank."""
    if ranks.is_first:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield
