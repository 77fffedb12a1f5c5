"""`python -m train.ablate`: the comparison against SciPy, the studies, and existing runs."""

import csv
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from train.ablate import main
from train.ablation.comparison import difference, holm, spread
from train.ablation.complexity import PAPER, counts
from train.ablation.rows import append, digest
from train.ablation.runs import plan, train
from train.ablation.studies import STUDIES
from train.disk import write_json
from train.errors import Diverged
from train.model import build_model
from train.objective import build_objective
from train.ranks import ALONE
from train.recipe import resolve
from train.settings import ModelSettings, Settings
from train.speed import resolve_speed

TINY = ("--backbone", "test_resnet", "--d", "8", "--image-size", "32", "--batch-size", "16")
QUICK = (*TINY, "--device", "cpu", "--amp", "none", "--channels-last", "no", "--epochs", "1")


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_difference_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.6, 0.02, 5), rng.normal(0.58, 0.02, 5)
    actual = difference(dict(enumerate(one)), dict(enumerate(other)) | {9: 0.1})  # 9: of one setting only
    expected = stats.ttest_rel(one, other)
    assert actual.n == 5
    assert actual.mean == pytest.approx((one - other).mean())
    assert actual.p == pytest.approx(expected.pvalue)
    assert (actual.low, actual.high) == pytest.approx(tuple(expected.confidence_interval()))
    seeds = spread([0.1, 0.2, 0.6])
    assert (seeds.n, seeds.mean, seeds.deviation) == (3, pytest.approx(0.3), pytest.approx(np.sqrt(0.14 / 2)))


def test_nothing_is_tested_without_a_spread() -> None:
    assert math.isnan(spread([0.5]).deviation)
    for one, other in (({0: 0.6}, {0: 0.5}), ({0: 0.3, 1: 0.8}, {0: 0.2, 1: 0.7})):
        actual = difference(one, other)
        assert actual.mean == pytest.approx(0.1)
        assert math.isnan(actual.p)
        assert math.isnan(actual.low)
    assert difference({0: 0.6}, {1: 0.5}).n == 0


def test_holm() -> None:
    """Worked by hand: 3 x 0.01, then the larger of that and 2 x 0.02, then the larger of that and 0.03."""
    corrected = holm([0.03, math.nan, 0.01, 0.02])
    assert corrected[0] == pytest.approx(0.04)
    assert math.isnan(corrected[1])
    assert corrected[2:] == pytest.approx([0.03, 0.04])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_studies_are_what_they_say(fer_folders: Path) -> None:
    """Rows are compared with rows of the same study, and each has the loss that its name promises."""
    from train.data import Request, load_data

    train = load_data(str(fer_folders), Request()).train
    kinds = {}
    for name, study in STUDIES.items():
        names = [variant.name for variant in study.variants]
        assert len(set(names)) == len(names)
        for variant in study.variants:
            assert not variant.against or variant.against in names
            settings = resolve({"data": "x", **study.defaults, **variant.settings})
            loss = build_objective(settings.loss, settings.model, train, "cpu", ALONE)
            weighted = "" if loss.ce_weight is None else " weighted"
            weighted += "" if loss.logit_adjustment is None else " adjusted"
            kind = f"{type(loss).__name__}{weighted} {'+'.join(loss.components)} {loss.lambd} {settings.model.k}"
            kinds[name, variant.name] = kind
    assert kinds["table8", "CE"] == "AdCorreLoss  0.5 7"
    assert kinds["table8", "CE + FD"] == "AdCorreLoss fd 0.5 7"
    assert kinds["table9", "k = 10"] == "AdCorreLoss fd+md+ed 0.5 10"
    assert kinds["figure6", "λ = 0.01"] == "AdCorreLoss fd+md+ed 0.01 7"
    assert kinds["losses", "CE + naive FD"] == "AdCorreLoss nfd 0.5 7"
    assert kinds["losses", "class-balanced CE"] == "AdCorreLoss weighted  0.5 7"
    assert kinds["control", "logit-adjusted CE"] == "AdCorreLoss adjusted  0.5 7"
    assert kinds["control", "logit-adjusted CE + Ad-Corre"] == "AdCorreLoss adjusted fd+md+ed 0.5 7"
    assert kinds["control", "balanced CE + Ad-Corre"] == "AdCorreLoss weighted fd+md+ed 0.5 7"
    for name in ("Center", "Island", "Separate"):
        assert kinds["losses", f"CE + {name} loss"].startswith(f"{name}Loss")


