"""The backends: the steps of each one, and which one a call uses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adcorre import checks, torch_backend
from adcorre.statistics import Tables
from adcorre_kernels import cpu


class Options(NamedTuple):
    """How to compute the loss. `resolve_options` turns the user's values into numbers and one backend's name."""

    backend: str = "auto"
    between_target: Any = -1.0  # these three are floats after resolve_options
    mean_target: Any = -1.0
    embedding_target: Any = -1.0
    ignore_index: int = -100
    pairs: str = "class"
    precision: str = "highest"
    label_smoothing: float = 0.0
    components: checks.Components = {}  # noqa: RUF012 - never written to


class Backend(NamedTuple):
    """The five steps of the loss, and FD over all pairs of samples. The steps have no autograd formula.

    `targets` (n,) are int64. A sample takes part if its label is in [0, C) and not `ignore_index`. A label that is
    neither in [0, C) nor `ignore_index` is bad. `flat`: as in `ClassStatistics`. `values` (4,): as in `Values`.
    """

    # (logits (n, C), targets, ce_weight (C,)?, adjustment (C,)?, label_smoothing, ignore_index)
    # -> (2, C) int64 samples predicted right and samples; (2,) sums of cross-entropies and of weights, NaN if bad
    logits_sums: Callable[..., tuple[Tensor, Tensor]]
    # (x (n, k, d), targets, num_classes, ignore_index, embedding_target) -> flat
    statistics: Callable[..., Tensor]
    # (flat, attention (C,), k, d, between_target or None, mean_target, embedding_target) -> values, *Tables
    terms: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    # (x, targets, upstream (4,) of values, *Tables, ignore_index, embedding_target) -> dL/dx, contiguous, in x's dtype
    embedding_gradient: Callable[..., Tensor]
    # (logits, targets, upstream () of the sum of cross-entropies, ce_weight?, adjustment?, label_smoothing,
    # ignore_index) -> dL/dlogits in their dtype
    logits_gradient: Callable[..., Tensor]
    # as in `adcorre.pairs`
    pair_values: Callable[..., Tensor]
    pair_gradient: Callable[..., Tensor]


_TORCH = Backend(*(getattr(torch_backend, step) for step in Backend._fields))
_NUMBA = _TORCH._replace(**{step: getattr(cpu, step) for step in Backend._fields if hasattr(cpu, step)})


def resolve_options(embeddings: Tensor, num_classes: int, *given: Any, **named: Any) -> Options:
    """`Options(*given, **named)`, checked, with numeric targets and a backend that supports these inputs.

    Raises ValueError if the requested backend does not support them.
    """
    requested = Options(*given, **named)
    backend, between, mean, embedding = requested[:4]
    k = embeddings.shape[1] if embeddings.dim() == 3 else 1
    resolved_targets = (
        checks.resolve_target("between_target", between, num_classes),
        checks.resolve_target("mean_target", mean, num_classes),
        checks.resolve_target("embedding_target", embedding, k),
    )
    resolved = Options._make((backend, *resolved_targets, *requested[4:]))
    checks.check_backend(backend)
    checks.check_pairs(requested.pairs, requested.precision)
    if backend in ("torch", "reference"):
        return resolved
    if backend == "auto" and not (embeddings.is_cuda or (embeddings.is_cpu and cpu.installed())):
        return resolved._replace(backend="torch")
    fused = backend if backend != "auto" else "triton" if embeddings.is_cuda else "numba"
    if fused == "triton":
        reason = _why_unsupported_triton(embeddings, num_classes, k, resolved)
    else:
        reason = cpu.why_unsupported(embeddings)
    if reason is None:
        return resolved if fused == backend else resolved._replace(backend=fused)
    if backend != "auto":
        raise ValueError(f'backend="{backend}": {reason}')
    if not torch.compiler.is_compiling():
        _warn_once(reason)
    return resolved._replace(backend="torch")


def get_backend(options: Options) -> Backend:
    """The steps of `options.backend`. A step that it does not implement is the torch backend's."""
    if options.backend == "triton":
        return _triton_backend()
    return _NUMBA if options.backend == "numba" else _TORCH


