"""Schedules, optimizers, the objective's weights and the settings for speed."""

import json
import math
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from tests.train.test_evaluate import grey
from train.errors import UserError
from train.model import build_model
from train.objective import build_objective, check_objective
from train.optimization import build_optimizer, build_plateau, learning_rate, set_learning_rate
from train.ranks import ALONE, Ranks
from train.settings import LossSettings, ModelSettings, OptimizerSettings, Settings, SpeedSettings
from train.speed import Trial, autotune, keep_freed_memory, resolve_speed, select_algorithms

CPU = torch.device("cpu")


def test_the_papers_schedule() -> None:
    settings = OptimizerSettings(lr=0.1, lr_decay=0.5)
    assert [learning_rate(settings, step, 10) for step in (0, 1, 2, 8)] == pytest.approx([0.1, 0.1 / 1.5, 0.05, 0.02])


def test_warm_up_and_cosine() -> None:
    settings = OptimizerSettings(lr=0.4, schedule="cosine", epochs=4, warmup_epochs=1)
    rates = [learning_rate(settings, step, 10) for step in range(40)]
    assert rates[:10] == pytest.approx([0.04 * n for n in range(1, 11)])
    assert rates[10] == 0.4
    assert rates[25] == pytest.approx(0.2)
    assert rates[39] == pytest.approx(0.4 * (1 + math.cos(math.pi * 29 / 30)) / 2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(settings, 1000, 10) == 0
    part = OptimizerSettings(lr=0.4, warmup_epochs=0.25)
    assert learning_rate(part, 0, 10) == pytest.approx(0.2), "2.5 steps are 2"


def test_the_step_schedule() -> None:
    settings = OptimizerSettings(lr=0.4, schedule="step", lr_drop=0.5, lr_drop_epochs=2, warmup_epochs=0.2)
    rates = [learning_rate(settings, step, 10) for step in range(50)]
    assert rates == pytest.approx([0.2, 0.4, *[0.4] * 18, *[0.2] * 20, *[0.1] * 10])


def test_the_plateau_schedule() -> None:
    """Epochs of two steps: after two epochs without improvement the rate drops, scaled for each group."""
    settings = OptimizerSettings(
        lr=0.4, lr_backbone=0.04, schedule="plateau", lr_drop=0.5, lr_drop_epochs=2, warmup_epochs=0.5
    )
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    optimizer = build_optimizer(model, settings)
    plateau = build_plateau(optimizer, settings)
    rates = []
    for epoch, figure in enumerate((0.5, 0.6, 0.6, 0.55, 0.59, 0.7)):
        for step in (2 * epoch, 2 * epoch + 1):
            rates.append(set_learning_rate(optimizer, settings, step, 2))
            assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rates[-1] / 10, rates[-1]])
        plateau.step(figure)
    assert rates == pytest.approx([0.4] * 8 + [0.2] * 4)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.2), "0.59 and then a better figure"
    assert build_plateau(optimizer, OptimizerSettings()) is None


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_optimizers_and_what_decays(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = build_optimizer(model, OptimizerSettings(optimizer=name, weight_decay=0.1))
    assert all(group["fused"] for group in optimizer.param_groups)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model[0].weight)] == 0.1
    assert [decays[id(p)] for p in (model[0].bias, model[1].weight, model[1].bias)] == [0, 0, 0]
    model(torch.randn(5, 4)).sum().backward()
    before = model[0].weight.clone()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


