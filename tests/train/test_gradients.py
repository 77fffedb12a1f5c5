"""The gradients of single terms that --log-gradients logs."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from adcorre import AdCorreLoss, EmbeddingSpace
from adcorre.reference import reference_terms
from tests.train.test_command import QUICK, rows
from train.__main__ import main
from train.gradients import GradientMeter

C = 5


@pytest.mark.parametrize("naive", [False, True])
def test_against_autograd_of_each_term(naive: bool) -> None:
    torch.manual_seed(0)
    head, targets = EmbeddingSpace(12, C, k=3, d=6, dropout=0.0).double(), torch.arange(20) % C
    weight, adjustment = torch.rand(C, dtype=torch.float64), torch.rand(C, dtype=torch.float64)
    loss_fn = AdCorreLoss(
        C,
        components={"nfd" if naive else "fd": 0.3, "md": 1.0},
        mean_target=0.2,
        ce_weight=weight,
        logit_adjustment=adjustment,
        label_smoothing=0.1,
    )
    meter = GradientMeter(loss_fn)
    logits, embeddings = head(torch.randn(20, 12, dtype=torch.float64))
    meter.measure_next()
    output = loss_fn(logits, embeddings, targets)
    output.loss.backward()
    assert not loss_fn._forward_hooks

    x = embeddings.detach().requires_grad_()
    attention = torch.full((C,), 0.5, dtype=torch.float64) if naive else output.attention
    terms = reference_terms(x, targets, attention, mean_target=0.2)[:3]
    again = head.classifier(x.flatten(1)) + adjustment
    cross_entropy = F.cross_entropy(again, targets, weight, label_smoothing=0.1)
    ce, *others = (torch.autograd.grad(value, x, retain_graph=True)[0].flatten() for value in (cross_entropy, *terms))
    expected = {"gradient_ce": ce.norm()}
    for name, gradient in zip(("nfd" if naive else "fd", "md", "ed"), others, strict=True):
        expected[f"gradient_{name}"] = gradient.norm()
        expected[f"cosine_{name}"] = gradient @ ce / (gradient.norm() * ce.norm())
    assert meter.figures == pytest.approx({key: float(value) for key, value in expected.items()}, rel=1e-9)


def test_the_log_has_them_and_the_weights_are_the_same(fer_folders: Path, tmp_path: Path) -> None:
    run = ("--data", str(fer_folders), *QUICK, "--log-every", "2")
    assert main([*run, "--out", str(tmp_path / "plain")]) == 0
    assert main([*run, "--out", str(tmp_path / "logged"), "--log-gradients"]) == 0
    plain, logged = (rows(tmp_path / name / "steps.csv") for name in ("plain", "logged"))
    added = ["gradient_ce", "gradient_fd", "gradient_md", "gradient_ed", "cosine_fd", "cosine_md", "cosine_ed"]
    assert [key for key in logged[0] if key not in plain[0]] == added
    assert all(float(row[key]) > 0 for row in logged for key in added if key.startswith("gradient"))
    assert all(-1 <= float(row[key]) <= 1 for row in logged for key in added if key.startswith("cosine"))
    weights = [(tmp_path / name / "last/model.safetensors").read_bytes() for name in ("plain", "logged")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "options, message",
    [
        (("--virtual-batch", "2"), "measures one batch of one process"),
        (("--objective", "center"), "is for --objective adcorre, not center"),
        (("--compile",), "which --compile hides"),
    ],
)
def test_unsupported_settings_raise_an_error(
    options: tuple[str, ...], message: str, fer_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(fer_folders), "--out", str(tmp_path / "run"), "--log-gradients", *options]) == 2
    assert message in capsys.readouterr().err
