"""The training loop: one run from settings to results."""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from adcorre import VirtualBatch
from train.bars import bar as bar_of
from train.bars import wrap
from train.build import Network, build_batches, build_data, build_network, resolve_run
from train.checkpoint import State, keep_checkpoints, random_state, restore_random, write_checkpoint
from train.data import Splits
from train.entry import explain
from train.errors import Diverged, UserError
from train.evaluation import Evaluation, evaluate
from train.finetune import inherit_model
from train.gradients import GradientMeter, check_gradients
from train.objective import build_objective, check_objective
from train.optimization import build_optimizer, build_plateau, set_learning_rate, warmup_notes, warmup_steps
from train.ranks import Ranks, quiet
from train.report import (
    Log,
    Totals,
    check_finite,
    describe_network,
    describe_settings,
    describe_steps,
    next_commands,
    progress,
    show_figures,
)
from train.resume import (
    conditions,
    describe_data,
    differences,
    find_run,
    has_ended,
    load_resumed,
    newest_checkpoint_note,
    origin,
)
from train.run_folder import RunFolder, load_trained
from train.settings import Settings
from train.speed import DTYPES, select_algorithms
from train.stopping import Interrupted, Stopped, Watch


def run(settings: Settings, chosen: Mapping[str, Any]) -> None:
    """Train, choose the best checkpoint on the validation split, and evaluate it on the test split.

    Under torchrun this is one rank of several. `chosen` are the settings that the user named. Raises UserError for
    whatever the user can put right, a loss that is no longer finite included, and Stopped after a signal.
    """
    ranks = Ranks.of(os.environ)
    with quiet(ranks):
        state: State | None = None
        if settings.run.resume and (folder := find_run(settings)):
            settings, state = load_resumed(folder, chosen, ranks)
        elif settings.model.init_from:
            settings = inherit_model(settings, chosen)
        device = ranks.device(settings.run.device)
        check_objective(settings, ranks)
        check_gradients(settings, ranks)
        with ranks.process_group(device), select_algorithms(settings.speed.deterministic, device):
            if len(set(ranks.all_gather(state and (state["epoch"], state["step"])))) > 1:
                raise UserError("the processes see different checkpoints: the run folder has to be on a shared disk")
            if settings.speed.threads:
                torch.set_num_threads(settings.speed.threads)
            with Watch(ranks, settings.run.checkpoint_minutes) as watch:
                settings = resolve_run(settings, ranks, device, state)
                data = build_data(settings, state)
                network, settings = build_network(settings, data.train.class_names, ranks, device, state)
                loop = Run(settings, data, network, ranks, device, state, watch)
                try:
                    loop.train()
                except (OSError, RuntimeError) as error:
                    if message := explain(error):
                        raise UserError(f"{message}; {newest_checkpoint_note(Path(settings.run.out))}") from error
                    raise