def test_the_running_average_begins_quickly_and_gets_slow() -> None:
    """With decay warm-up, the average of weights that jump from 0 to 1 follows at once early, and slowly later."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = ModelEmaV3(model, 0.999, use_warmup=True)
    nn.init.ones_(model.weight)
    for step in range(3):
        ema.update(model, step=step)
    assert float(ema.module.weight) > 0.5
    nn.init.zeros_(model.weight)
    ema.update(model, step=10**6)
    assert float(ema.module.weight) > 0.5


def objective(**options: object) -> tuple[torch.Tensor | None, float]:
    settings = LossSettings(**options)  # type: ignore[arg-type]
    loss = build_objective(settings, ModelSettings(k=2, d=8), grey(10), CPU, ALONE)
    return loss.ce_weight, loss.label_smoothing


def test_class_weights_of_cross_entropy() -> None:
    weight, smoothing = objective(ce_weight="balanced", label_smoothing=0.1)
    assert smoothing == 0.1
    assert weight is not None
    assert weight.tolist() == pytest.approx([10 / 28, 10 / 21, 10 / 21, *[10 / 7] * 4]), "4, 3, 3 and no samples"
    assert objective()[0] is None
    given, _ = objective(ce_weight=(1.0, 2, 3, 4, 5, 6, 7))
    assert given is not None
    assert given.tolist() == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(UserError, match=r"--ce-weight: expected 7 numbers \(Neutral, .*\), got 2"):
        objective(ce_weight=(1.0, 2.0))


def test_objectives_that_exclude_each_other() -> None:
    settings = Settings().replace({"backend": "reference"})
    check_objective(settings, ALONE)
    with pytest.raises(UserError, match="--backend reference does not support several processes"):
        check_objective(settings, Ranks(0, 2))
    settings = Settings().replace({"objective": "center", "logit_adjustment": 1.0})
    with pytest.raises(UserError, match="--logit-adjustment is for --objective adcorre, not center"):
        check_objective(settings, ALONE)
    with pytest.raises(UserError, match="--objective center is defined on one batch of one process"):
        check_objective(settings.replace({"virtual_batch": 2}), ALONE)


# Speed


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelSettings("test_resnet", k=2, d=8), 7, 32)[0]


def test_measurements_are_cached_for_the_next_run(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADCORRE_CACHE", str(tmp_path))
    monkeypatch.setattr("train.speed.SHARE", 0.0)  # however busy the machine is
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    trials = autotune(model, SpeedSettings(), 32, 8, CPU)
    assert torch.initial_seed() == 3
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(3)).item()
    assert {(trial.amp, trial.channels_last) for trial in trials} == {
        (a, c) for a in ("none", "bf16") for c in (False, True)
    }
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    [folder] = tmp_path.iterdir()
    rows = json.loads((folder / "value.json").read_text())
    rows[0]["images_per_second"] = 12345.0
    (folder / "value.json").write_text(json.dumps(rows))
    assert autotune(model, SpeedSettings(), 32, 8, CPU)[0].images_per_second == 12345
    assert autotune(model, SpeedSettings(), 32, 4, CPU)[0].images_per_second != 12345, "another batch size"
    assert autotune(model, SpeedSettings(amp="none", channels_last="no"), 32, 8, CPU) == []
    assert autotune(model, SpeedSettings(deterministic=True), 32, 8, CPU) == []
    assert len(autotune(model, SpeedSettings(amp="bf16"), 32, 8, CPU)) == 2


def test_the_plain_setting_stays_unless_another_is_clearly_faster(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {("none", False): 1.0, ("none", True): 0.97, ("bf16", False): 2.0, ("bf16", True): 1.5}
    monkeypatch.setattr("train.speed._seconds", lambda model, images, amp, layout: times[amp, layout])
    monkeypatch.setenv("ADCORRE_CACHE", str(tmp_path / "a"))
    assert str(autotune(model, SpeedSettings(), 32, 8, CPU)[0]).startswith("float32 contiguous")
    times["bf16", True] = 0.5
    monkeypatch.setenv("ADCORRE_CACHE", str(tmp_path / "b"))
    assert str(autotune(model, SpeedSettings(), 32, 8, CPU)[0]).startswith("bf16 channels_last")


def test_the_fastest_trial_takes_the_place_of_auto() -> None:
    settings = resolve_speed(SpeedSettings(), [Trial("bf16", True, 2.0), Trial("none", False, 1.0)])
    assert (settings.amp, settings.channels_last) == ("bf16", "yes")
    settings = resolve_speed(SpeedSettings(amp="fp16"), [])
    assert (settings.amp, settings.channels_last) == ("fp16", "no")


def test_deterministic_algorithms_for_the_length_of_a_run() -> None:
    with select_algorithms(True, CPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_keeping_freed_memory_is_asked_of_glibc_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(keep_freed_memory(), bool)
    monkeypatch.setattr("sys.platform", "darwin")
    assert keep_freed_memory() is False
