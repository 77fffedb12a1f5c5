"""A run on disk: settings, logs, checkpoints. Nothing is ever left half written.

settings.json               the resolved settings, versions and data
steps.csv, epochs.csv       the log; the same figures for TensorBoard in tensorboard/
validation/epoch-NNN.json   per-class figures and confusion matrix after each epoch
last/, best/                the model for use: model.safetensors, model.json
checkpoints/                the whole state of the run, to resume it
results.json, test-*        the best checkpoint on the validation and test splits
.adcorre.json               the mark by which a run folder is known

Files of other names are the user's, wherever they lie: nothing deletes them.
"""

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from train import checkpoint, owned_folder
from train.disk import expand, lock, read_json, read_rows, sync, sync_folder, write_error, write_json
from train.errors import UserError
from train.evaluation import Evaluation
from train.model import FaceClassifier, build_model
from train.settings import ModelSettings
from train.transforms import Preprocessing

FORMAT = 1
KIND = "run"
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
MODEL_FILES = (WEIGHTS, DESCRIPTION, f"{DESCRIPTION}.partial")
EVENTS_SUFFIX = ".adcorre"  # event files of others stay
EVENTS = f"tensorboard/events.out.tfevents.*{EVENTS_SUFFIX}"
REPLACED = ".replaced"  # the end of the name of a model that another one takes the place of
OLDER = "-confusion.csv", "-confusion.png", "-per-class.csv"  # of runs of earlier versions
# What a run writes, as patterns: what is deleted where it is replaced.
OUTPUTS = (
    *("settings.json", "settings.json.partial", "results.json", "results.json.partial", "steps.csv", "epochs.csv"),
    *("test-confusion.csv", "test-confusion.png", "test-per-class.csv", "failed.txt", EVENTS),
    *(f"validation/epoch-{'[0-9]' * 3}{end}" for end in (".json", ".json.partial", *OLDER)),
    *(f"{name}{end}/{file}" for name in ("last", "best") for end in ("", ".partial", REPLACED) for file in MODEL_FILES),
    *(f"{checkpoint.FOLDER}/{name}" for name in (checkpoint.NAME, checkpoint.PARTIAL)),
)
LOGS = {"steps": "step", "epochs": "epoch"}  # and the column that TensorBoard plots them over


@dataclass(frozen=True)
class Trained:
    """A model as its checkpoint describes it, in eval mode."""

    model: FaceClassifier
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    description: dict[str, Any]


def is_run(path: Path) -> bool:
    """Whether a run lies in the folder: by its mark, or, of a run before there were marks, by all that it has written.

    Those before have settings.json as this program writes it, and a checkpoint or a model.
    """
    if owned_folder.is_owned(path, KIND):
        return True
    try:
        about = read_json(path / "settings.json")
        by_this_program = (
            about["settings"].keys() >= {"data", "model", "loss", "run"} and {"data", "versions"} <= about.keys()
        )
    except (UserError, AttributeError, KeyError, TypeError):
        return False
    return by_this_program and bool(checkpoint.checkpoints(path) or (path / "last" / DESCRIPTION).is_file())


def check_run_folder(out: str, overwrite: bool) -> Path:
    """The run folder's path. Raises UserError where something is there already that may not be replaced."""
    path = expand(out) if out else Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"--out {path}: there is a file of that name")
    if owned_folder.is_vacant(path, ("settings.json.partial",)):
        return path
    if not is_run(path):
        raise UserError(
            f"--out {path} is not empty and holds no run (no mark {owned_folder.MARK}), so nothing was changed: "
            "choose a new or an empty folder"
        )
    if not overwrite:
        raise UserError(f"--out {path} is not empty: choose another folder, or replace the run in it by --overwrite")
    return path


