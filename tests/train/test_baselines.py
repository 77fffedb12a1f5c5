"""Each baseline against its paper's definition, computed sample by sample: values, gradients, learned state."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adcorre import AdCorreLoss, VirtualBatch
from train.baselines import (
    WITH_EMBEDDINGS,
    Baseline,
    CenterLoss,
    IslandLoss,
    SeparateLoss,
    TripletLoss,
    effective_number_weights,
    logit_adjustment,
)

C, K, D = 4, 2, 3
COUNTS = torch.tensor([500, 90, 30, 4])


def random_batch(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """float64 logits, L2-normalized embeddings and targets; class 3 is absent."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, K, D, generator=generator, dtype=torch.float64)
    x = torch.nn.functional.normalize(x, dim=2)
    logits = torch.randn(n, C, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), x.requires_grad_(), torch.arange(n) % 3


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def center_term(x: Tensor, y: Tensor, centers: Tensor, _: Baseline) -> Tensor:
    return torch.stack([0.5 * (x[i] - centers[y[i]]).square().sum() for i in range(len(y))]).mean()


def island_term(x: Tensor, y: Tensor, centers: Tensor, loss: IslandLoss) -> Tensor:
    pairs = [cosine(centers[a], centers[b]) + 1 for a, b in itertools.permutations(range(C), 2)]
    return center_term(x, y, centers, loss) + loss.lambda_1 * torch.stack(pairs).sum()


def separate_term(x: Tensor, y: Tensor, centers: Tensor, loss: SeparateLoss) -> Tensor:
    own = [1 - cosine(x[i], centers[y[i]]) for i in range(len(y))]
    pairs = [1 + cosine(centers[a], centers[b]) for a, b in itertools.permutations(range(C), 2)]
    return torch.stack(own).mean() + loss.lambda_1 * torch.stack(pairs).mean()


def triplet_term(x: Tensor, y: Tensor, _: Tensor, __: Baseline) -> Tensor:
    """FaceNet's semi-hard triplets, squared distances on the unit sphere, margin 0.2."""
    unit = [row / row.square().sum().sqrt() for row in x]
    terms = []
    for a, p, n in itertools.permutations(range(len(y)), 3):
        if y[a] == y[p] != y[n]:
            gap = (unit[a] - unit[n]).square().sum() - (unit[a] - unit[p]).square().sum()
            if 0 < gap < 0.2:
                terms.append(0.2 - gap)
    assert terms
    return torch.stack(terms).mean()


TERMS = {"center": center_term, "island": island_term, "separate": separate_term, "triplet": triplet_term}


@pytest.mark.parametrize("name", WITH_EMBEDDINGS)
@pytest.mark.parametrize("weight", [None, 0.7])
def test_value_and_gradients(name: str, weight: float | None) -> None:
    logits, x, y = random_batch()
    loss = WITH_EMBEDDINGS[name](C, K, D, weight).double()
    centers = loss.centers.clone() if hasattr(loss, "centers") else torch.empty(0)
    output = loss(logits, x, y)
    term = TERMS[name](x.flatten(1), y, centers, loss)
    expected = cross_entropy(logits, y) + (type(loss).default_weight if weight is None else weight) * term
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert output.ce.item() == pytest.approx(cross_entropy(logits, y).item(), rel=1e-12)
    got = torch.autograd.grad(output.loss, (logits, x), retain_graph=True)
    expected_gradients = torch.autograd.grad(expected, (logits, x))
    for g, w in zip(got, expected_gradients, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-12)
    assert got[1].abs().max() > 1e-4
    assert float(output.fd) > 0  # reported beside it


@pytest.mark.parametrize("kind", [CenterLoss, IslandLoss])
def test_centres_move_as_in_the_papers(kind: type[CenterLoss]) -> None:
    logits, x, y = random_batch()
    loss = kind(C, K, D).double()
    loss.alpha = 0.3
    before = loss.centers.clone()
    loss(logits, x, y)
    flat = x.detach().flatten(1)
    for j in range(C):
        members = [i for i in range(len(y)) if y[i] == j]
        step = torch.zeros(K * D, dtype=torch.float64)
        for i in members:
            step += (before[j] - flat[i]) / (1 + len(members))
        if kind is IslandLoss:
            length = before.square().sum(1).sqrt()
            for k in set(range(C)) - {j}:
                slope = before[k] / (length[k] * length[j])
                slope = slope - (before[k] @ before[j]) / (length[k] * length[j] ** 3) * before[j]
                step += 10 / (C - 1) * slope
        torch.testing.assert_close(loss.centers[j], before[j] - 0.3 * step)
    loss.eval()
    still = loss.centers.clone()
    loss(logits, x, y)
    assert torch.equal(loss.centers, still)


def test_separate_centres_follow_their_gradient() -> None:
    logits, x, y = random_batch()
    loss = SeparateLoss(C, K, D).double()
    loss.alpha = 0.3
    before = loss.centers.clone().requires_grad_()
    flat = x.detach().flatten(1)
    own = [(1 - cosine(flat[i], before[y[i]])) / (1 + int((y == y[i]).sum())) for i in range(len(y))]
    pairs = [1 + cosine(before[a], before[b]) for a, b in itertools.permutations(range(C), 2)]
    (torch.stack(own).sum() + torch.stack(pairs).mean()).backward()
    loss(logits, x, y)
    assert before.grad is not None
    torch.testing.assert_close(loss.centers, before.detach() - 0.3 * before.grad)