class Run:
    """The loop over a run's data and model. `settings` have no "auto" left."""

    def __init__(
        self,
        settings: Settings,
        data: Splits,
        network: Network,
        ranks: Ranks,
        device: torch.device,
        state: State | None,
        watch: Watch,
    ) -> None:
        self.settings, self.ranks, self.device, self.watch = settings, ranks, device, watch
        self.parent = network.parent
        self.data, self.class_names = describe_data(data), data.train.class_names
        self.model, self.preprocessing = network.model, network.preprocessing
        self.loss_fn = build_objective(settings.loss, settings.model, data.train, device, ranks)
        self.gradients = GradientMeter(self.loss_fn)
        self.optimizer = build_optimizer(self.model, settings.optimizer)
        self.plateau = build_plateau(self.optimizer, settings.optimizer)
        decay = settings.optimizer.ema
        self.ema = ModelEmaV3(self.model, decay, use_warmup=True) if decay else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.speed.amp == "fp16")
        self.batches = build_batches(settings, data, network, ranks, device)
        self.steps = self.batches.train
        self.epoch, self.done, self.step = 1, 0, 0  # the epoch at hand, and the steps done in it and in all
        self.best_epoch, self.best_figure = 0, -1.0
        self.finished: dict[str, Any] = {}  # the description of the model after the last whole epoch
        self.totals = Totals(device)
        self.conditions = conditions(device)
        self.folder = self.open_folder(Path(settings.run.out), state)
        self.log = Log(self.folder, self.class_names, settings, self.loss_fn) if self.folder else None
        print(f"{wrap(data.report)}\n\n{describe_settings(settings)}")
        describe_network(network, settings, device)
        print(describe_steps(self.steps, settings, ranks), flush=True)
        for note in warmup_notes(settings, len(self.steps)):
            print(wrap(note), flush=True)
        if not ranks.is_first:
            torch.manual_seed(settings.run.seed + (ranks.rank << 32))  # dropout of its own
        if settings.speed.compile:
            self.model.compile()
        self.step_of = VirtualBatch(ranks.wrap_model(self.model, device), self.loss_fn)
        if state:
            self.restore(state)

    def open_folder(self, out: Path, state: State | None) -> RunFolder | None:
        if not self.ranks.is_first:
            return None
        about = {
            "settings": self.settings.as_dict(),
            "data": self.data,
            "versions": self.conditions,
            "processes": self.ranks.world,
            "started": origin(),
        } | ({"parent": self.parent} if self.parent else {})
        if state:
            return RunFolder.reopen(out, about, state["logs"])
        return RunFolder(out, about, self.settings.run.overwrite or self.settings.run.resume == "auto")

    @property
    def evaluated_model(self) -> nn.Module:
        """The weights that are evaluated and kept."""
        return self.ema.module if self.ema else self.model

    @property
    def current_epoch(self) -> int:
        """The epoch that the last step belongs to."""
        return self.epoch if self.done else self.epoch - 1

    @property
    def ended(self) -> bool:
        return has_ended(self.settings, self.epoch, self.best_epoch)

    def train(self) -> None:
        epochs, patience = self.settings.optimizer.epochs, self.settings.optimizer.patience
        results = Path(self.settings.run.out) / "results.json"
        if self.ranks.broadcast_from_first(self.ended and results.exists()):
            print(f"this run has ended: {results}")
            return
        self.watch.training = True
        while not self.ended:
            try:
                self.train_epoch()
            except Interrupted:
                self.stop()
        if self.epoch <= epochs:
            print(f"\nno better epoch in {patience}: stopped early", flush=True)
        try:
            self.evaluate_best()
        except Interrupted:  # nothing is lost: the checkpoint of the last epoch's end is there
            raise Stopped(self.watch.number, self.settings.run.out) from None

    def train_epoch(self) -> None:
        """The rest of the epoch at hand, its evaluation, and everything that is written after it."""
        settings, began = self.settings, time.perf_counter()
        self.steps.set_epoch(self.epoch, self.done)
        self.model.train()
        bar = progress(self.steps, self.epoch, self.done, settings)
        self.totals.start_clock()
        for chunks, images in bar:
            rate = self.train_step(chunks, images)
            if not bar.disable:
                show_figures(bar, self.totals)
            if self.log and self.step % settings.run.log_every == 0:
                self.log.steps(bar, self.totals, self.epoch, self.step, rate, self.gradients.figures)
            signal, due = self.watch.poll()
            every = settings.run.checkpoint_every
            if signal:
                self.stop()
            elif due or (every and self.step % every == 0):
                self.checkpoint()
        train_figures = self.totals.epoch()
        check_finite(train_figures, self.epoch, self.step, settings)

        for module in (self.model, self.ema.module) if self.ema else (self.model,):
            self.ranks.broadcast(module, buffers_only=True)
        evaluation = self.evaluate(self.evaluated_model, "validation", self.batches.validation)
        figure = getattr(evaluation, settings.run.select)
        better = figure > self.best_figure
        if better:
            self.best_epoch, self.best_figure = self.epoch, figure
        if self.plateau and self.step > warmup_steps(settings.optimizer, len(self.steps)):
            self.plateau.step(figure)
        if self.log:
            seconds = time.perf_counter() - began
            self.log.epoch(self.epoch, self.step, seconds, train_figures, evaluation, better)
        self.finished = self.description() | {"validation": evaluation.as_dict(), "summary": evaluation.summary()}
        self.epoch, self.done, self.totals = self.epoch + 1, 0, Totals(self.device)
        self.checkpoint()
        self.save_models()

    def train_step(self, chunks: Any, images: int) -> float:
        """An optimizer step over `images` samples on all ranks; the learning rate that it took."""
        optimizer, settings = self.optimizer, self.settings
        rate = set_learning_rate(optimizer, settings.optimizer, self.step, len(self.steps))
        optimizer.zero_grad(set_to_none=True)
        if settings.run.log_gradients and (self.step + 1) % settings.run.log_every == 0:
            self.gradients.measure_next()
        amp, scaler = settings.speed.amp, self.scaler if self.scaler.is_enabled() else None
        with torch.autocast(self.device.type, DTYPES[amp], enabled=amp != "none"):
            output = self.step_of(chunks, lambd=settings.loss.lambd_at(self.step), scaler=scaler)
        if settings.optimizer.clip:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.optimizer.clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.model, step=self.step)
        self.totals.add(output, self.loss_fn.attention_map.latest(), images)
        self.step, self.done = self.step + 1, self.done + 1
        return rate

    def evaluate(self, model: nn.Module, name: str, batches: Iterable[Any], retrieval: bool = False) -> Evaluation:
        shown = self.watch.interruptible(bar_of(batches, name))
        return evaluate(model, shown, self.class_names, self.device, self.ranks, retrieval=retrieval)

    def evaluate_best(self) -> None:
        """The best checkpoint on the test split."""
        folder, select = self.folder, self.settings.run.select
        trained = load_trained(folder.path, self.device, "best") if folder else None
        model = trained.model if trained else self.model
        self.ranks.broadcast(model)
        validated, test = (
            self.evaluate(model, name, batches, retrieval=True)
            for name, batches in (("validation", self.batches.validation), ("test", self.batches.test))
        )
        if not folder or not trained:
            return
        about = trained.description
        figures = validated.as_dict()
        validation = about["validation"] | {name: figures[name] for name in validated.retrieval}
        results = {"epoch": about["epoch"], "select": select, "validation": validation, "test": test.as_dict()}
        folder.write_results(results, test)
        folder.close()
        print(f"\nbest checkpoint: epoch {about['epoch']}, chosen by validation {select.replace('_', ' ')}")
        print(wrap(f"validation ({validation['samples']:,} images): {about['summary']}"))
        print(wrap(f"test ({test.samples:,} images): {test.summary()}\n\n{test.table()}\n"))
        print(wrap(f"{test.collapse}\n") if test.collapse else "", end="")
        keep_checkpoints(folder.path, self.settings.run.keep)
        print(f"written to {folder.path}\n{next_commands(folder.path)}", flush=True)

    def description(self) -> dict[str, Any]:
        """What has to be known to use the weights."""
        return {
            "data": self.data,
            "versions": self.conditions,
            "processes": self.ranks.world,
            "model": {key: vars(self.settings.model)[key] for key in ("backbone", "k", "d", "dropout")},
            "ema": self.settings.optimizer.ema,
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.as_dict(),
            "epoch": self.epoch,
            "step": self.step,
        }

    def save_models(self) -> None:
        """last/ and best/ from the state at an epoch's end, where they are not there yet."""
        epoch = self.epoch - 1
        if not self.folder or self.done or not epoch:
            return
        models = {"last": "", "best": "last"} if self.best_epoch == epoch else {"last": ""}
        for name, same_as in models.items():
            if self.folder.saved_epoch(name) != epoch:
                self.folder.save(name, self.evaluated_model, self.finished, same_as)

    def stop(self) -> None:
        self.checkpoint()
        raise Stopped(self.watch.number, self.settings.run.out)

    def checkpoint(self) -> None:
        """Write the whole state, unless it is not worth continuing from."""
        randoms = self.ranks.all_gather(random_state(self.device))
        self.watch.checkpoint_written()
        if not self.folder:
            return
        tensors = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        if not self.totals.finite() or not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise Diverged(
                f"the loss or a weight is no longer finite (epoch {self.current_epoch}, step {self.step}): no "
                f"checkpoint was written; {newest_checkpoint_note(self.folder.path)}. A lower --lr or --lambd, or "
                "--clip, may help"
            )
        state = {
            "settings": self.settings.as_dict(),
            "data": self.data,
            "processes": self.ranks.world,
            "conditions": self.conditions,
            "parent": self.parent,
            "epoch": self.epoch,
            "done": self.done,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state_dict() if self.plateau else None,
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "loss": self.loss_fn.state_dict(),
            "totals": self.totals.state(),
            "best": (self.best_epoch, self.best_figure),
            "finished": self.finished,
            "random": randoms,
            "logs": self.folder.lengths(),
        }
        write_checkpoint(self.folder.path, state)

    def restore(self, state: State) -> None:
        self.epoch, self.done, self.step = state["epoch"], state["done"], state["step"]
        self.best_epoch, self.best_figure = state["best"]
        self.finished = state["finished"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.plateau:
            self.plateau.load_state_dict(state["plateau"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.loss_fn.load_state_dict(state["loss"])
        self.totals.restore(state["totals"])
        self.save_models()
        print(
            f"continuing {'in' if self.done else 'after'} epoch {self.current_epoch}, after step {self.step}",
            flush=True,
        )
        if note := differences(state["conditions"], self.conditions):
            print(note, flush=True)
        if state["processes"] == self.ranks.world:  # else nothing is drawn any more
            restore_random(state["random"][self.ranks.rank], self.device)