def test_studies_share_runs(tmp_path: Path) -> None:
    planned = plan(list(STUDIES), {"data": "x"}, tmp_path, [0])
    folder = {key: runs[0].folder.parent.name for key, runs in planned.items()}
    assert folder["table8", "Ad-Corre"] == folder["figure6", "λ = 0.5"] == folder["table9", "k = 7"] == "base"
    assert folder["table8", "CE"] == folder["control", "CE"] == folder["losses", "CE"] == "components=none"
    assert folder["table10", "CE"] == "backbone=resnet50,components=none"
    assert folder["small", "clean: CE"] == folder["factors", "clean: CE"] == "fer2013-small,components=none"
    assert folder["regimes", "30 % noise: paper"] == "fer2013-small,label_noise=0.3"
    assert len({name for name in folder.values() if not name.startswith("fer2013-")}) == 22
    arms = {variant.arm for name in ("small", "factors") for variant in STUDIES[name].variants}
    assert len(arms) == 32  # each of its own settings
    assert len({name for (study, _), name in folder.items() if study in ("small", "factors")}) == 32


def test_the_digest_covers_options(tmp_path: Path) -> None:
    given = [{}, {"erasing": 0.5}, {"shift": 0.1}, {"scale": 0.1}, {"schedule": "step"}, {"schedule": "plateau"}]
    given += [{"schedule": "step", "lr_drop": 0.5}, {"schedule": "step", "lr_drop_epochs": 3}]
    planned = [plan(["figure6"], {"data": "x", **values}, tmp_path, [0])["figure6", "λ = 0.5"][0] for values in given]
    assert len({digest(run) for run in planned}) == len(given)