def test_no_triplet_is_zero_with_a_graph() -> None:
    logits, x, _ = random_batch()
    output = TripletLoss(C, K, D)(logits, x, torch.zeros(12, dtype=torch.long))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(output.ce.item())
    assert x.grad is not None
    assert not x.grad.any()


def test_centres_are_checkpointed_and_not_optimised() -> None:
    logits, x, y = random_batch()
    first = IslandLoss(C, K, D)
    first(logits.float(), x.float(), y)
    second = IslandLoss(C, K, D)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.centers, second.centers)
    assert not list(first.parameters())


def test_the_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = CenterLoss(C, K, D), CenterLoss(C, K, D)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.centers, second.centers)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_number(beta: float) -> None:
    numbers = [sum(beta**j for j in range(n)) for n in COUNTS.tolist()]  # E_n = 1 + beta + ... + beta^(n - 1)
    scale = C / sum(1 / number for number in numbers)
    expected = [scale / number for number in numbers]
    weights = effective_number_weights(COUNTS, beta)
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)

    logits, x, y = random_batch()
    loss = AdCorreLoss(C, components=(), ce_weight=weights.double())(logits, x, y).loss
    log_p = [math.log(math.exp(row[t]) / sum(map(math.exp, row))) for row, t in zip(logits.tolist(), y, strict=True)]
    total = sum(-expected[t] * value for t, value in zip(y.tolist(), log_p, strict=True))
    assert loss.item() == pytest.approx(total / sum(expected[t] for t in y.tolist()), rel=1e-6)


@pytest.mark.parametrize("components", [(), ("fd", "md", "ed")])
def test_logit_adjustment(components: tuple[str, ...]) -> None:
    """Menon et al., Eq. 10: -log of pi_y^tau e^{f_y} / sum_c pi_c^tau e^{f_c}; Ad-Corre's terms as without it."""
    logits, x, y = random_batch()
    adjusted = AdCorreLoss(C, logit_adjustment=logit_adjustment(COUNTS, 1.5).double(), components=components)
    plain = AdCorreLoss(C, components=components)
    output, without = adjusted(logits, x, y), plain(logits, x, y)
    prior = (COUNTS / COUNTS.sum()).double() ** 1.5
    shares = prior * logits.exp()
    expected = -(shares[torch.arange(12), y] / shares.sum(1)).log().mean()
    assert output.ce.item() == pytest.approx(expected.item(), rel=1e-6)
    for name in ("fd", "md", "ed", "nfd"):
        assert getattr(output, name).item() == pytest.approx(getattr(without, name).item(), rel=1e-12)
    assert torch.equal(output.attention, without.attention)  # the predictions are those of the unadjusted logits
    assert torch.equal(adjusted.attention_map.counts, plain.attention_map.counts)
    terms = without.loss - cross_entropy(logits, y)
    expected_gradients = torch.autograd.grad(expected + terms, (logits, x), allow_unused=True)
    got = torch.autograd.grad(output.loss, (logits, x), allow_unused=True)
    torch.testing.assert_close(got[0], expected_gradients[0], rtol=1e-6, atol=1e-9)
    if components:
        torch.testing.assert_close(got[1], expected_gradients[1], rtol=1e-6, atol=1e-9)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(5, K * D)
        self.classifier = torch.nn.Linear(K * D, C)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(inputs)
        return self.classifier(x), x.view(-1, K, D)


def test_logit_adjustment_in_a_virtual_batch_is_exact() -> None:
    inputs, y = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)).double(), torch.arange(12) % 3
    gradients = []
    for chunk_size in (12, 5):
        torch.manual_seed(0)
        model = Model().double()
        loss = AdCorreLoss(C, logit_adjustment=logit_adjustment(COUNTS).double())
        VirtualBatch(model, loss, chunk_size=chunk_size)(inputs, y)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", WITH_EMBEDDINGS)
def test_other_baselines_refuse_virtual_batches_and_groups(name: str) -> None:
    kind = WITH_EMBEDDINGS[name]
    inputs, y = torch.randn(12, 5), torch.arange(12) % 3
    with pytest.raises(ValueError, match="defined on one batch"):
        VirtualBatch(Model(), kind(C, K, D), chunk_size=6)(inputs, y)
    with pytest.raises(ValueError, match="defined on one batch"):
        kind(C, K, D, process_group="world")
    model = Model()
    output = VirtualBatch(model, kind(C, K, D), chunk_size=12)(inputs, y)  # one chunk: an ordinary step
    assert output.loss.isfinite()
    assert model.embed.weight.grad is not None


@pytest.mark.parametrize("name", ["balanced_ce", "logit_adjusted_ce", *WITH_EMBEDDINGS])
def test_a_few_epochs_bring_the_loss_down(name: str) -> None:
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    inputs = torch.randn(60, 5) + 2 * torch.nn.functional.one_hot(y, 5)
    model = Model()
    loss_fn: AdCorreLoss
    if name == "balanced_ce":
        loss_fn = AdCorreLoss(C, components=(), ce_weight=effective_number_weights(COUNTS))
    elif name == "logit_adjusted_ce":
        loss_fn = AdCorreLoss(C, logit_adjustment=logit_adjustment(COUNTS), components=())
    else:
        loss_fn = WITH_EMBEDDINGS[name](C, K, D)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    step = VirtualBatch(model, loss_fn)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(float(step([(inputs, y)]).ce))
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
