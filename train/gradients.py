"""How strongly each term of the loss pulls at the embeddings, beside cross-entropy: `--log-gradients`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adcorre import AdCorreLoss, AdCorreOutput, adcorre_terms
from adcorre.checks import at_least_float32
from train.errors import UserError
from train.ranks import Ranks
from train.settings import Settings


def check_gradients(settings: Settings, ranks: Ranks) -> None:
    """UserError where the gradients of --log-gradients cannot be measured."""
    if not settings.run.log_gradients:
        return
    if settings.loss.objective != "adcorre":
        raise UserError(f"--log-gradients is for --objective adcorre, not {settings.loss.objective}")
    if settings.data.virtual_batch > 1 or ranks.world > 1:
        raise UserError("--log-gradients measures one batch of one process; leave out --virtual-batch and torchrun")
    if settings.speed.compile:
        raise UserError("--log-gradients needs the graph from embeddings to logits, which --compile hides")


class GradientMeter:
    """Measures single calls of a loss, which it does not change: `figures` are those of the last one measured."""

    def __init__(self, loss_fn: AdCorreLoss) -> None:
        self.loss_fn = loss_fn
        self.figures: dict[str, float] = {}

    def measure_next(self) -> None:
        self.hook = self.loss_fn.register_forward_hook(self._measure)

    def _measure(self, module: Any, arguments: tuple[Tensor, ...], output: AdCorreOutput) -> None:
        self.hook.remove()
        logits, embeddings, targets = arguments
        self.figures = term_gradients(self.loss_fn, logits, embeddings, targets, output.attention)


def term_gradients(
    loss_fn: AdCorreLoss, logits: Tensor, embeddings: Tensor, targets: Tensor, attention: Tensor
) -> dict[str, float]:
    """Norms of the gradients with respect to the embeddings, and their cosines with cross-entropy's.

    Of cross-entropy and each term before λ and the term's weight: gradient_ce, gradient_fd, ..., cosine_fd, ...; nfd
    in place of fd where the loss has that. The norm is the Frobenius norm over the whole batch.

    Args:
        logits: (n, C), with a graph to the embeddings that is kept.
        embeddings: (n, k, d).
        targets: (n,).
        attention: (C,), the step's weights w.
    """
    adjusted = logits if loss_fn.logit_adjustment is None else logits + loss_fn.logit_adjustment
    cross_entropy = F.cross_entropy(
        adjusted.to(at_least_float32(adjusted.dtype)),
        targets,
        loss_fn.ce_weight,
        ignore_index=loss_fn.ignore_index,
        label_smoothing=loss_fn.label_smoothing,
    )
    (with_ce,) = torch.autograd.grad(cross_entropy, embeddings, retain_graph=True)
    naive = "nfd" in loss_fn.components
    with torch.enable_grad(), torch.autocast(embeddings.device.type, enabled=False):
        x = embeddings.detach().requires_grad_()
        terms = adcorre_terms(
            x,
            targets,
            torch.full_like(attention, 0.5) if naive else attention.detach(),
            backend=loss_fn.backend,
            between_target=loss_fn.between_target,
            mean_target=loss_fn.mean_target,
            embedding_target=loss_fn.embedding_target,
            pairs=loss_fn.pairs,
            precision=loss_fn.precision,
            ignore_index=loss_fn.ignore_index,
        )
        names = ("nfd" if naive else "fd", "md", "ed")
        gradients = {
            name: torch.autograd.grad(term, x, retain_graph=True)[0] for name, term in zip(names, terms, strict=True)
        }
    flat = {name: gradient.flatten().double() for name, gradient in (("ce", with_ce), *gradients.items())}
    norms = {f"gradient_{name}": float(gradient.norm()) for name, gradient in flat.items()}
    cosines = {  # 0 where a vector is 0
        f"cosine_{name}": float(F.cosine_similarity(flat[name], flat["ce"], dim=0, eps=1e-30)) for name in gradients
    }
    return norms | cosines
