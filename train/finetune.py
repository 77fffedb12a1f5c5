"""`--init-from RUN`: a new run that begins with another one's weights, and names it."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.command import read_run_file
from train.data import Splits
from train.disk import expand
from train.errors import UserError
from train.model import FaceClassifier
from train.resume import describe_data
from train.run_data import is_same_place, load_run_data, sample_names
from train.run_folder import DESCRIPTION, WEIGHTS, Trained, find_checkpoint, load_trained
from train.settings import SYNTHETIC, Settings, flag

INHERITED = ("backbone", "k", "d")


def inherit_model(settings: Settings, chosen: Mapping[str, Any]) -> Settings:
    """The settings with the model of the run in --init-from and, unless the user chose one, its image size.

    Raises UserError where there is no such run, or the user chose another model.
    """
    parent = load_trained(expand(settings.model.init_from))
    inherited = {name: parent.description["model"][name] for name in INHERITED}
    for name, value in inherited.items():
        if chosen.get(name, value) != value:
            raise UserError(f"--init-from {settings.model.init_from} has {flag(name)} {value}, not {chosen[name]}")
    size = chosen.get("image_size", parent.preprocessing.image_size)
    return settings.replace(inherited | {"image_size": size, "pretrained": False})


def run_of_weights(weights: str) -> str:
    """The checkpoint folder that the file of --weights lies in; "" where it is none of a run's."""
    folder = expand(weights).parent
    return str(folder) if weights and (folder / DESCRIPTION).is_file() else ""


def check_parents(data: Splits, path: str, run: str) -> None:
    """UserError where `run`, or a run that it began with, was trained on images of the test or validation split here.

    `data` was loaded from `path`. Says so where the data there have changed since such a run, so that nobody can tell.
    """
    splits = () if path == SYNTHETIC else (data.validation, data.test)
    now = describe_data(data)["fingerprints"]
    while run and splits:
        try:
            folder = find_checkpoint(expand(run))
            stored, parent = read_run_file(folder, "settings.json"), load_trained(folder)
        except UserError:  # a parent's parent that is gone
            return
        before = parent.description.get("data", {}).get("fingerprints", {})
        if any(before.get(split.split) != now[split.split] for split in splits):
            if learnt := _trained_on(folder, parent, path):
                shared = {split.split: len(learnt & sample_names(split)) for split in splits}
                if counts := " and ".join(f"{count:,} {name}" for name, count in shared.items() if count):
                    raise UserError(
                        f"{run}, whose weights this run begins with, was trained on {counts} images of this run: give "
                        "the --seed, --validation-fraction and --protocol of that run, which draw the same splits"
                    )
            elif is_same_place(path, stored.get("settings", {}).get("data", {}).get("data", "")):
                print(
                    f"NOTE: {path} has changed since {run} was trained on it; whether it was trained on images that "
                    "are tested here cannot be told. A test/ folder of its own keeps them apart",
                    flush=True,
                )
        run = stored.get("parent", {}).get("run", "")


def _trained_on(folder: Path, parent: Trained, path: str) -> set[str]:
    """The names of the images below `path` that the parent was trained on; none where its data are not those there."""
    try:
        train, _, own = load_run_data(folder, parent, "train", data=path)
    except UserError:
        return set()
    return sample_names(train) if own else set()


def load_parent(model: FaceClassifier, class_names: Sequence[str], run: str) -> dict[str, Any]:
    """Load the parent's weights into the model; what settings.json says of it.

    The classifier is taken where the classes are the same, in the same order; else it stays as it was drawn.
    """
    folder = find_checkpoint(expand(run))
    parent = load_trained(folder)
    same = parent.class_names == tuple(class_names)
    weights = parent.model.state_dict()
    taken = {key: value for key, value in weights.items() if same or not key.startswith("head.classifier.")}
    model.load_state_dict(model.state_dict() | taken)
    epoch = parent.description["epoch"]
    new = "" if same else f"; a new classifier, as its classes were {', '.join(parent.class_names)}"
    print(f"weights of {folder} (epoch {epoch}){new}", flush=True)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16]
    return {"run": str(folder.absolute()), "epoch": epoch, "weights": digest, "classifier": same}
