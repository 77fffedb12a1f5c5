"""The training loop: one run from settings to results."""

import os
import platform
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor

import adcorre
from adcorre import AdCorreLoss, VirtualBatch, adcorre_terms
from train.data import FaceDataset, Request, Splits, load_data
from train.data.loading import evaluation_batches, train_batches
from train.errors import UserError
from train.evaluation import Evaluation, evaluate
from train.model import build_model
from train.ranks import Ranks, quiet
from train.report import Totals, check_finite, log_epoch, log_steps, progress
from train.run_folder import RunFolder, free_folder, load_trained, write_json
from train.settings import LossSettings, ModelSettings, Settings, describe


def run(settings: Settings) -> None:
    """Train, choose the best checkpoint on the validation split, and evaluate it on the test split.

    Under torchrun this is one rank of several. Raises UserError for whatever the user can put right, a loss that is no
    longer finite included.
    """
    ranks = Ranks.of(os.environ)
    device = ranks.device(settings.run.device)
    several = ranks.world > 1 or settings.data.virtual_batch > 1
    if several and settings.loss.backend == "reference":
        raise UserError("--backend reference has no sums to add over processes or a virtual batch")
    with quiet(ranks), ranks.joined(device):
        train(settings, ranks, device)


def train(settings: Settings, ranks: Ranks, device: torch.device) -> None:
    """`run` of one rank."""
    out = free_folder(settings.run.out, settings.run.overwrite) if ranks.first else Path()
    workers = settings.data.workers if settings.data.workers >= 0 else default_workers(device, ranks)
    settings.run.out, settings.run.device, settings.data.workers = str(out), device.type, workers

    seed = settings.run.seed
    asked = settings.data
    data = load_data(
        asked.data, Request(asked.image_size, asked.protocol, asked.validation_fraction, asked.limit, seed)
    )
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    class_names = data.train.class_names
    model, preprocessing = build_model(settings.model, len(class_names), asked.image_size)
    model.to(device)
    loss_fn = build_loss(settings.loss, settings.model, data.train, device, ranks)
    betas = (settings.optimizer.beta1, settings.optimizer.beta2)
    optimizer = torch.optim.Adam(model.parameters(), settings.optimizer.lr, betas=betas, fused=True)
    decay = settings.optimizer.lr_decay
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + decay * step))

    augmented, plain = preprocessing.training(asked), preprocessing.evaluation()
    batch, pin = asked.batch_size, device.type == "cuda"
    steps = train_batches(
        data.train, augmented, batch, workers, pin, seed, chunks=asked.virtual_batch, ranks=ranks, device=device
    )
    validation_batches = evaluation_batches(data.validation, plain, batch, workers, pin, ranks)
    test_batches = evaluation_batches(data.test, plain, batch, workers, pin, ranks)

    folder = RunFolder(out) if ranks.first else None
    provenance = {"data": describe_data(data), "versions": versions(), "processes": ranks.world}
    if folder:
        write_json(out / "settings.json", {"settings": settings.as_dict()} | provenance)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{data.report}\n\n{describe(settings)}\n")
    print(f"{settings.model.backbone}: {parameters:,} parameters, on {device}; run folder {out}", flush=True)
    if ranks.world > 1:
        print(f"{ranks.world} processes: {steps.sampler.sizes[0]:,} images a step", flush=True)

    if not ranks.first:
        torch.manual_seed(seed + (ranks.rank << 32))  # augmentation and dropout of its own
    step_of = VirtualBatch(ranks.wrapped(model, device), loss_fn)
    best: Evaluation | None = None
    best_epoch = step = 0
    for epoch in range(1, settings.optimizer.epochs + 1):
        started = time.perf_counter()
        totals = Totals(device)
        model.train()
        bar = progress(steps, epoch, settings)
        for chunks, images in bar:
            optimizer.zero_grad(set_to_none=True)
            output = step_of(chunks, lambd=settings.loss.lambd_at(step))
            optimizer.step()
            totals.add(output, loss_fn.attention_map.latest(), images)
            step += 1
            if folder and step % settings.run.log_every == 0:
                log_steps(folder, bar, totals.read(), epoch, step, float(optimizer.param_groups[0]["lr"]), settings)
            scheduler.step()
        train_figures = totals.epoch()
        if folder:
            check_finite(train_figures, epoch, step, settings)

        ranks.broadcast(model, buffers_only=True)
        found = evaluate(model, validation_batches, class_names, device)
        better = best is None or getattr(found, settings.run.select) > getattr(best, settings.run.select)
        if better:
            best, best_epoch = found, epoch
        if not folder:
            continue
        description = provenance | {
            "model": {key: vars(settings.model)[key] for key in ("backbone", "k", "d", "dropout")},
            "class_names": list(class_names),
            "preprocessing": preprocessing.as_dict(),
            "epoch": epoch,
            "step": step,
            "validation": found.as_dict(),
        }
        state = {
            "optimizer": optimizer.state_dict(),
            "scheduler": {"last_epoch": scheduler.last_epoch},
            "loss": loss_fn.state_dict(),
            "epoch": epoch,
            "step": step,
            "best_epoch": best_epoch,
            "order": steps.generator.get_state(),
            "torch_random": torch.get_rng_state(),
        }
        folder.save("last", model, description, state)
        if better:
            folder.save("best", model, description)
        log_epoch(folder, epoch, step, time.perf_counter() - started, train_figures, found, loss_fn, better, settings)

    assert best is not None  # there is at least one epoch
    if folder:
        model = load_trained(out, device, "best").model
    ranks.broadcast(model)
    test = evaluate(model, test_batches, class_names, device)
    if folder:
        results = {
            "epoch": best_epoch,
            "select": settings.run.select,
            "validation": best.as_dict(),
            "test": test.as_dict(),
        }
        folder.write_results(results, test)
        folder.close()
    print(f"\nbest checkpoint: epoch {best_epoch}, chosen by validation {settings.run.select.replace('_', ' ')}")
    print(f"validation ({best.samples:,} images): {best.summary()}\ntest ({test.samples:,} images): {test.summary()}")
    print(f"\n{test.table()}\n\nwritten to {out}")


