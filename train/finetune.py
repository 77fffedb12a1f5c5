"""`--init-from RUN`: a new run that begins with another one's weights, and names it."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from train.disk import expand
from train.errors import UserError
from train.model import FaceClassifier
from train.run_folder import WEIGHTS, find_checkpoint, load_trained
from train.settings import Settings, flag

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