class RunFolder:
    """A run folder that this process alone writes to."""

    def __init__(self, path: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        """Make the folder at `path`, without the files of an earlier run. Raises the errors of `check_run_folder`."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.path = path
            self._lock_folder()
            # Again: while the data were loaded, another run may have ended there.
            check_run_folder(str(path), overwrite)
            if is_run(path):
                owned_folder.clear(path, OUTPUTS)
            owned_folder.mark(path, KIND)
            write_json(path / "settings.json", settings)
        except OSError as error:
            raise UserError(f"--out {path}: cannot write the folder: {error}") from error
        self._open()

    @classmethod
    def reopen(cls, path: Path, settings: Mapping[str, Any], lengths: Mapping[str, int]) -> "RunFolder":
        """The folder of a run that goes on from a checkpoint: its logs cut back to the lengths of then, in bytes."""
        self = cls.__new__(cls)
        self.path = path
        if not is_run(path) and (path / "settings.json").exists():
            raise UserError(
                f"--resume {path}: settings.json there is of no run, so nothing was touched: "
                f"resume in a folder that has {checkpoint.FOLDER}/ alone"
            )
        self._lock_folder()
        owned_folder.mark(path, KIND)
        for name, length in lengths.items():
            file = path / f"{name}.csv"
            size = file.stat().st_size if file.exists() else 0
            if size < length:
                print(f"{file} is shorter than it was at the checkpoint: some of its rows are lost", flush=True)
            elif size:
                os.truncate(file, length)
        file = path / "settings.json"
        before = read_json(file) if file.is_file() else {}
        write_json(file, {**settings, "started": before.get("started", settings["started"])})
        self._open()
        return self

    def _open(self) -> None:
        """TensorBoard's files cannot be cut back, so they are always made from the logs."""
        from torch.utils.tensorboard import SummaryWriter  # here: it takes long to import

        (self.path / "validation").mkdir(exist_ok=True)
        owned_folder.clear(self.path, (EVENTS,))
        self._board = SummaryWriter(self.path / "tensorboard", filename_suffix=EVENTS_SUFFIX)
        for name, over in LOGS.items():
            file = self.path / f"{name}.csv"
            if file.exists() and not file.stat().st_size:
                file.unlink()
            elif file.exists():
                for row in read_rows(file):
                    self._plot(name, int(row[over]), {key: float(value) for key, value in row.items()})
        self._board.flush()

    def _lock_folder(self) -> None:
        """A lock that ends with the process, and that its children do not inherit."""
        for link in (self.path / name for name in ("last", "best")):
            if link.is_symlink():  # its target is the user's; `save` replaces the folder
                raise UserError(f"{link} is a link, and a run replaces this folder whole: remove the link first")
        try:
            self._lock = lock(self.path, owned_folder.LOCK)
        except BlockingIOError as error:
            raise UserError(f"{self.path}: another process is training in this folder") from error

    def log(self, name: str, step: int, figures: Mapping[str, float | int]) -> None:
        """Append a row to `name`.csv and to TensorBoard. The first row decides the columns."""
        file = self.path / f"{name}.csv"
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines)
            if new:
                writer.writerow(figures)
            writer.writerow(figures.values())
        self._plot(name, step, figures)
        self._board.flush()

    def _plot(self, name: str, step: int, figures: Mapping[str, float | int]) -> None:
        for key, value in figures.items():
            self._board.add_scalar(f"{name}/{key}", value, step)

    def lengths(self) -> dict[str, int]:
        """Of the logs, in bytes, all of which are on disk."""
        result = {}
        for name in LOGS:
            file = self.path / f"{name}.csv"
            if file.exists():
                sync(file)
            result[name] = file.stat().st_size if file.exists() else 0
        return result

    def write_validation(self, epoch: int, evaluation: Evaluation) -> None:
        content = evaluation.as_dict() | {"confusion": evaluation.confusion.tolist()}
        write_json(self.path / "validation" / f"epoch-{epoch:03d}.json", content)

    def write_results(self, results: Mapping[str, Any], test: Evaluation) -> None:
        from train.analysis.pictures import draw_confusion  # here: matplotlib is needed for nothing else

        test.write_tables(self.path / "test-confusion.csv", self.path / "test-per-class.csv")
        title = f"test, epoch {results['epoch']}"
        draw_confusion(self.path / "test-confusion.png", test.confusion, test.class_names, title)
        write_json(self.path / "results.json", results)

    def save(self, name: str, model: nn.Module, description: Mapping[str, Any], same_as: str = "") -> None:
        """Write the model `name`, replacing an earlier one only once all of it is on disk.

        The weights are a hard link to those of the model `same_as`, if any: no file of a run is changed in place.
        What else lies in its folder, an evaluation say, stays there.
        """
        partial, target, old = (self.path / f"{name}{end}" for end in (".partial", "", REPLACED))
        owned_folder.clear(self.path, (f"{partial.name}/{file}" for file in MODEL_FILES))
        partial.mkdir(exist_ok=True)
        try:
            if not (same_as and _link(self.path / same_as / WEIGHTS, partial / WEIGHTS)):
                save_file(_weights(model), partial / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise write_error(error) from error
        write_json(partial / DESCRIPTION, {"format": FORMAT, **description})
        sync(partial / WEIGHTS)
        if old.is_dir():  # killed between the two renames, or before the end
            _move_user_files(old, target if target.is_dir() else partial)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        sync_folder(self.path)
        if old.is_dir():
            _move_user_files(old, target)

    def saved_epoch(self, name: str) -> int:
        """The epoch of the model of that name; 0 if there is none."""
        try:
            return int(read_json(find_checkpoint(self.path, name) / DESCRIPTION)["epoch"])
        except UserError:
            return 0

    def close(self) -> None:
        self._board.close()
        self._lock.close()


def find_checkpoint(path: Path, name: str = "best") -> Path:
    """The checkpoint folder at `path`, or the one called `name` in the run folder at `path`."""
    for folder in (path, path / name, path / f"{name}{REPLACED}"):  # the last: killed between the renames of `save`
        if (folder / DESCRIPTION).is_file():
            return folder
    raise UserError(f"{path}: no checkpoint there (looked for {DESCRIPTION} and {name}/{DESCRIPTION})")


def load_trained(path: Path, device: torch.device | str = "cpu", name: str = "best") -> Trained:
    """Rebuild a model for inference from its checkpoint folder (or run folder) alone.

    Raises UserError where there is no checkpoint, or it is damaged or of another format.
    """
    folder = find_checkpoint(path, name)
    try:
        description = read_json(folder / DESCRIPTION)
        if description["format"] != FORMAT:
            raise UserError(f"{folder}: expected checkpoint format {FORMAT}, got {description['format']}")
        shape = description["preprocessing"]
        preprocessing = Preprocessing(shape["image_size"], tuple(shape["mean"]), tuple(shape["std"]))
        class_names = tuple(description["class_names"])
        settings = ModelSettings(**description["model"], pretrained=False)
        model, _ = build_model(settings, len(class_names), preprocessing.image_size)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except UserError:
        raise
    except Exception as error:  # json, safetensors and torch each have their own
        raise UserError(f"{folder}: cannot read the checkpoint: {error}") from error
    return Trained(model.eval().to(device), class_names, preprocessing, description)


def _link(source: Path, target: Path) -> bool:
    """Whether the target could be made a hard link, which some file systems have none of."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors on the CPU, each with memory of its own: safetensors stores none that share it."""
    result, seen = {}, set()
    for key, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        result[key] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return result


def _move_user_files(old: Path, target: Path) -> None:
    """Delete the model in the folder `old` and move what is the user's to `target`."""
    owned_folder.clear(old, MODEL_FILES)
    for entry in old.iterdir():
        place = target / entry.name
        while os.path.lexists(place):
            place = place.with_name(f"{place.name}.old")
        entry.rename(place)
    owned_folder.remove_if_empty(old)
