"""The whole loss, Eq. 12: cross-entropy plus lambda times the terms."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adcorre import checks
from adcorre.attention import AdaptiveAttentionMap
from adcorre.functional import all_terms, resolve_options


class AdCorreOutput(NamedTuple):
    """What one call computes. `loss` carries the graph; the rest is for logs, detached, and costs no host sync.

    loss: (), Eq. 12. ce: () cross-entropy. fd, md, ed: () the terms, not multiplied by lambda, also those that are
    switched off. nfd: () the naive FD (Eq. 5): beside it a log tells what embeddings do from what the weights do.
    attention: (C,) Eq. 7's w as used in this call.
    """

    loss: Tensor
    ce: Tensor
    fd: Tensor
    md: Tensor
    ed: Tensor
    nfd: Tensor
    attention: Tensor


def adcorre_loss(
    logits: Tensor,
    embeddings: Tensor,
    targets: Tensor,
    attention: Tensor,
    *,
    lambd: float | Tensor = 0.5,
    components: Collection[str] = ("fd", "md", "ed"),
    between_target: checks.Target = -1,
    mean_target: checks.Target = -1,
    embedding_target: checks.Target = -1,
    ce_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    backend: str = "auto",
    validate: bool | None = None,
) -> AdCorreOutput:
    """Eq. 12 as a function, for who keeps Eq. 7's weights himself: `attention` (C,) is w. The rest as `AdCorreLoss`."""
    num_classes = attention.shape[0]
    checks.check_logits(logits, num_classes)
    checks.check_same_batch(logits, embeddings)
    checks.check_attention(attention, embeddings.device)
    checks.check_inputs(embeddings, targets, num_classes, ignore_index, validate)
    checks.check_ce_settings(ce_weight, label_smoothing, num_classes)
    components = checks.check_components(components)
    options = resolve_options(
        embeddings, num_classes, backend, between_target, mean_target, embedding_target, ignore_index
    )
    if "nfd" in components:
        attention = torch.full_like(attention, 0.5)
    fd, md, ed, nfd = all_terms(embeddings if components else embeddings.detach(), targets, attention, options)
    ce = _cross_entropy(logits, targets, ce_weight, label_smoothing, ignore_index)
    loss = ce
    if components:
        chosen = {"fd": fd, "nfd": fd, "md": md, "ed": ed}  # with w = 1/2, FD is the naive FD
        loss = ce + lambd * sum(chosen[name] for name in components)
    return AdCorreOutput(loss, ce.detach(), fd.detach(), md.detach(), ed.detach(), nfd, attention.to(fd.dtype))


def _cross_entropy(
    logits: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int
) -> Tensor:
    """Mean cross-entropy over the samples that take part: 0 if there are none, NaN if a label is bad.

    `cross_entropy` itself gets clean labels: on CUDA a bad one would end the process's use of the device. Rows that
    take no part are set to zero, or a NaN in one of them would reach its gradient.
    """
    takes_part, bad = checks.label_masks(targets, logits.shape[1], ignore_index)
    logits = torch.where(takes_part[:, None], logits.to(checks.at_least_float32(logits.dtype)), 0)
    labels = torch.where(takes_part, targets, ignore_index).long()
    weight = weight if weight is None else weight.to(logits.dtype)
    total = cross_entropy(
        logits, labels, weight, reduction="sum", label_smoothing=label_smoothing, ignore_index=ignore_index
    )
    per_sample = takes_part if weight is None else torch.where(takes_part, weight[labels.clamp(min=0)], 0)
    divisor = per_sample.sum().to(total.dtype)
    divisor = torch.where(divisor == 0, 1, divisor)
    return total / torch.where(bad.any(), torch.nan, divisor)


class AdCorreLoss(nn.Module):
    """CE + lambda (FD + MD + ED), Eq. 12, with the Adaptive Attention Map inside.

    Args:
        num_classes: C.
        lambd: the paper's lambda. A call can give its own, for a warm-up say.
        window: the paper's delta, in steps (see `AdaptiveAttentionMap`).
        components: which terms enter the loss: any of "fd", "md", "ed"; "nfd" (Eq. 5, w = 1/2) instead of "fd". None
            of them gives plain cross-entropy. Terms left out are still reported.
        between_target, mean_target, embedding_target: the correlations that FD, MD and ED ask for between classes,
            between class means and between the k vectors: -1 (the paper), "simplex", or a number in [-1, 1].
        ce_weight: (C,) class weights of the cross-entropy, as `torch.nn.functional.cross_entropy` has them.
        label_smoothing: of the cross-entropy, in [0, 1].
        ignore_index: samples with this label take no part in anything.
        backend: "auto", "triton", "torch" or "reference" (see `adcorre_terms`).
        validate: what becomes of a bad label (see `adcorre_terms`). One that nobody looked at makes the loss and
            every gradient NaN.

    Raises:
        ValueError, TypeError: settings out of range.
    """

    ce_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        lambd: float = 0.5,
        window: int = 5,
        components: Collection[str] = ("fd", "md", "ed"),
        between_target: checks.Target = -1,
        mean_target: checks.Target = -1,
        embedding_target: checks.Target = -1,
        ce_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        backend: str = "auto",
        validate: bool | None = None,
    ) -> None:
        super().__init__()
        self.attention_map = AdaptiveAttentionMap(num_classes, window, ignore_index=ignore_index)
        self.num_classes = num_classes
        self.lambd = lambd
        self.components = checks.check_components(components)
        checks.check_backend(backend)
        for name, target in (
            ("between_target", between_target),
            ("mean_target", mean_target),
            ("embedding_target", embedding_target),
        ):
            checks.resolve_target(name, target, num_classes)  # a wrong one is refused here, not in the first step
        self.between_target = between_target
        self.mean_target = mean_target
        self.embedding_target = embedding_target
        checks.check_ce_settings(ce_weight, label_smoothing, num_classes)
        self.register_buffer("ce_weight", ce_weight)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.backend = backend
        self.validate = validate

    def forward(
        self, logits: Tensor, embeddings: Tensor, targets: Tensor, *, lambd: float | Tensor | None = None
    ) -> AdCorreOutput:
        """One step. In training mode the batch's predictions enter the attention map before its weights are read.

        Args:
            logits: (n, C), any floating dtype; computed in float32 at least.
            embeddings: (n, k, d), or (n, d) for k = 1; before dropout.
            targets: (n,) class labels, any integer dtype.
            lambd: in place of the module's, for this call: a number or a 0-d tensor.

        Raises:
            ValueError, TypeError, IndexError: as `adcorre_terms`.
        """
        checks.check_logits(logits, self.num_classes)
        checks.check_same_batch(logits, embeddings)
        checks.check_inputs(embeddings, targets, self.num_classes, self.ignore_index, self.validate)
        attention = self.attention_map(logits, targets)
        return adcorre_loss(
            logits,
            embeddings,
            targets,
            attention,
            lambd=self.lambd if lambd is None else lambd,
            components=self.components,
            between_target=self.between_target,
            mean_target=self.mean_target,
            embedding_target=self.embedding_target,
            ce_weight=self.ce_weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            backend=self.backend,
            validate=False,  # looked at above, before the attention map counted the batch
        )

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, lambd={self.lambd}, components={self.components}"
