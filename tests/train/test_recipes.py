"""Recipes: every one resolves and yields to the user; the resolved settings are the run's."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.train.conftest import even, write_folders
from train import ablate, evaluate, export, predict
from train.__main__ import main
from train.ablation.studies import ARMS
from train.data.__main__ import main as data_command
from train.errors import UserError
from train.options import parser
from train.recipe import FOLDER, NOT_IN_RECIPES, names, recipe_values, resolve
from train.report import describe_settings
from train.settings import Settings

DATASETS = ("fer2013", "ferplus", "rafdb", "affectnet")


def resolved(*arguments: str) -> Settings:
    return resolve(vars(parser().parse_args(list(arguments))))


def test_every_dataset_has_the_papers_and_a_modern_one() -> None:
    of_the_study = {f"fer2013-{kind}" for kind in ("small", "embeddings", "lite0", "resnet18", "xception")}
    both = {f"{data}-{kind}" for data in DATASETS for kind in ("paper", "modern")}
    assert set(names()) == {"synthetic"} | of_the_study | both


@pytest.mark.parametrize("name", names())
def test_a_recipe_resolves_and_says_how_it_is_run(name: str) -> None:
    settings = resolved("--data", "somewhere", "--recipe", name)
    flat = {key: value for group in settings.as_dict().values() for key, value in group.items()}
    for key, value in recipe_values(name).items():
        assert flat[key] == value
    assert flat["recipe"] == name
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# python -m train ")
    assert resolved("--data", "somewhere", "--recipe", name, "--epochs", "7").optimizer.epochs == 7


@pytest.mark.parametrize("data", DATASETS)
def test_the_papers_recipes_are_the_papers(data: str) -> None:
    """Section IV-B of the paper; the defaults are the same."""
    settings = resolved("--data", "somewhere", "--recipe", f"{data}-paper")
    plain = resolved("--data", "somewhere")
    assert settings.optimizer.epochs == (20 if data == "affectnet" else 60)
    assert settings.data.protocol == ("paper" if data == "fer2013" else "official")
    recipe_values_set, plain_values = settings.as_dict(), plain.as_dict()
    own = {"epochs", "protocol", "classes", "votes", "recipe"}
    for group in recipe_values_set:
        for key in recipe_values_set[group].keys() - own:
            assert recipe_values_set[group][key] == plain_values[group][key], key


def test_the_recipe_for_embeddings_is_the_studys_arm() -> None:
    small, embeddings = recipe_values("fer2013-small"), recipe_values("fer2013-embeddings")
    assert embeddings == small | ARMS["FD"]


def test_a_custom_recipe_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "lr: 0.02\nchannels_last: yes\nce_weight: [1, 2, 3]\n"
        "components: {md: 0.3, fd: 1}\nbetween_target: 0\nflip: true\n"
    )
    settings = resolved("--data", "somewhere", "--recipe", str(file), "--lr", "0.03")
    assert settings.optimizer.lr == 0.03
    assert settings.speed.channels_last == "yes"
    assert settings.loss.ce_weight == (1, 2, 3)
    assert settings.loss.components == {"md": 0.3, "fd": 1.0}
    assert settings.loss.between_target == 0
    assert settings.data.flip


@pytest.mark.parametrize(
    "text, message",
    [
        ("epoch: 3", "no setting is called 'epoch'; did you mean epochs?"),
        ("data: /x", "no setting is called 'data'"),
        ("lr: fast", "lr: could not convert string to float"),
        ("epochs: 0", "epochs: --epochs 0: expected at least 1"),
        ("flip: 3", "flip: expected bool, got 3"),
        ("lr: true", "lr: expected float, got True"),
        ("components:", "components: expected a value, got none"),
        ("cache: ~", "cache: expected a value, got none"),
        ("sampler: best", "sampler: expected one of shuffle, balanced, stream, got 'best'"),
        ("- a\n- b", "expected lines `setting: value`, got list"),
        ("k: 2\nd: 8\nk: 3", "not YAML: set twice: k"),
        ("a: [", "not YAML"),
        ("\x00", "not YAML"),
    ],
)
def test_bad_recipes_are_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        recipe_values(str(file))
    assert str(caught.value).startswith(f"--recipe {file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_as_an_editor_saves_it(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("# größer\r\nepochs: 3\r\n", encoding=encoding)
    assert recipe_values(str(file))["epochs"] == 3
    other = tmp_path / "other.yaml"
    other.write_text("# größer\nepochs: 3\n", encoding="cp1252")
    with pytest.raises(UserError, match="other.yaml: expected text in UTF-8, .* save it as UTF-8"):
        recipe_values(str(other))


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(
        UserError, match="--recipe none-such: no such file, nor one of affectnet-modern, affectnet-paper"
    ):
        recipe_values("none-such")


def test_settings_that_recipes_may_not_have() -> None:
    fields = {name for group in Settings().as_dict().values() for name in group}
    assert set(NOT_IN_RECIPES) < fields


def test_the_run_folder_has_what_was_resolved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The modern recipe at toy size: EMA, cosine, clipping, fused AdamW, early stopping and all."""
    data = write_folders(tmp_path / "data", even(4, 1, 1))
    smaller = ("--backbone", "test_resnet", "--k", "2", "--d", "8", "--image-size", "32", "--batch-size", "14")
    run = [
        "--data",
        str(data),
        "--recipe",
        "fer2013-modern",
        *smaller,
        "--epochs",
        "3",
        "--device",
        "cpu",
        "--patience",
        "1",
    ]
    assert main([*run, "--out", str(tmp_path / "run"), "--lr", "1e-9", "--validation-fraction", "0.2"]) == 0
    output = capsys.readouterr().out
    stored = json.loads((tmp_path / "run/settings.json").read_text())["settings"]
    resolved_values = {key: value for group in stored.values() for key, value in group.items()}
    assert resolved_values["recipe"] == "fer2013-modern"
    assert resolved_values["ema"] == 0.999
    assert resolved_values["amp"] in ("none", "bf16"), "what auto came to"
    assert resolved_values["augment"] == "batch"
    assert resolved_values["lr"] == 1e-9
    assert "images/s measured, forward and backward: " in output
    assert "no better epoch in 1: stopped early" in output, "a learning rate of nothing improves nothing"
    assert "recipe fer2013-modern: " in output
    assert "other than that: validation_fraction 0.2, " in output
    assert describe_settings(Settings()) == "recipe: the paper's", "nothing differs from it"


def test_the_page_on_training_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = (FOLDER.parents[1] / "docs/training.md").read_text()
    options = set(parser()._option_string_actions)
    for module in (ablate, evaluate, export, predict):
        options |= set(module.parser._option_string_actions)
    for command in ("check", "crop", "shard"):
        with pytest.raises(SystemExit):
            data_command([command, "--help"])
    options |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) | {"--max-restarts"}
    assert set(re.findall(r"--[a-z][a-z-]*", text)) <= options
    [block] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert yaml.safe_load(block).keys() <= {name for group in Settings().as_dict().values() for name in group}
    for name in names():
        assert name == "synthetic" or name.split("-")[0] in text
