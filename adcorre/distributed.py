"""What the chunks and ranks of one batch add up, and the one all-reduce that adds it over ranks.

No sum depends on Eq. 7's weights, so that everything a step needs from other ranks fits one buffer and one collective:
but for pairs="sample", which needs the other ranks' samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from adcorre.backends import Options
from adcorre.between import Between, between_sums

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

REDUCTIONS = ("mean", "sum")


class BatchSums(NamedTuple):
    """Sums over the samples of a batch, or of a part of it. Those of two parts add.

    statistics: `ClassStatistics.flat`, float32 or float64; its counts are NaN if a label is bad.
    predictions: (2, C) int64, samples predicted right and samples seen of each class, for the attention map.
    ce: (2,), the sum of cross-entropies and that of their weights, its divisor; the latter is NaN if a label is bad.
    """

    statistics: Tensor
    predictions: Tensor
    ce: Tensor

    def pack(self) -> Tensor:
        """All of it as one vector, in the widest dtype of its parts.

        Counts are exact in float32 up to 2**24 = 16.7 million samples of a class in one step; beyond they round as the
        other sums do.
        """
        return torch.cat((self.statistics, self.predictions.flatten(), self.ce))

    def unpack(self, packed: Tensor) -> BatchSums:
        """The parts of a vector that is laid out as `self.pack()`, each in the dtype it has here."""
        statistics, predictions, ce = packed.split([part.numel() for part in self])
        return BatchSums(
            statistics.to(self.statistics.dtype),
            predictions.round().to(self.predictions.dtype).view_as(self.predictions),
            ce.to(self.ce.dtype),
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


def between_ranks(
    x: Tensor,
    targets: Tensor,
    attention: Tensor,
    flat: Tensor,
    options: Options,
    process_group: ProcessGroup | Literal["world"],
) -> Between:
    """For pairs="sample": everybody's samples by an all-gather of x (n, k, d), in its dtype, and one of the labels.

    In the ranks' order, with as many places for each as the largest rank has samples; that number is read on the host.
    Without a graph: each rank computes the whole gradient of its own samples. The sums over pairs know the attention
    weights, so that they take a second, small all-reduce.
    """
    group = _group(process_group)
    n = torch.tensor([x.shape[0]], device=x.device)
    sizes = n.new_empty(world_size(process_group))
    torch.distributed.all_gather_into_tensor(sizes, n, group=group)
    places = int(sizes.max())
    labels = n.new_full((places,), options.ignore_index)
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
    between = between_sums(all_x, all_labels, start, start + x.shape[0], attention, flat, options)
    torch.distributed.all_reduce(between.sums, group=group)
    return between


def union_over_ranks(labels: Tensor, process_group: ProcessGroup | Literal["world"]) -> Tensor:
    """The labels (c,) int64 that any rank has, each once and sorted. Every rank of the group must call this.

    An all-gather of the ranks' numbers of labels, the largest of which is read on the host, and one of the labels.
    """
    group = _group(process_group)
    own = labels.unique()
    sizes = own.new_empty(world_size(process_group))
    torch.distributed.all_gather_into_tensor(sizes, own.new_tensor([own.shape[0]]), group=group)
    places = int(sizes.max())
    everybodys = own.new_empty(places * sizes.shape[0])
    if places:
        padded = torch.nn.functional.pad(own, (0, places - own.shape[0]))
        torch.distributed.all_gather_into_tensor(everybodys, padded, group=group)
    filled = torch.arange(places, device=own.device) < sizes[:, None]
    return everybodys.view(-1, places)[filled].unique() if places else everybodys


def _group(process_group: ProcessGroup | Literal["world"]) -> ProcessGroup | None:
    if process_group != "world":
        return process_group
    if not torch.distributed.is_initialized():
        raise ValueError(
            'process_group="world": there is no default group yet; call torch.distributed.init_process_group() first, '
            "in processes that torchrun started"
        )
    return None