@cache
def _triton_backend() -> Backend:
    kernels = triton_kernels()
    return _TORCH._replace(
        statistics=kernels.statistics,
        terms=kernels.terms,
        embedding_gradient=kernels.gradient,
        logits_sums=_with_fallback(kernels.logits_supported, kernels.logits_sums, _TORCH.logits_sums),
        logits_gradient=_with_fallback(kernels.logits_supported, kernels.logits_gradient, _TORCH.logits_gradient),
        pair_values=kernels.pair_values,
        pair_gradient=kernels.pair_gradient,
    )


def _with_fallback(
    supported: Callable[[Tensor], bool], kernel: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
    """A step over logits: `kernel` if it supports them, else `plain`."""

    def step(logits: Tensor, *rest: Any) -> Any:
        return (kernel if supported(logits) else plain)(logits, *rest)

    return step


@cache
def triton_kernels() -> Any:
    """The Triton kernels, or the reason (a string) why they cannot be imported."""
    try:
        from adcorre_kernels import gpu
    except ImportError as error:
        return f"the Triton kernels cannot be imported ({error})"
    return gpu


def _why_unsupported_triton(embeddings: Tensor, num_classes: int, k: int, options: Options) -> str | None:
    kernels = triton_kernels()
    if isinstance(kernels, str):
        return kernels
    return kernels.why_unsupported(embeddings, num_classes, k, options.embedding_target)


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f'adcorre: backend "auto" uses "torch": {reason}', stacklevel=2)


def linear_terms(flat: Tensor, attention: Tensor, k: int, d: int, options: Options) -> tuple[Tensor, Tables]:
    """`Values` as one tensor, and the tables. With pairs="sample", FD has the pairs within classes only.

    The torch backend computes them for numbers of classes that the kernels do not support.
    """
    backend = get_backend(options) if terms_supported(options, attention.shape[0], k, d) else _TORCH
    values, *tables = backend.terms(
        flat, attention, k, d, _linear_target(options), options.mean_target, options.embedding_target
    )
    return values, Tables(*tables)


def terms_supported(options: Options, num_classes: int, k: int, d: int) -> bool:
    """Whether the backend has kernels, and these compute the terms from the statistics."""
    if options.backend == "triton":
        return triton_kernels().terms_supported(num_classes, k, d)
    return options.backend == "numba" and cpu.terms_supported(num_classes, _linear_target(options), options.mean_target)


def _linear_target(options: Options) -> float | None:
    return None if options.pairs == "sample" else options.between_target


def fast_apply(function: type[torch.autograd.Function], outputs: int | None = None) -> Callable[..., Any]:
    """`function.apply`, which in eager mode skips `setup_context`. Only the first `outputs` outputs are returned.

    With `setup_context`, PyTorch binds the arguments to the signature of `forward` in each call, which takes as long as
    ten small operations. Functional transforms and `torch.compile` need it.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output[:outputs] if outputs else output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    eager: Any = type(function.__name__, (torch.autograd.Function,), methods)

    def apply(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            output = function.apply(*arguments)
            return output[:outputs] if outputs else output
        return eager.apply(*arguments)

    return apply


class _Gradient(torch.autograd.Function):
    """A backward pass as an autograd function, so that a second derivative raises an error instead of being wrong."""

    @staticmethod
    def forward(compute: Callable[..., Any], backend: str, *tensors: Tensor) -> Any:
        return compute(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = inputs[1]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f'adcorre: backend "{ctx.backend}" has no double backward; backend="reference" has one')


_apply_gradient = fast_apply(_Gradient)


def without_double_backward(compute: Callable[..., Any], options: Options, *tensors: Tensor | None) -> Any:
    """Call compute(*tensors). A second derivative through it raises an error."""
    if torch.is_grad_enabled():
        return _apply_gradient(compute, options.backend, *tensors)
    return compute(*tensors)
