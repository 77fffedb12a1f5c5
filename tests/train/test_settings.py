"""The command line: defaults are the paper's, sources override in order, errors are one message."""

import json

import pytest

from train.data.base import Request
from train.errors import UserError
from train.options import parser
from train.recipe import recipe_values, resolve
from train.report import describe_settings
from train.settings import Settings
from train.unused_options import unused_notes


def resolved(*arguments: str) -> Settings:
    return resolve(vars(parser().parse_args(list(arguments))))


def test_defaults_on_real_data_are_the_papers() -> None:
    settings = resolved("--data", "somewhere")
    data, model, loss, optimizer = settings.data, settings.model, settings.loss, settings.optimizer
    assert (data.image_size, data.batch_size, data.rotation) == (224, 60, 45)
    assert data.crop < 1
    assert data.contrast > 0
    assert data.brightness > 0
    assert (model.backbone, model.k, model.d, model.dropout, model.pretrained) == (
        "legacy_xception",
        7,
        256,
        0.5,
        False,
    )
    assert (loss.lambd, loss.window, loss.components, loss.lambd_warmup) == (0.5, 5, ("fd", "md", "ed"), 0)
    assert (loss.between_target, loss.mean_target, loss.embedding_target) == (-1, -1, -1)
    assert (loss.ce_weight, loss.label_smoothing) == ("none", 0)
    assert (optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.lr_decay) == (1e-3, 0.9, 0.999, 1e-5)
    assert optimizer.epochs == 60


def test_the_recipe_of_drawn_faces_yields_to_the_user() -> None:
    assert resolved() == resolved("--data", "synthetic")
    assert resolved().data.image_size == recipe_values("synthetic")["image_size"] < 224
    assert resolved("--image-size", "224").data.image_size == 224


def test_help_shows_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for group in Settings().as_dict().values():
        for name in group:
            assert f"--{name.replace('_', '-')}" in text
    assert text.count("(default: ") == sum(len(group) for group in Settings().as_dict().values())
    assert f"(default: 224; {recipe_values('synthetic')['image_size']} with --data synthetic)" in text
    assert "(default: runs/<date>-<time>)" in text


def test_values_are_parsed() -> None:
    settings = resolved(
        *("--between-target", "simplex", "--mean-target", "0", "--embedding-target", "-0.5"),
        *("--components", "nfd,ed", "--ce-weight", "1,2,3,4,5,6,7", "--flip", "--no-pretrained"),
    )
    loss = settings.loss
    assert (loss.between_target, loss.mean_target, loss.embedding_target) == ("simplex", 0, -0.5)
    assert (loss.components, loss.ce_weight) == (("nfd", "ed"), (1, 2, 3, 4, 5, 6, 7))
    assert settings.data.flip
    assert resolved("--components", "none").loss.components == ()
    assert resolved("--ce-weight", "balanced").loss.ce_weight == "balanced"
    assert "between_target simplex" in describe_settings(settings)
    assert "components nfd,ed" in describe_settings(settings)
    weighted = resolved("--components", "fd=1,md=0.3")
    assert weighted.loss.components == {"fd": 1.0, "md": 0.3}
    assert "components fd=1,md=0.3" in describe_settings(weighted)
    assert Settings.of(json.loads(json.dumps(weighted.as_dict()))) == weighted


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--batch-size", "1"], "--batch-size 1: expected at least 2"),
        (["--epochs", "0"], "--epochs 0: expected at least 1"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--lr", "nan"], "--lr nan: expected at least"),
        (["--lambd", "inf"], "--lambd inf: expected at least 0"),
        (["--dropout", "1"], "--dropout 1.0: expected 0 to 0.99"),
        (["--between-target", "1.5"], "expected 'simplex' or a number from -1 to 1, got '1.5'"),
        (["--mean-target", "complex"], "got 'complex'"),
        (["--embedding-target", "nan"], "got 'nan'"),
        (["--components", "fd,nfd"], "expected some of fd"),
        (["--components", "fd,fd"], "expected some of fd"),
        (["--components", "xd"], "expected some of fd"),
        (["--components", "fd=-1"], "expected some of fd"),
        (["--components", "fd=1,md=much"], "expected some of fd"),
        (["--ce-weight", "1,-1"], "expected none, balanced, effective or numbers"),
        (["--ce-weight", "0,0"], "expected none, balanced, effective or numbers"),
        (["--ce-weight", "even"], "expected none, balanced, effective or numbers"),
        (["--protocol", "other"], "invalid choice: 'other'"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--resume", ""], "--resume: expected a value, got an empty one"),
        (["--data", ""], "--data: expected a value, got an empty one"),
        (["--epoch", "3"], "unrecognized argument --epoch"),
        (["3"], "unrecognized arguments: 3"),
    ],
)
def test_bad_values_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments, notes",
    [
        (["--momentum", "0.5"], ["--momentum changes nothing with --optimizer adam"]),
        (["--optimizer", "sgd", "--momentum", "0.5"], []),
        (["--optimizer", "sgd", "--beta2", "0.9"], ["--beta2 changes nothing with --optimizer sgd"]),
        (["--schedule", "step", "--lr-drop", "0.5", "--lr-decay", "0"],
         ["--lr-decay changes nothing with --schedule step"]),
        (["--lr-drop-epochs", "3"], ["--lr-drop-epochs changes nothing with --schedule inverse"]),
        (["--objective", "center", "--components", "fd=0.1,md=1", "--lambd", "1", "--objective-weight", "2"],
         ["--lambd changes nothing with --objective center", "--components changes nothing with --objective center"]),
        (["--objective-weight", "2"], ["--objective-weight changes nothing with --objective adcorre"]),
        (["--components", "none", "--lambd", "1"], ["--lambd changes nothing with --components none"]),
        (["--components", "nfd", "--between-target", "0", "--window", "3", "--mean-target", "0"],
         ["--mean-target changes nothing without md", "--window changes nothing without fd"]),
        (["--class-weight", "0.5", "--window", "3"], ["--window changes nothing with --class-weight 0.5"]),
        (["--freeze", "backbone", "--lr-backbone", "1e-5"], ["--lr-backbone changes nothing with --freeze backbone"]),
        (["--weights-by-order"], ["--weights-by-order changes nothing without --weights"]),
        (["--lambd", "1", "--components", "fd=0.1", "--window", "3", "--between-target", "0", "--lr-decay", "0"], []),
    ],
)  # fmt: skip
def test_options_that_change_nothing_are_said(arguments: list[str], notes: list[str]) -> None:
    given = vars(parser().parse_args(["--data", "somewhere", *arguments]))
    unused = unused_notes(given, resolve(given))
    assert len(unused) == len(notes)
    assert all(line.startswith(f"note: {note}") for line, note in zip(unused, notes, strict=True)), unused


def test_lambda_warms_up_linearly() -> None:
    loss = resolved("--lambd", "0.4", "--lambd-warmup", "10").loss
    assert [loss.lambd_at(step) for step in (0, 5, 10, 100)] == [0, 0.2, 0.4, 0.4]
    assert resolved("--data", "somewhere", "--lambd", "0.4").loss.lambd_at(0) == 0.4


def test_a_request_has_the_settings_that_tell_how_data_are_read() -> None:
    settings = resolve({"data": "x", "image_size": 96, "limit": 5, "votes": "plurality", "seed": 3, "batch_size": 7})
    assert Request.of(settings.values()) == Request(image_size=96, limit=5, votes="plurality", seed=3)
