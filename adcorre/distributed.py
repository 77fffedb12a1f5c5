"""The sums that chunks and ranks of one batch contribute, and the all-reduce that adds them over ranks.

No sum depends on Eq. 7's weights. A step therefore needs one buffer and one collective, except with pairs="sample",
which needs the other ranks' samples too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from adcorre.backends import Options
from adcorre.between import BetweenPairs, sum_pairs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

REDUCTIONS = ("mean", "sum")


class BatchSums(NamedTuple):
    """Sums over the samples of a batch, or of a part of it. Sums of two parts add.

    statistics: `ClassStatistics.flat`, float32 or float64; its counts are NaN if a label is bad.
    predictions: (2, C) int64, for each class samples predicted right and samples, for the attention map.
    ce: (2,), the sum of cross-entropies and the sum of their weights (the divisor), which is NaN if a label is bad.
    """

    statistics: Tensor
    predictions: Tensor
    ce: Tensor

    def pack(self) -> Tensor:
        """All sums as one vector, in the widest of their dtypes.

        Counts are exact in float32 up to 2**24 = 16.7 million samples of a class in one step, and rounded beyond.
        """
        return torch.cat((self.statistics, self.predictions.flatten(), self.ce))

    def unpack(self, packed: Tensor) -> BatchSums:
        """The sums in a vector laid out as by `pack`, with the dtypes of `self`."""
        statistics, predictions, ce = packed.split([part.numel() for part in self])
        return BatchSums(
            statistics.to(self.statistics.dtype),
            predictions.round().to(self.predictions.dtype).view_as(self.predictions),
            ce.to(self.ce.dtype),
        )


def check_group(process_group: ProcessGroup | Literal["world"] | None, gradient_reduction: str) -> None:
    """Raise ValueError or TypeError for an invalid process group or an unknown reduction."""
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
    """The number of ranks that share the batch."""
    return 1 if process_group is None else torch.distributed.get_world_size(_group(process_group))


def add_ranks(sums: BatchSums, process_group: ProcessGroup | Literal["world"]) -> BatchSums:
    """The sums over all ranks' samples: one all-reduce of one buffer. Every rank of the group must call this.

    Raises ValueError for "world" if the default group is not initialized.
    """
    packed = sums.pack()
    torch.distributed.all_reduce(packed, group=_group(process_group))
    return sums.unpack(packed)


def gather_pairs(
    x: Tensor,
    targets: Tensor,
    attention: Tensor,
    flat: Tensor,
    options: Options,
    process_group: ProcessGroup | Literal["world"],
) -> BetweenPairs:
    """All-gather x (n, k, d), in its dtype, and the labels of all ranks, for pairs="sample".

    Every rank is padded to the largest number of samples, which is read on the host. The samples are detached: each
    rank computes the whole gradient of its own samples. The sums over pairs depend on the attention weights, so that
    they need a second, small all-reduce.
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
        all_bytes, own_bytes = (y.flatten().view(torch.uint8) for y in (all_x, own))  # gloo supports few dtypes
        torch.distributed.all_gather_into_tensor(all_bytes, own_bytes, group=group)
    start = torch.distributed.get_rank(group) * places
    between = sum_pairs(all_x, all_labels, start, start + x.shape[0], attention, flat, options)
    torch.distributed.all_reduce(between.sums, group=group)
    return between


def union_over_ranks(labels: Tensor, process_group: ProcessGroup | Literal["world"]) -> Tensor:
    """The sorted unique labels (c,) int64 of all ranks. Every rank of the group must call this.

    Two all-gathers: of the ranks' numbers of labels, the largest of which is read on the host, and of the labels.
    """
    group = _group(process_group)
    own = labels.unique()
    sizes = own.new_empty(world_size(process_group))
    torch.distributed.all_gather_into_tensor(sizes, own.new_tensor([own.shape[0]]), group=group)
    places = int(sizes.max())
    gathered = own.new_empty(places * sizes.shape[0])
    if places:
        padded = torch.nn.functional.pad(own, (0, places - own.shape[0]))
        torch.distributed.all_gather_into_tensor(gathered, padded, group=group)
    filled = torch.arange(places, device=own.device) < sizes[:, None]
    return gathered.view(-1, places)[filled].unique() if places else gathered


def _group(process_group: ProcessGroup | Literal["world"]) -> ProcessGroup | None:
    if process_group != "world":
        return process_group
    if not torch.distributed.is_initialized():
        raise ValueError(
            'process_group="world": the default group is not initialized; call '
            "torch.distributed.init_process_group() first, in processes started by torchrun"
        )
    return None
