"""Input checks shared by every backend: clear errors without a host sync."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor

Target = float | Literal["simplex"]
Components = dict[str, float]  # weights of the terms that enter the loss, in the order of COMPONENTS

BACKENDS = ("auto", "triton", "numba", "torch", "reference")
PAIRS = ("class", "sample")
PRECISIONS = ("highest", "high", "medium")
COMPONENTS = ("fd", "nfd", "md", "ed")
INTEGER_DTYPES = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)
STATISTICS_DTYPE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


def resolve_target(name: str, target: Target, parts: int) -> float:
    """A correlation target as a number: any t in [-1, 1], or "simplex" = -1 / (parts - 1) for `parts` directions.

    With one part there is no pair and the term is 0 for every target; "simplex" then resolves to -1.
    """
    if isinstance(target, str):
        if target != "simplex":
            raise ValueError(f'{name}: expected "simplex" or a number in [-1, 1], got {target!r}')
        return -1.0 if parts == 1 else -1.0 / (parts - 1)
    if isinstance(target, bool) or not isinstance(target, Real):
        raise TypeError(f'{name}: expected "simplex" or a number in [-1, 1], got {type(target).__name__}')
    if not -1.0 <= target <= 1.0:
        raise ValueError(f'{name}: expected "simplex" or a number in [-1, 1], got {target}')
    return float(target)


def check_correlation_targets(parts: int, **targets: Target) -> None:
    """Raise the errors of `resolve_target` for each target, named by its argument."""
    for name, target in targets.items():
        resolve_target(name, target, parts)


def check_tensor(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        kind = type(value)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        raise TypeError(
            f"{name}: expected a torch.Tensor, got {module}{kind.__name__}; convert it with torch.as_tensor"
        )


def check_embeddings(embeddings: Tensor) -> None:
    """Require (n, k, d) or (n, d), floating, d >= 1 and k >= 1; ValueError for shapes, TypeError for dtypes."""
    check_tensor("embeddings", embeddings)
    if embeddings.dtype not in STATISTICS_DTYPE:
        raise TypeError(
            f"embeddings: expected dtype float64, float32, bfloat16 or float16, got {_name(embeddings.dtype)}"
        )
    if embeddings.dim() not in (2, 3) or 0 in embeddings.shape[1:]:
        raise ValueError(
            "embeddings: expected shape (n, k, d), or (n, d) for k = 1, with k and d at least 1; "
            f"got {tuple(embeddings.shape)}"
        )


def check_targets(targets: Tensor, n: int, device: torch.device, ignore_index: int, name: str = "targets") -> Tensor:
    """Require (n,) integers on the embeddings' device; return int64. ValueError or, for dtypes, TypeError.

    Labels of narrow dtypes would wrap around in comparisons with numbers outside their range.
    """
    check_tensor(name, targets)
    if targets.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{name}: expected integer class labels (int64), got {_name(targets.dtype)}")
    if tuple(targets.shape) != (n,):
        raise ValueError(f"{name}: expected shape ({n},), one label per sample; got {tuple(targets.shape)}")
    if targets.device != device:
        raise ValueError(f"{name}: expected device {device} as the embeddings', got {targets.device}")
    check_ignore_index(ignore_index)
    return targets.long()


def check_ignore_index(ignore_index: int) -> int:
    """Return `ignore_index`; TypeError unless it is an int."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral):
        raise TypeError(f"ignore_index: expected an int, got {type(ignore_index).__name__}")
    return int(ignore_index)


def check_attention(attention: Tensor) -> None:
    """Require (C,), floating, without gradient: Eq. 7 counts predictions and has no derivative."""
    check_tensor("attention", attention)
    if not attention.dtype.is_floating_point:
        raise TypeError(f"attention: expected a floating dtype, got {_name(attention.dtype)}")
    if attention.dim() != 1 or attention.shape[0] < 1:
        raise ValueError(
            f"attention: expected shape (C,), one weight per class, C at least 1; got {tuple(attention.shape)}"
        )
    if attention.requires_grad:
        raise ValueError("attention: carries no gradient (Eq. 7 counts predictions), got one that requires grad")


def check_same_device(attention: Tensor, embeddings: Tensor) -> None:
    """Raise ValueError if attention is on another device than the embeddings."""
    if attention.device != embeddings.device:
        raise ValueError(f"attention: expected device {embeddings.device} as the embeddings', got {attention.device}")


def check_logits(logits: Tensor, num_classes: int) -> None:
    """Require (n, C), floating; ValueError for shapes, TypeError for dtypes."""
    check_tensor("logits", logits)
    if not logits.dtype.is_floating_point:
        raise TypeError(f"logits: expected a floating dtype, got {_name(logits.dtype)}")
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise ValueError(f"logits: expected shape (n, {num_classes}), one column per class; got {tuple(logits.shape)}")


def check_same_batch(logits: Tensor, embeddings: Tensor) -> None:
    """Raise ValueError unless logits and embeddings have the same number of samples and the same device."""
    if logits.shape[0] != embeddings.shape[0] or logits.device != embeddings.device:
        raise ValueError(
            "logits and embeddings: expected the same samples on the same device, "
            f"got {logits.shape[0]} on {logits.device} and {embeddings.shape[0]} on {embeddings.device}"
        )


