"""What the chunks and ranks of one batch add up, and the one all-reduce that adds it over ranks.

No sum depends on Eq. 7's weights, so that everything a step needs from other ranks fits one buffer and one collective:
but for pairs="sample", which needs the other ranks' samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from adcorre.between import Whole

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

REDUCTIONS = ("mean", "sum")


class BatchSums(NamedTuple):
    """Sums over the samples of a batch, or of a part of it. Those of two parts add.

    statistics: `ClassStatistics.flat`, float32 or float64; its counts are NaN if a label is bad.
    predictions: (2, C) int64, samples predicted right and samples seen of each class, for the attention map.
    ce, ce_weight: (), the sums behind the mean cross-entropy and its divisor; the latter is NaN if a label is bad.
    """

    statistics: Tensor
    predictions: Tensor
    ce: Tensor
    ce_weight: Tensor

    def pack(self) -> Tensor:
        """All of it as one vector, in the widest dtype of its parts.

        Counts are exact in float32 up to 2**24 = 16.7 million samples of a class in one step; beyond they round as the
        other sums do.
        """
        return torch.cat((self.statistics, self.predictions.flatten(), self.ce[None], self.ce_weight[None]))

    def unpack(self, packed: Tensor) -> BatchSums:
        """The parts of a vector that is laid out as `self.pack()`, each in the dtype it has here."""
        sizes = (self.statistics.numel(), self.predictions.numel(), 1, 1)
        statistics, predictions, ce, ce_weight = packed.split(sizes)
        return BatchSums(
            statistics.to(self.statistics.dtype),
            predictions.round().to(self.predictions.dtype).view_as(self.predictions),
            ce[0].to(self.ce.dtype),
            ce_weight[0].to(self.ce_weight.dtype),
        )


def check_group(process_group: ProcessGroup | Literal["world"] | None, gradient_reduction: str) -> None:
    """ValueError or TypeError for what can be no group of this process, or an unknown reduction."""
    if gradient_reduction not in REDUCTIONS:
        raise ValueError(f'gradient_reduction: expected "mean" or "sum", got {gradient_reduction!r}')
    if process_group is None:
        return
    if not torch.distributed.is_available():
        raise ValueError("process_group: this PyTorch was built without torch.distributed")
    if process_group == torch.distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("process_group: this process is not a member of the group")
    if process_group != "world" and not isinstance(process_group, torch.distributed.ProcessGroup):
        raise TypeError(
            'process_group: expected a torch.distributed.ProcessGroup, "world" for the default group, or None for a '
            f"single process; got {process_group!r}"
        )


def world_size(process_group: ProcessGroup | Literal["world"] | None) -> int:
    """Ranks that share the batch."""
    return 1 if process_group is None else torch.distributed.get_world_size(_group(process_group))


def add_ranks(sums: BatchSums, process_group: ProcessGroup | Literal["world"]) -> BatchSums:
    """The sums over all ranks' samples: one all-reduce of one buffer. Every rank of the group must call this.

    ValueError if "world" is asked for before there is one.
    """
    packed = sums.pack()
    torch.distributed.all_reduce(packed, group=_group(process_group))
    return sums.unpack(packed)


def gather_samples(
    x: Tensor, targets: Tensor, process_group: ProcessGroup | Literal["world"], ignore_index: int
) -> Whole:
    """Everybody's samples, for pairs="sample": an all-gather of x (n, k, d), in its dtype, and one of the labels.

    In the ranks' order, with as many places for each as the largest rank has samples; that number is read on the host.
    Without a graph: each rank computes the whole gradient of its own samples.
    """
    group = _group(process_group)
    n = torch.tensor([x.shape[0]], device=x.device)
    sizes = n.new_empty(world_size(process_group))
    torch.distributed.all_gather_into_tensor(sizes, n, group=group)
    places = int(sizes.max())
    labels = n.new_full((places,), ignore_index)
    labels[: x.shape[0]] = targets
    own = x.new_zeros(places, *x.shape[1:])
    own[: x.shape[0]] = x.detach()
    all_labels = labels.new_empty(places * sizes.shape[0])
    all_x = own.new_empty(places * sizes.shape[0], *x.shape[1:])
    if places:
        torch.distributed.all_gather_into_tensor(all_labels, labels, group=group)
        all_bytes, own_bytes = (y.flatten().view(torch.uint8) for y in (all_x, own))  # gloo knows few dtypes
        torch.distributed.all_gather_into_tensor(all_bytes, own_bytes, group=group)
    start = torch.distributed.get_rank(group) * places
    return Whole(all_x, all_labels, start, start + x.shape[0])


def add_between(sums: Tensor, process_group: ProcessGroup | Literal["world"]) -> Tensor:
    """`between_sums` over the pairs of all ranks' samples: a second, small all-reduce, since these know the weights."""
    torch.distributed.all_reduce(sums, group=_group(process_group))
    return sums


def _group(process_group: ProcessGroup | Literal["world"]) -> ProcessGroup | None:
    if process_group != "world":
        return process_group
    if not torch.distributed.is_initialized():
        raise ValueError(
            'process_group="world": there is no default group yet; call torch.distributed.init_process_group() first, '
            "in processes that torchrun started"
        )
    return None