def fake_training(accuracy: Any) -> Any:
    """Writes a finished run as a real one is written: other processes read it. `accuracy` is of its settings."""

    def run(settings: Settings, chosen: Mapping[str, Any]) -> None:
        folder = Path(settings.run.out)
        folder.mkdir(parents=True, exist_ok=True)
        settings = replace(settings, speed=resolve_speed(settings.speed, ()))
        seen = {"train": f"{settings.data.data} {settings.data.label_noise}", "test": settings.data.data}
        data = {"layout": "made up", "fingerprints": seen}
        write_json(folder / "settings.json", {"settings": settings.as_dict(), "data": data})
        value = accuracy(settings)
        test = {"accuracy": value, "average_accuracy": value / 2, "nll": 1.0, "samples": 100}
        (folder / "epochs.csv").write_text("epoch,seconds\n1,2.5\n2,3.5\n")
        write_json(folder / "results.json", {"epoch": 1, "validation": {"accuracy": value}, "test": test})

    return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs that are not trained: accuracy 0.5 + λ / 10 + a hundredth of the seed, squared with λ = 1."""
    folders: list[Path] = []

    def accuracy(settings: Settings) -> float:
        folders.append(Path(settings.run.out))
        if settings.loss.lambd == 0.01 and settings.run.seed == 1:
            raise Diverged("the loss is no longer finite")
        seed = settings.run.seed / 100
        return 0.5 + settings.loss.lambd / 10 + (seed**2 if settings.loss.lambd == 1 else seed)

    monkeypatch.setattr("train.ablation.runs.train_run", fake_training(accuracy))
    return folders


def test_tables_of_made_up_runs(trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["figure6", "--data", "a", "--out", str(tmp_path), "--seed", "1", "--processes", "1"]
    assert main([*command, "--seeds", "3"]) == 0
    names = [f"{folder.parent.name}/{folder.name}" for folder in trained]
    assert names[:4] == ["base/seed-1", "lambd=0.01/seed-1", "lambd=0.1/seed-1", "lambd=1.0/seed-1"]  # seed by seed
    actual = {row["variant"]: row for row in rows(tmp_path / "figure6.csv")}
    assert float(actual["λ = 0.5"]["accuracy_mean"]) == pytest.approx(0.57)
    assert float(actual["λ = 0.5"]["accuracy_deviation"]) == pytest.approx(0.01)
    assert actual["λ = 0.5"]["accuracy_difference"] == ""
    assert actual["λ = 0.01"]["seeds"] == "2 3"  # the one that diverged is left out
    assert float(actual["λ = 0.1"]["accuracy_difference"]) == pytest.approx(-0.04)
    assert actual["λ = 0.1"]["accuracy_p"] == ""  # the same at every seed
    one, half = (np.array([level + s for s in seeds]) for level, seeds in ((0.6, SQUARES), (0.55, PLAIN)))
    expected = stats.ttest_rel(one, half)
    assert float(actual["λ = 1"]["accuracy_p"]) == pytest.approx(expected.pvalue, rel=1e-4)
    assert float(actual["λ = 1"]["accuracy_p_holm"]) == pytest.approx(expected.pvalue, rel=1e-4)  # the only one tested
    assert float(actual["λ = 1"]["accuracy_low"]) == pytest.approx(expected.confidence_interval().low, rel=1e-4)
    text = (tmp_path / "tables.md").read_text()
    assert "| λ = 0.5 | 3 | 57.00 ± 1.00 |  |  | 28.50 ± 0.50 |  |  | 63.36 |" in text
    assert "| λ = 0.01 | 2 |" in text
    assert "**Not counted**: lambd=0.01, seed 1: the loss is no longer finite" in text
    assert "made up, 100 test images" in text
    runs = rows(tmp_path / "runs.csv")
    assert len(runs) == 11
    assert {row["minutes"] for row in runs} == {"0.10"}
    assert len({row["digest"] for row in runs}) == 11
    assert runs[0]["command"] == "python -m train --data a --lambd 0.5 --seed 1 --amp none --channels-last no"
    assert (tmp_path / "figure6.png").stat().st_size > 5000

    assert "Difference: to λ = 0.5 at the same seeds" in text
    assert main(["control", *command[1:], "--seeds", "1"]) == 0
    text = (tmp_path / "tables.md").read_text()
    assert "| balanced CE + Ad-Corre | balanced CE | 1 | 56.00 | +0.00 | – |" in text

    trained.clear()
    capsys.readouterr()
    assert main([*command, "--seeds", "4"]) == 0  # one more seed: only its runs are trained
    assert [folder.name for folder in trained] == ["seed-4"] * 4
    assert "16 runs, 4 of them to train" in capsys.readouterr().out


def test_speed_settings_left_open_are_those_of_the_recipes_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = resolve({"recipe": "fer2013-lite0", "amp": "bf16", "channels_last": "no"})
    (tmp_path / "runs/first/seed-0").mkdir(parents=True)
    write_json(tmp_path / "runs/first/seed-0/settings.json", {"settings": measured.as_dict()})
    monkeypatch.setattr("train.ablation.runs.train_run", fake_training(lambda settings: 0.5))
    planned = plan(["finetune", "resnet18", "small"], {"data": "a"}, tmp_path, [0])
    used = []
    for study, variant in (("finetune", "CE"), ("resnet18", "CE"), ("small", "clean: CE")):
        run = planned[study, variant][0]
        train(run, tmp_path)
        result = run.result()
        assert result
        used.append(tuple(result.about["settings"]["speed"][name] for name in ("amp", "channels_last")))
        append(tmp_path / "rows.csv", run, result)
    assert used == [("bf16", "no"), ("none", "no"), ("none", "yes")]
    assert "--amp bf16 --channels-last no" in rows(tmp_path / "rows.csv")[0]["command"]
    assert "--amp" not in rows(tmp_path / "rows.csv")[2]["command"], "it is in the recipe"


def test_processes_side_by_side_measure_the_speed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, measured = fake_training(lambda settings: 0.5), tmp_path / "measured.txt"

    def measuring(settings: Settings, chosen: Mapping[str, Any]) -> None:
        if settings.speed.amp == "auto":
            with measured.open("a") as file:
                file.write(f"{settings.run.recipe}\n")
            time.sleep(1)
        quick(settings, chosen)

    monkeypatch.setattr("train.ablation.runs.train_run", measuring)
    command = ["finetune", "resnet18", "--seeds", "2", "--data", "a", "--out", str(tmp_path / "out")]
    assert main([*command, "--processes", "3"]) == 0
    assert sorted(measured.read_text().split()) == ["fer2013-lite0", "fer2013-resnet18"]


def test_regimes_differ_in_the_images_that_are_trained_on(trained: list[Path], tmp_path: Path) -> None:
    command = ["small", "regimes", "--data", "a", "--out", str(tmp_path), "--seeds", "1", "--processes", "1"]
    assert main(command) == 0
    assert len(trained) == 24


SQUARES = [0.01**2, 0.02**2, 0.03**2]
PLAIN = [0.01, 0.02, 0.03]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--lambd", "0.3"), "--lambd: figure6 itself varies it"),
        (("--lr", "0.1"), "base/seed-0 holds a run of other settings (--lr 0.001, not 0.1)"),
        (("--data", "b", "--seeds", "2", "--seed", "0"), "did not see the same images: choose another --out"),
        (("--seeds", "0"), "--seeds: expected at least 1, got 0"),
        (("table8", "--components", "fd"), "--components: table8 itself varies it"),
        (("losses", "--virtual-batch", "2"), "--objective center is defined on one batch"),
        (("table12",), "invalid choice: 'table12'"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...],
    message: str,
    trained: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["figure6", "--data", "a", "--out", str(tmp_path), "--seeds", "1"]) == 0
    if "b" in arguments:
        (tmp_path / "runs/base/seed-0/results.json").unlink()  # it is trained again, on the other data
        (tmp_path / "runs.csv").unlink()
    command = ["figure6", "--data", "a", "--out", str(tmp_path), "--seeds", "1"]
    assert main([*command[:1], *arguments[: arguments[0][0] != "-"], *command[1:], *_options(arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def _options(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return arguments if arguments[0].startswith("-") else arguments[1:]


def test_torchrun_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["table8", "--out", str(tmp_path)]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_table_11(tmp_path: Path) -> None:
    """Parameters are the paper's to the digit, multiply-adds those of PyTorch's counter."""
    backbone = build_model(ModelSettings(), 7, 32)[0].backbone
    for k, (parameters, _) in PAPER.items():
        assert counts(backbone, 32, k, k, 256)[0] == parameters
    assert counts(backbone, 224, 7, 0, 256)[1] == 4_550_831_072
    assert counts(backbone, 32, 7, 7, 256)[1] - counts(backbone, 32, 7, 0, 256)[1] == 2048 * 7 * 256 + 7 * 256 * 7
    assert main(["table11", "--backbone", "test_resnet", "--image-size", "32", "--d", "8", "--out", str(tmp_path)]) == 0
    assert [row["model"] for row in rows(tmp_path / "table11.csv")][:2] == ["test_resnet", "1 embedding vector"]
    assert "paper)" not in (tmp_path / "tables.md").read_text()


def test_real_runs_stopped_and_resumed(
    fer_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from train import loop

    command = ["table10", "--data", str(fer_folders), "--out", str(tmp_path), "--seeds", "1", *QUICK, "--k", "2"]
    command += ["--processes", "1", "--models"]
    evaluate_best = loop.Run.evaluate_best

    def stopped(self: loop.Run) -> None:
        if "components=none" not in self.settings.run.out:
            raise loop.Stopped(15, self.settings.run.out)
        evaluate_best(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "evaluate_best", stopped)
        with pytest.raises(SystemExit) as end:
            main(command)
    assert end.value.code == 128 + 15
    assert "so does the same command again" in capsys.readouterr().err
    [done] = rows(tmp_path / "runs.csv")
    assert done["arm"] == "CE"
    assert not (tmp_path / "runs/components=none/seed-0/checkpoints").exists()
    assert (tmp_path / "runs/components=none/seed-0/best/model.safetensors").exists()
    foreign = [tmp_path / "runs/base/seed-0" / name for name in ("checkpoints/notes.txt", "last/copy.safetensors")]
    for file in foreign:
        file.write_text("mine")
    assert main(command) == 0
    assert [file.read_text() for file in foreign] == ["mine"] * 2
    assert {file.name for file in (tmp_path / "runs/base/seed-0").glob("*/*.*")} & {"model.json", "notes.txt"}
    assert not list((tmp_path / "runs/base/seed-0/checkpoints").glob("*.pt"))
    out = capsys.readouterr().out
    assert "2 runs, 1 of them to train" in out
    assert len(out.splitlines()) < 20, "a line per run, and the table"
    assert "continuing after epoch 1" in (tmp_path / "runs/base/seed-0.log").read_text()
    assert (tmp_path / "runs/base/seed-0/best/model.safetensors").exists()
    first, second = rows(tmp_path / "runs.csv")
    assert first == done
    results = json.loads((tmp_path / "runs/base/seed-0/results.json").read_text())
    for metric in ("accuracy", "nll", "ece", "map_at_r"):
        assert float(second[f"test_{metric}"]) == pytest.approx(results["test"][metric], rel=1e-5)
    assert [row["seeds"] for row in rows(tmp_path / "table10.csv")] == ["0", "0"]


@pytest.mark.slow
def test_every_loss_trains(fer_folders: Path, tmp_path: Path) -> None:
    """A few epochs of each on generated images: cross-entropy falls."""
    learning = ("--epochs", "4", "--lr", "0.003", "--rotation", "0", "--crop", "1", "--dropout", "0", "--k", "2")
    command = ["losses", "control", "--data", str(fer_folders), "--out", str(tmp_path), "--seeds", "1"]
    assert main([*command, *QUICK, *learning]) == 0
    for folder in (tmp_path / "runs").iterdir():
        losses = [float(row["train_ce"]) for row in rows(folder / "seed-0/epochs.csv")]
        assert losses[-1] < 0.95 * losses[0], folder.name
    assert len(list((tmp_path / "runs").iterdir())) == 12


def test_a_time_budget_stops_runs_and_they_continue(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two runs end in time and get rows; the next two are stopped, and finished by the next call."""
    quick = fake_training(lambda settings: 0.5 + settings.loss.lambd / 10)

    def slow(settings: Settings, chosen: Mapping[str, Any]) -> None:
        if settings.loss.lambd in (0.1, 1.0):
            time.sleep(60)
        quick(settings, chosen)

    command = ["figure6", "--data", "a", "--out", str(tmp_path / "out"), "--seeds", "1", "--processes", "2"]
    command += ["--rows", str(tmp_path / "rows.csv")]
    with monkeypatch.context() as patch:
        patch.setattr("train.ablation.runs.train_run", slow)
        assert main([*command, "--minutes", "0.05"]) == 0
    assert "λ = 0.5, seed 0: validation 55.00 %, 0.0 min, about 0 min left" in capfd.readouterr().out
    done = rows(tmp_path / "rows.csv")
    assert sorted(row["arm"] for row in done) == ["λ = 0.01", "λ = 0.5"]
    monkeypatch.setattr("train.ablation.runs.train_run", quick)
    assert main(command) == 0
    assert "4 runs, 2 of them to train" in capfd.readouterr().out
    again = rows(tmp_path / "rows.csv")
    assert again[:2] == done
    assert {row["arm"]: float(row["test_accuracy"]) for row in again} == pytest.approx(
        {"λ = 0.5": 0.55, "λ = 0.01": 0.501, "λ = 0.1": 0.51, "λ = 1": 0.6}
    )
    whole = (tmp_path / "rows.csv").read_bytes()
    (tmp_path / "rows.csv").write_bytes(whole[: whole.rindex(b",")])  # the disk was full, or the process was killed
    assert main(command) == 0
    assert "4 runs, 1 of them to train" in capfd.readouterr().out
    assert [row for row in rows(tmp_path / "rows.csv") if None not in row.values()] == again
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert main(command) == 2
    assert "expected the columns study, regime" in capfd.readouterr().err
