"""The three terms as the paper prints them, Eqs. 1 to 11: n x n matrices, any floating dtype, plain autograd.

Every other backend is tested against this one. It suits small problems: its memory grows with k n^2. It is the only
backend with a double backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcorre.checks import STATISTICS_DTYPE, label_masks


def normalize(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """Centre and normalize the last dimension (Eq. 1): z with COR(X, Y) = z_X . z_Y.

    A vector that is constant up to rounding, |x - mean| <= 32 eps `scale`, has no direction: z = 0, gradient 0.
    `scale` (the shape of x with a last dimension of 1) is |x| by default.
    """
    centred = x - x.mean(-1, keepdim=True)
    with torch.no_grad():
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True) if scale is None else scale
        length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
        constant = (length <= 32 * torch.finfo(x.dtype).eps * scale) & length.isfinite()
    centred = torch.where(constant, torch.ones_like(centred), centred)
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    # NaN on overflow: zero would hide it.
    length = torch.where(length.isinf(), torch.full_like(length, torch.nan), length)
    return torch.where(constant, torch.zeros_like(centred), centred / length)


def reference_terms(
    embeddings: Tensor,
    targets: Tensor,
    attention: Tensor,
    *,
    between_target: float = -1.0,
    mean_target: float = -1.0,
    embedding_target: float = -1.0,
    ignore_index: int = -100,
    pairs: str = "class",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """FD (Eq. 9), MD (Eq. 10), ED (Eq. 11) and the naive FD (Eq. 5), 0-d each.

    embeddings (n, k, d) floating; targets (n,) integers; attention (C,), Eq. 7's w. Half precision is computed in
    float32. A label that is neither in [0, C) nor `ignore_index` makes every term NaN.
    """
    x = embeddings.to(STATISTICS_DTYPE[embeddings.dtype])
    w = attention.to(x.dtype)
    n, k, _ = x.shape
    num_classes = w.shape[0]
    takes_part, bad = label_masks(targets, num_classes, ignore_index)
    x = x * torch.where(bad, torch.nan, 1.0).to(x.dtype)[:, None, None]  # a bad label's own gradient is NaN too
    x = torch.where((takes_part | bad)[:, None, None], x, torch.zeros_like(x))
    labels = torch.where(takes_part, targets, num_classes).long()  # class C is dropped from one_hot below
    one_hot = torch.nn.functional.one_hot(labels, num_classes + 1)[:, :num_classes].to(x.dtype)
    count = one_hot.sum(0) + torch.where(bad.any(), torch.nan, 0.0).to(x.dtype)
    total = count.sum().clamp(min=1)

    z = normalize(x)
    fd, nfd = _feature_discriminator(z, labels, one_hot, w, takes_part, between_target, pairs)
    md = _mean_discriminator(x, one_hot, count, mean_target)
    emb = z @ z.mT  # (n, k, k), EmbM of Eq. 11
    off_diagonal = 1 - torch.eye(k, dtype=x.dtype, device=x.device)
    ed = (takes_part[:, None, None] * off_diagonal * (emb - embedding_target).abs()).sum()
    return fd / (k * total**2), md + 0 * total, ed / (total * k**2), nfd / (k * total**2)


def _feature_discriminator(
    z: Tensor, labels: Tensor, one_hot: Tensor, w: Tensor, takes_part: Tensor, between_target: float, pairs: str
) -> tuple[Tensor, Tensor]:
    """The double sums of Eq. 9 and Eq. 5, before their division by k n^2."""
    n = z.shape[0]
    corm = torch.einsum("ild,jld->lij", z, z)
    both = takes_part[:, None] & takes_part[None]
    beta = both & ~torch.eye(n, dtype=torch.bool, device=z.device)  # Eq. 6
    same = labels[:, None] == labels[None]
    w_sample = one_hot @ w
    omega = w_sample[:, None] + w_sample[None]  # Eq. 8
    within = (beta & same) * (1 - corm).abs()
    between = (beta & ~same) * (between_target - corm)
    if pairs == "sample" or between_target in (-1.0, 1.0):  # Eq. 9 pair by pair
        deviation = within + between.abs()
        return (omega * deviation).sum(), deviation.sum()
    # Class level: the absolute value of the mean over the pairs of two classes.
    blocks = torch.einsum("ia,lij,jb->lab", one_hot, between, one_hot).abs()
    w_pair = w[:, None] + w[None]
    return (omega * within).sum() + (w_pair * blocks).sum(), within.sum() + blocks.sum()


def _mean_discriminator(x: Tensor, one_hot: Tensor, count: Tensor, target: float) -> Tensor:
    """Eq. 10. Pairs with an absent class count as 0; the divisor stays k C^2."""
    k = x.shape[1]
    num_classes = one_hot.shape[1]
    present = count > 0
    mean = torch.einsum("ia,ild->lad", one_hot, x) / count.clamp(min=1)[:, None]
    norms = torch.linalg.vector_norm(x.detach(), dim=-1)
    scale = torch.einsum("ia,il->la", one_hot, norms) / count.clamp(min=1)
    m = normalize(mean, scale[..., None])
    pairs = present[:, None] & present[None] & ~torch.eye(num_classes, dtype=torch.bool, device=x.device)
    return (pairs * (m @ m.mT - target).abs()).sum() / (k * num_classes**2)
