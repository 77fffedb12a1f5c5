"""What the loss modules share: settings in buffers, copies, and the error for a bad label on any rank."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from adcorre import checks
from adcorre.statistics import counts_of


class LossModule(nn.Module):
    """A loss with a `process_group`, and with buffers, named in `settings`, that the user gave."""

    settings: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Settings survive `to_empty`, which materialises a model built on the meta device but leaves memory as it is.

        A setting that was itself on the meta device has no value to keep: NaN until a state is loaded.
        """
        was_meta = any(buffer.is_meta for buffer in self.buffers())
        before = {name: getattr(self, name) for name in self.settings}
        super()._apply(fn, recurse)
        if was_meta:
            with torch.no_grad():
                for name, value in before.items():
                    if value is not None and not getattr(self, name).is_meta:
                        getattr(self, name).copy_(torch.nan if value.is_meta else value)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that shares the process group, which cannot be copied."""
        copied = type(self).__new__(type(self))
        memo |= {id(self): copied, id(self.process_group): self.process_group}
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied


class StateModule(nn.Module):
    """A module whose state begins as `reset_parameters` leaves it, after `to_empty` too."""

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`to_empty` of a module that was built on the meta device leaves memory as it comes."""
        was_meta = any(buffer.is_meta for buffer in self.buffers())
        super()._apply(fn, recurse)
        if was_meta and not any(buffer.is_meta for buffer in self.buffers()):
            self.reset_parameters()
        return self


def check_ranks(
    flat: Tensor, targets: Sequence[Tensor], num_classes: int, ignore_index: int, name: str = "targets"
) -> None:
    """IndexError on every rank for a bad label on any, which made the counts in `flat` NaN. `targets`: this rank's."""
    if not bool(counts_of(flat, num_classes).isnan().any()):
        return
    for labels in targets:
        checks.check_labels(labels, num_classes, ignore_index, True, name)
    raise IndexError(
        f"{name}: another rank has a label that is outside [0, {num_classes}) and is not ignore_index ({ignore_index})"
    )
