"""Base classes of the loss modules: settings in buffers, copies, and the error for a bad label on any rank."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from adcorre import checks
from adcorre.statistics import class_counts


class LossModule(nn.Module):
    """A loss with a `process_group`, and with buffers given by the user, named in `settings`."""

    settings: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep settings through `to_empty`, which materializes a model on the meta device with uninitialized memory.

        A setting that was on the meta device itself has no value: it is NaN until a state is loaded.
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
    """A module that initializes its state by `reset_parameters`, after `to_empty` too."""

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Initialize the state after `to_empty`, which leaves uninitialized memory."""
        was_meta = any(buffer.is_meta for buffer in self.buffers())
        super()._apply(fn, recurse)
        if was_meta and not any(buffer.is_meta for buffer in self.buffers()):
            self.reset_parameters()
        return self


def check_ranks(
    flat: Tensor, targets: Sequence[Tensor], num_classes: int, ignore_index: int, name: str = "targets"
) -> None:
    """Raise IndexError on every rank for a bad label on any: it has made the counts in `flat` NaN.

    targets: this rank's labels, by chunk. name: the name of the labels in messages.
    """
    if not bool(class_counts(flat, num_classes).isnan().any()):
        return
    for labels in targets:
        checks.check_labels(labels, num_classes, ignore_index, True, name)
    raise IndexError(
        f"{name}: another rank has a label that is outside [0, {num_classes}) and is not ignore_index ({ignore_index})"
    )