def check_ce_settings(
    ce_weight: Tensor | None, logit_adjustment: Tensor | None, label_smoothing: float, num_classes: int
) -> None:
    """Require ce_weight and logit_adjustment None or (C,) floating without gradient, label_smoothing in [0, 1].

    Values are checked only in eager mode on a CPU: weights finite and at least 0, adjustments neither NaN nor +inf. An
    adjustment of -inf excludes a class from the cross-entropy.
    """
    for name, value in (("ce_weight", ce_weight), ("logit_adjustment", logit_adjustment)):
        if value is None:
            continue
        check_tensor(name, value)
        if tuple(value.shape) != (num_classes,) or not value.dtype.is_floating_point:
            raise ValueError(
                f"{name}: expected shape ({num_classes},) and a floating dtype, "
                f"got {tuple(value.shape)} {_name(value.dtype)}"
            )
        if value.requires_grad:
            raise ValueError(f"{name}: carries no gradient, got a tensor that requires grad; pass {name}.detach()")
        if validates_labels(value, None):
            in_bounds = value < torch.inf if name == "logit_adjustment" else (value >= 0) & (value < torch.inf)
            if not bool(in_bounds.all()):
                expected = "numbers below inf" if name == "logit_adjustment" else "finite numbers of at least 0"
                raise ValueError(f"{name}: expected {expected}, got {value[~in_bounds][0].item()}")
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, Real):
        raise TypeError(f"label_smoothing: expected a number in [0, 1], got {type(label_smoothing).__name__}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")


def check_components(components: Collection[str] | Mapping[str, float]) -> Components:
    """The weight of each chosen component, in the order of COMPONENTS; names without weights get 1.

    ValueError for an unknown name, for fd and nfd together, or for a weight that is negative or not finite; TypeError
    for a weight that is not a number. A generator is refused: it could be read only once.
    """
    known = isinstance(components, Collection) and not isinstance(components, str)
    if not known or any(name not in COMPONENTS for name in components):
        raise ValueError(
            f"components: expected a collection of names out of {COMPONENTS}, or a weight for each, got {components!r}"
        )
    if {"fd", "nfd"} <= set(components):
        raise ValueError('components: "nfd" (Eq. 5) stands in place of "fd" (Eq. 9), got both')
    weights = components if isinstance(components, Mapping) else dict.fromkeys(components, 1.0)
    for name, weight in weights.items():
        check_weight(f"components: weight of {name}", weight)
    return {name: float(weights[name]) for name in COMPONENTS if name in weights}


def check_weight(name: str, value: float) -> None:
    """Require a finite number of at least 0; TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")


def check_lambda(lambd: float | Tensor) -> float | Tensor:
    """λ: a finite number or 0-d tensor, at least 0. A tensor's value is checked only in eager mode on a CPU."""
    if type(lambd) is float and 0 <= lambd < float("inf"):  # the usual case: an `isinstance` of Real takes longer
        return lambd
    if not isinstance(lambd, Tensor):
        check_weight("lambd", lambd)
        return float(lambd)
    if lambd.dim() != 0 or not lambd.dtype.is_floating_point:
        raise TypeError(f"lambd: expected a number or a 0-d floating tensor, got {_name(lambd.dtype)} {lambd.shape}")
    if lambd.requires_grad:
        raise ValueError("lambd: carries no gradient, got a tensor that requires grad; pass lambd.detach()")
    if validates_labels(lambd, None):
        check_weight("lambd", lambd.item())
    return lambd


def check_pairs(pairs: str, precision: str) -> None:
    """Raise ValueError for an unknown `pairs` or `precision`."""
    if pairs not in PAIRS:
        raise ValueError(f"pairs: expected one of {', '.join(PAIRS)}; got {pairs!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}; got {precision!r}")


def check_backend(backend: str) -> None:
    """Raise ValueError for an unknown backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}; got {backend!r}")


def check_positive_int(name: str, value: int) -> int:
    """Return `value`; TypeError or ValueError unless it is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def check_labels(
    targets: Tensor, num_classes: int, ignore_index: int, validate: bool | None, name: str = "targets"
) -> None:
    """Raise IndexError for a label that is neither in [0, C) nor `ignore_index`.

    validate=None checks only where that is free: in eager mode, on CPU tensors. True always checks (a host sync on a
    GPU), False never. A bad label that is not checked makes the loss and its gradient NaN.
    """
    if not validates_labels(targets, validate):
        return
    targets = targets.long()  # narrow dtypes wrap around in comparisons
    if targets.shape[0] == 0:
        return
    low, high = targets.aminmax()
    if int(low) >= 0 and int(high) < num_classes:  # fewer operations than the masks need
        return
    bad = label_masks(targets, num_classes, ignore_index)[1]
    if bool(bad.any()):
        position = int(bad.nonzero()[0, 0])
        raise IndexError(
            f"{name}: label {int(targets[position])} at position {position} is outside [0, {num_classes}) "
            f"and is not ignore_index ({ignore_index})"
        )


def validates_labels(targets: Tensor, validate: bool | None) -> bool:
    """Whether these labels are checked, given `validate`."""
    if validate is None:
        return targets.device.type == "cpu" and type(targets) is Tensor and not torch.compiler.is_compiling()
    return validate


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def label_masks(targets: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Two (n,) masks: samples that take part, and bad labels (neither in [0, C) nor `ignore_index`)."""
    ignored = targets == ignore_index
    in_range = (targets >= 0) & (targets < num_classes)
    takes_part = in_range & ~ignored if 0 <= ignore_index < num_classes else in_range
    return takes_part, ~(in_range | ignored)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