def build_loss(
    settings: LossSettings, model: ModelSettings, train: FaceDataset, device: torch.device, ranks: Ranks
) -> AdCorreLoss:
    classes = len(train.class_names)
    weight: Tensor | None = None
    if settings.ce_weight == "balanced":
        counts = torch.bincount(torch.from_numpy(train.labels), minlength=classes)
        weight = len(train) / (classes * counts.clamp(min=1).float())
    elif not isinstance(settings.ce_weight, str):
        if len(settings.ce_weight) != classes:
            names = ", ".join(train.class_names)
            raise UserError(f"--ce-weight: expected {classes} numbers ({names}), got {len(settings.ce_weight)}")
        weight = torch.tensor(settings.ce_weight)
    if settings.backend == "triton":  # whether it can run is otherwise found out in the first step
        try:
            probe = torch.zeros(2, model.k, model.d, device=device), torch.zeros(2, dtype=torch.long, device=device)
            adcorre_terms(*probe, torch.ones(classes, device=device), backend="triton")
        except ValueError as error:
            raise UserError(f"--backend triton: {error}") from error
    loss_fn = AdCorreLoss(
        classes,
        lambd=settings.lambd,
        window=settings.window,
        components=settings.components,
        between_target=settings.between_target,
        mean_target=settings.mean_target,
        embedding_target=settings.embedding_target,
        ce_weight=weight,
        label_smoothing=settings.label_smoothing,
        backend=settings.backend,
        process_group="world" if ranks.world > 1 else None,
    )
    return loss_fn.to(device)


def default_workers(device: torch.device, ranks: Ranks) -> int:
    cores = torch.multiprocessing.cpu_count() // ranks.local_world
    return max(1, min(8, cores)) if device.type == "cuda" else 0


def describe_data(data: Splits) -> dict[str, Any]:
    parts = {part.split: part for part in (data.train, data.validation, data.test)}
    return {
        "layout": data.layout,
        "images": {name: len(part) for name, part in parts.items()},
        "fingerprints": {name: part.fingerprint for name, part in parts.items()},
    }


def versions() -> dict[str, str]:
    packages = {package.__name__: package.__version__ for package in (adcorre, torch, torchvision, timm)}
    return packages | {"python": platform.python_version()}
