"""`torch.library` operators, and the schemas and fake implementations of those that GPUs and CPUs both have.

They are opaque to `torch.compile`, which could not fuse them further. They have no autograd formula: `adcorre` wraps
them in autograd functions. They are registered below autocast and autograd, so that half-precision inputs are not
converted and statistics stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adcorre_kernels.settings import Settings

_CROSS_ENTROPY = "Tensor? ce_weight, Tensor? adjustment, float label_smoothing, int ignore_index"
_SETTINGS = (
    "int ignore_index, float label_smoothing, float between_target, float mean_target, float embedding_target, "
    "float fd_weight, float md_weight, float ed_weight, bool naive"
)
_SAMPLES = "Tensor targets, Tensor? ce_weight, Tensor? adjustment"


class Operators:
    """The operators of one namespace, for tensors of one dispatch key. `prepare` wraps every implementation."""

    def __init__(self, namespace: str, key: str, prepare: Callable[..., Any] = lambda implementation: implementation):
        self.namespace, self.key, self.prepare = namespace, key, prepare
        self.library = torch.library.Library(namespace, "DEF")

    def define(self, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
        """A new operator. A call costs a third of one through `torch.library.custom_op`."""
        name = schema.partition("(")[0]
        self.library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        self.library.impl(name, self.prepare(implementation), self.key)
        torch.library.register_fake(f"{self.namespace}::{name}", fake, lib=self.library)
        return getattr(getattr(torch.ops, self.namespace), name).default

    def define_direct(
        self, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
    ) -> Callable[..., Any]:
        """A new operator, or its implementation in plain eager mode: a dispatch costs as much as a launch.

        The last argument is a `Settings`; the operator's last arguments are its fields.
        """
        count = len(Settings._fields)

        def with_settings(*given: Any) -> Any:
            return implementation(*given[:-count], Settings(*given[-count:]))

        operator = self.define(schema.replace(") -> ", f", {_SETTINGS}) -> ", 1), with_settings, fake)
        run = self.prepare(implementation)

        def call(x: Tensor, *rest: Any) -> Any:
            if (
                not torch.compiler.is_compiling()
                and type(x) in (Tensor, torch.nn.Parameter)
                and not torch._C._len_torch_dispatch_stack()
                and not torch._C._are_functorch_transforms_active()
            ):
                return run(x, *rest)
            return operator(x, *rest[:-1], *rest[-1])

        return call

    def define_steps(
        self, statistics: Callable[..., Any], logits_sums: Callable[..., Any], logits_gradient: Callable[..., Any]
    ) -> tuple[Any, Any, Any]:
        """The operators of three of a backend's steps, in this order."""
        return (
            self.define(
                "statistics(Tensor x, Tensor targets, SymInt num_classes, int ignore_index, float embedding_target) "
                "-> Tensor",
                statistics,
                _fake_statistics,
            ),
            self.define(
                f"logits_sums(Tensor logits, Tensor targets, {_CROSS_ENTROPY}) -> (Tensor, Tensor)",
                logits_sums,
                _fake_logits_sums,
            ),
            self.define(
                f"logits_gradient(Tensor logits, Tensor targets, Tensor upstream, {_CROSS_ENTROPY}) -> Tensor",
                logits_gradient,
                fake_gradient,
            ),
        )

    def define_fused(
        self,
        loss: Callable[..., Any],
        from_sums: Callable[..., Any],
        sample_terms: Callable[..., Any],
        gradients: Callable[..., Any],
        scales: tuple[int, int],
    ) -> tuple[Callable[..., Any], ...]:
        """The operators of several steps in one, in this order.

        scales: bytes behind the tables G and H, of `loss` and `from_sums`, and of `sample_terms`.
        """
        loss_scales, terms_scales = scales

        def fake_loss(x: Tensor, logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
            classes, dtype = logits.shape[1], torch.promote_types(logits.dtype, _at_least_float32(x))
            tables = _fake_tables(x, loss_scales, classes, *x.shape[1:])
            return logits.new_empty((), dtype=dtype), logits.new_empty(3 * classes + 7, dtype=dtype), tables

        def fake_from_sums(flat: Tensor, ce: Tensor, attention: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
            classes, dtype = attention.shape[0], torch.promote_types(flat.dtype, ce.dtype)
            tables = _fake_tables(flat, loss_scales, classes, *rest[3:5])
            return ce.new_empty((), dtype=dtype), ce.new_empty(5 + classes, dtype=dtype), tables

        def fake_sample_terms(x: Tensor, targets: Tensor, attention: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
            tables = _fake_tables(x, terms_scales, attention.shape[0], *x.shape[1:])
            return x.new_empty(4, dtype=_at_least_float32(x)), tables

        return (
            self.define_direct(
                f"loss(Tensor x, Tensor logits, {_SAMPLES}, Tensor? attention, Tensor(a!)? counts, "
                "Tensor(b!)? position, Tensor? lambd_tensor, float lambd, bool count, bool record) "
                "-> (Tensor, Tensor, Tensor)",
                loss,
                fake_loss,
            ),
            self.define_direct(
                "loss_from_sums(Tensor flat, Tensor ce, Tensor attention, Tensor? lambd_tensor, float lambd, "
                "float factor, SymInt k, SymInt d) -> (Tensor, Tensor, Tensor)",
                from_sums,
                fake_from_sums,
            ),
            self.define_direct(
                "sample_terms(Tensor x, Tensor targets, Tensor attention) -> (Tensor, Tensor)",
                sample_terms,
                fake_sample_terms,
            ),
            self.define_direct(
                f"gradients(Tensor x, Tensor? logits, {_SAMPLES}, Tensor? fd, Tensor? md, Tensor? ed, Tensor tables, "
                "bool needs_x, SymInt num_classes) -> Tensor[]",
                gradients,
                _fake_gradients,
            ),
        )


def fake_gradient(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_statistics(x: Tensor, targets: Tensor, num_classes: int, *options: Any) -> Tensor:
    _, k, d = x.shape
    return x.new_empty(num_classes * k * (2 * d + 1) + 2 * num_classes + 1, dtype=_at_least_float32(x))


def _fake_logits_sums(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    counts = logits.new_empty((2, logits.shape[1]), dtype=torch.int64)
    return counts, logits.new_empty(2, dtype=_at_least_float32(logits))


def _fake_tables(x: Tensor, scales: int, num_classes: int, k: int, d: int) -> Tensor:
    dtype = _at_least_float32(x)
    return x.new_empty(2 * num_classes * k * d + scales // dtype.itemsize, dtype=dtype)


def _fake_gradients(x: Tensor, logits: Tensor | None, *rest: Any) -> list[Tensor]:
    inputs = (logits, x if rest[7] else None)
    return [fake_gradient(one) for one in inputs if one is not None]


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
