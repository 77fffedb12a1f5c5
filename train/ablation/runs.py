"""The runs of an ablation: one run folder for each setting and seed, shared by the studies that need it.

OUT/runs/<a study's recipe, and what differs from it and the user's settings, or "base">/seed-<s>; failed.txt in it
says why a run failed.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.ablation.studies import STUDIES, Variant
from train.data.base import digest
from train.disk import lock, read_json, read_rows
from train.errors import Diverged, UserError
from train.loop import run as train_run
from train.objective import check_objective
from train.ranks import ALONE
from train.recipe import merge_given, resolve
from train.resume import FREE, changed
from train.settings import Settings, flag, format_value

FAILED = "failed.txt"
SPEED = ("amp", "channels_last")  # settings that are measured where they are "auto"


@dataclass(frozen=True)
class Result:
    """A finished run: its settings.json and results.json, and the seconds that its epochs took."""

    about: Mapping[str, Any]
    results: Mapping[str, Any]
    seconds: float

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of its images, by split."""
        fingerprints: Mapping[str, str] = self.about["data"]["fingerprints"]
        return fingerprints


@dataclass(frozen=True)
class Planned:
    """A run: its study and row, its folder and seed, and its settings by name."""

    study: str
    variant: Variant
    folder: Path
    seed: int
    given: Mapping[str, Any]

    def settings(self) -> Settings:
        return resolve(self.given)

    def open_speed(self) -> list[str]:
        """The names out of `SPEED` that the run leaves to a measurement."""
        return [name for name in SPEED if getattr(self.settings().speed, name) == "auto"]

    @property
    def failure(self) -> str:
        file = self.folder / FAILED
        return file.read_text(encoding="utf-8").strip() if file.is_file() else ""

    def result(self) -> Result | None:
        """None if the run has not ended. Raises UserError if its folder holds a run with other settings."""
        if not (self.folder / "settings.json").is_file():
            return None
        about = read_json(self.folder / "settings.json")
        if different := changed(Settings.of(about["settings"]).values(), self.settings().values(), FREE):
            raise UserError(
                f"{self.folder} holds a run of other settings ({'; '.join(different)}): choose another --out"
            )
        if not (self.folder / "results.json").is_file():
            return None
        seconds = sum(float(row["seconds"]) for row in read_rows(self.folder / "epochs.csv"))
        return Result(about, read_json(self.folder / "results.json"), seconds)


Plan = dict[tuple[str, str], list[Planned]]  # (study, variant) -> its runs, by seed


def plan(names: Sequence[str], given: Mapping[str, Any], out: Path, seeds: Sequence[int]) -> Plan:
    """The runs of the studies. Raises UserError for an invalid setting, or one that a study varies."""
    result: Plan = {}
    for name in names:
        study = STUDIES[name]
        if taken := sorted(study.varied & given.keys()):
            raise UserError(
                f"{', '.join(map(flag, taken))}: {name} itself varies {'it' if len(taken) == 1 else 'them'}"
            )
        for variant in study.variants:
            values = {**study.defaults, **given, **variant.settings}
            settings = resolve(values)
            check_objective(settings, ALONE)
            recipe = {key: value for key, value in study.defaults.items() if key == "recipe"}
            base = resolve({**recipe, **given}).values()
            different = [
                f"{key}={format_value(value, '+')}" for key, value in settings.values().items() if value != base[key]
            ]
            folder = out / "runs" / ",".join([*recipe.values(), *(different or ["base"])])
            result[name, variant.name] = [
                Planned(
                    name,
                    variant,
                    folder / f"seed-{seed}",
                    seed,
                    {**values, "seed": seed, "out": str(folder / f"seed-{seed}"), "resume": "auto"},
                )
                for seed in seeds
            ]
    return result


def in_order(planned: Plan, seeds: Sequence[int]) -> list[Planned]:
    """Each run once, ordered by seed: if the work is stopped, all settings have about as many seeds."""
    result: dict[Path, Planned] = {}
    for index in range(len(seeds)):
        for runs in planned.values():
            result.setdefault(runs[index].folder, runs[index])
    return list(result.values())


def train(run: Planned, out: Path) -> None:
    """Train a run to its end, from the start or its checkpoint. A non-finite loss is recorded, not raised.

    What a run leaves open of `SPEED`, it takes from the first run of its recipe, which measures it, and for which other
    processes wait: the runs of a study differ only in what is studied.
    """
    recipe, left_open = run.settings().run.recipe, run.open_speed()
    measured: dict[str, str] | None = {}
    is_first: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    while left_open and (measured := _measured_speed(recipe, out)) is None:
        try:
            is_first = lock(out, f".speed-{digest(recipe)}.lock")
            break
        except BlockingIOError:
            time.sleep(0.5)
    given = {**run.given, **{name: value for name, value in (measured or {}).items() if name in left_open}}
    with is_first:
        try:
            train_run(resolve(given), merge_given(given))
        except Diverged as error:
            (run.folder / FAILED).write_text(f"{error}\n", encoding="utf-8")
            print(f"{run.folder}: {error}", flush=True)


def results_of(runs: Iterable[Planned]) -> dict[int, Result]:
    """The results of the finished runs, by seed."""
    return {run.seed: result for run in runs if (result := run.result())}


def check_same_data(planned: Plan) -> None:
    """Raise UserError if two runs of one seed used different images (training images: within one regime)."""
    seen: dict[tuple[int, str, str], tuple[Path, str]] = {}
    for runs in planned.values():
        for run in runs:
            if result := run.result():
                for split, fingerprint in result.fingerprints.items():
                    regime = run.variant.regime if split == "train" else ""
                    folder, expected = seen.setdefault((run.seed, split, regime), (run.folder, fingerprint))
                    if fingerprint != expected:
                        raise UserError(f"{folder} and {run.folder} did not see the same images: choose another --out")


def _measured_speed(recipe: str, out: Path) -> dict[str, str] | None:
    """The speed settings of the recipe's first run; None before that has begun."""
    for file in sorted(out.glob("runs/*/*/settings.json"), key=lambda path: path.stat().st_mtime):
        first = read_json(file)["settings"]
        if first["run"]["recipe"] == recipe:
            speed: dict[str, str] = first["speed"]
            return speed
    return None
