"""The backends: what each can do, which one a call takes, and how their steps are called."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from adcorre import checks, torch_backend


class Options(NamedTuple):
    """How to compute the terms: the user's words resolved to numbers and to one backend's name."""

    backend: str
    between_target: float
    mean_target: float
    embedding_target: float
    ignore_index: int
    pairs: str = "class"
    precision: str = "highest"


class Backend(Protocol):
    """The three linear steps, and FD over all pairs of samples. `flat` is laid out as in `ClassStatistics`."""

    def statistics(
        self, x: Tensor, targets: Tensor, num_classes: int, ignore_index: int, embedding_target: float
    ) -> Tensor:
        """x (n, k, d), targets (n,) -> flat."""

    def terms(
        self,
        flat: Tensor,
        attention: Tensor,
        k: int,
        d: int,
        between_target: float | None,
        mean_target: float,
        embedding_target: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """flat -> values (4,) = (fd, md, ed, nfd), and the tables G (C, k, d), H (C, k, d), 2 / (n k^2) ()."""

    def gradient(
        self,
        x: Tensor,
        targets: Tensor,
        upstream: Tensor,
        feature: Tensor,
        mean: Tensor,
        embedding_scale: Tensor,
        ignore_index: int,
        embedding_target: float,
    ) -> Tensor:
        """dL/dx, contiguous, in x's dtype, from the tables and the upstream gradient of `values` (4,)."""

    @property
    def pair_values(self) -> Callable[..., Tensor]:
        """As `adcorre.pairs.pair_values`."""

    @property
    def pair_gradient(self) -> Callable[..., Tensor]:
        """As `adcorre.pairs.pair_gradient`."""


def resolve_options(
    embeddings: Tensor,
    num_classes: int,
    backend: str,
    between_target: checks.Target,
    mean_target: checks.Target,
    embedding_target: checks.Target,
    ignore_index: int,
    pairs: str = "class",
    precision: str = "highest",
) -> Options:
    """Targets as numbers, and `backend` as one that can do it; ValueError where none of that name can."""
    k = embeddings.shape[1] if embeddings.dim() == 3 else 1
    resolved = Options(
        backend,
        checks.resolve_target("between_target", between_target, num_classes),
        checks.resolve_target("mean_target", mean_target, num_classes),
        checks.resolve_target("embedding_target", embedding_target, k),
        ignore_index,
        pairs,
        precision,
    )
    checks.check_backend(backend)
    checks.check_pairs(pairs, precision)
    if backend in ("torch", "reference"):
        return resolved
    if backend == "auto" and not embeddings.is_cuda:
        return resolved._replace(backend="torch")
    reason = _why_not_triton(embeddings, num_classes, k, resolved)
    if reason is None:
        return resolved._replace(backend="triton")
    if backend == "triton":
        raise ValueError(f'backend="triton": {reason}')
    if not torch.compiler.is_compiling():
        _warn_once(reason)
    return resolved._replace(backend="torch")


def backend_of(name: str) -> Backend:
    return torch_backend if name == "torch" else _triton_backend()


@cache
def _triton_backend() -> Any:
    """The kernels package, or the reason (a string) why it cannot be imported."""
    try:
        from adcorre_kernels import gpu
    except ImportError as error:
        return f"the Triton kernels cannot be imported ({error})"
    return gpu


def _why_not_triton(embeddings: Tensor, num_classes: int, k: int, options: Options) -> str | None:
    kernels = _triton_backend()
    if isinstance(kernels, str):
        return kernels
    return kernels.why_unsupported(embeddings, num_classes, k, options.embedding_target)


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f'adcorre: backend "auto" takes "torch": {reason}', stacklevel=2)


def linear_terms(
    flat: Tensor, attention: Tensor, k: int, d: int, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backend's `terms`; FD of the pairs within classes alone where the others are taken one by one.

    The torch backend's where the kernels leave many classes to whole-tensor operations.
    """
    backend = backend_of(options.backend)
    if options.backend == "triton" and not _triton_backend().terms_supported(attention.shape[0], k, d):
        backend = torch_backend
    between_target = None if options.pairs == "sample" else options.between_target
    return backend.terms(flat, attention, k, d, between_target, options.mean_target, options.embedding_target)


def bound_once(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Decorates an autograd function: its `apply` binds arguments to `forward`'s signature at every call.

    A remembered signature halves that, and at small batches the host's time is all there is.
    """
    function.forward.__signature__ = inspect.signature(function.forward)  # type: ignore[attr-defined]
    return function


class Gradient(torch.autograd.Function):
    """A backward pass as a function of its own, so that a second derivative is refused and never silently wrong.

    Subclasses have the `forward`, whose last argument is the `Options`.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend = inputs[-1].backend

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f'adcorre: backend "{ctx.backend}" has no double backward; backend="reference" has one')


def gradient_by(function: type[Gradient], *arguments: Any) -> Tensor:
    """What a `Gradient` computes; without a node of its own where no second derivative can be asked for."""
    return function.apply(*arguments) if torch.is_grad_enabled() else function.forward(*arguments)
