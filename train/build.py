"""What a run is made of, built from its settings in this order: data, model, batches."""

import dataclasses
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.checkpoint import State
from train.data import Request, Splits, load_data
from train.data.decoded import uniform_side
from train.data.loading import TrainSteps, evaluation_batches, train_batches
from train.errors import UserError
from train.finetune import check_parents, load_parent, run_of_weights
from train.model import FaceClassifier, build_model
from train.ranks import Ranks
from train.resume import check_same_data
from train.run_folder import check_run_folder
from train.settings import Settings, flag
from train.speed import Trial, autotune, keep_freed_memory, resolve_speed
from train.transforms import SMALL, BatchAugmentation, Preprocessing
from train.weights import load_weights


@dataclass(frozen=True)
class Network:
    """A model on its device, in its memory layout; what was measured to choose that and the dtype."""

    model: FaceClassifier
    preprocessing: Preprocessing
    memory_format: torch.memory_format
    trials: list[Trial]
    keeps_freed_memory: bool
    parent: dict[str, Any] | None  # where --init-from or --weights took the weights from


def resolve_run(settings: Settings, ranks: Ranks, device: torch.device, state: State | None) -> Settings:
    """The settings with a run folder, a device, a number of workers and a place of augmentation instead of "auto".

    Raises UserError where the run folder may not be written. A run that is not resumed may replace one that ended
    before its first checkpoint: `find_run` has looked.
    """
    data, out = settings.data, Path(settings.run.out)
    begins = [flag(name) for name in ("pretrained", "weights", "init_from") if getattr(settings.model, name)]
    if len(begins) > 1:
        raise UserError(f"{' and '.join(begins)}: expected one of them, since each gives the initial weights")
    if ranks.is_first and not state:
        out = check_run_folder(settings.run.out, settings.run.overwrite or settings.run.resume == "auto")
    in_batches = device.type == "cuda" or data.image_size <= SMALL
    augment = ("batch" if in_batches else "loading") if data.augment == "auto" else data.augment
    cores = torch.multiprocessing.cpu_count() // ranks.local_world
    default_workers = max(1, min(8, cores)) if device.type == "cuda" else 0
    workers = data.workers if data.workers >= 0 else default_workers
    return settings.replace({"out": str(out), "device": device.type, "workers": workers, "augment": augment})


def build_data(settings: Settings, state: State | None) -> Splits:
    """The splits. Raises UserError where they are not those that a resumed run began with, or mix with a parent's."""
    data = load_data(settings.data.data, Request.of(settings.values()))
    if state:
        check_same_data(state, data)
    elif run := settings.model.init_from or run_of_weights(settings.model.weights):
        check_parents(data, settings.data.data, run)
    return data


def build_network(
    settings: Settings, class_names: Sequence[str], ranks: Ranks, device: torch.device, state: State | None
) -> tuple[Network, Settings]:
    """The model with weights drawn by the run's seed, and the settings with a dtype and a layout instead of "auto"."""
    random.seed(settings.run.seed)
    np.random.seed(settings.run.seed)
    torch.manual_seed(settings.run.seed)
    # A checkpoint's weights take the place of pretrained ones.
    architecture = dataclasses.replace(settings.model, pretrained=settings.model.pretrained and not state)
    model, preprocessing = build_model(architecture, len(class_names), settings.data.image_size)
    parent = state.get("parent") if state else None  # a checkpoint of an earlier version has none
    if settings.model.weights and not state:
        parent = load_weights(model.backbone, settings.model.weights, settings.model.weights_by_order)
    if settings.model.init_from and not state:
        parent = load_parent(model, class_names, settings.model.init_from)
    if settings.model.freeze == "backbone":
        model.freeze_backbone()
        if not (settings.model.pretrained or parent):
            print(
                "note: --freeze backbone without --init-from, --weights or --pretrained: its weights stay random",
                flush=True,
            )
    model.to(device)
    keeps_freed_memory = device.type == "cpu" and keep_freed_memory()
    size, batch = settings.data.image_size, settings.data.batch_size
    trials = ranks.broadcast_from_first(autotune(model, settings.speed, size, batch, device))
    settings = dataclasses.replace(settings, speed=resolve_speed(settings.speed, trials))
    memory_format = torch.channels_last if settings.speed.channels_last == "yes" else torch.contiguous_format
    model.to(memory_format=memory_format)
    return Network(model, preprocessing, memory_format, trials, keeps_freed_memory, parent), settings


def build_batches(
    settings: Settings, data: Splits, network: Network, ranks: Ranks, device: torch.device
) -> tuple[TrainSteps, Iterable[Any], Iterable[Any]]:
    """This rank's batches of the training, the validation and the test split."""
    options, preprocessing, pin = settings.data, network.preprocessing, device.type == "cuda"
    later = BatchAugmentation(preprocessing, options) if options.augment == "batch" else None
    train = train_batches(
        data.train,
        preprocessing.raw(uniform_side(data.train)) if later else preprocessing.training(options),
        options.batch_size,
        options.workers,
        pin,
        settings.run.seed,
        chunks=options.virtual_batch,
        ranks=ranks,
        device=device,
        memory_format=network.memory_format,
        order=options.sampler,
        augmentation=later,
    )
    plain = preprocessing.evaluation()
    validation, test = (
        evaluation_batches(part, plain, options.batch_size, options.workers, pin, ranks)
        for part in (data.validation, data.test)
    )
    return train, validation, test
