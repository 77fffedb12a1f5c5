"""`python -m tests.train.soak --seconds 600`: random commands of the kit with faults; each outcome is accounted for.

Commands train, resume, overwrite, evaluate, check and shard small data while they are killed or stopped, run out of
disk, meet broken pictures or share the machine. After each: the exit code is one that the fault explains; an error is
one message; the user's files are as they were; the run folder holds nothing that a run does not write; no process is
left. At the end every run goes on to its end. The seed is printed.
"""

import argparse
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from tests.train.conftest import even, write_folders
from tests.train.test_command import QUICK
from train.checkpoint import checkpoints, read_checkpoint
from train.owned_folder import LOCK, MARK
from train.run_folder import OUTPUTS

FAULTS = ("", "", "kill", "stop", "full disk", "busy")
THEIRS = ("notes.txt", "best/evaluation/mine.csv", "checkpoints/backup.pt", "src/a.py")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["train.loop", "tests.train.soak"])


def _command(log: str, module: str, words: list[str], limit: int) -> None:
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(import_module(module).main(words))


def _spin() -> None:
    while os.getppid() != 1:
        pass


class Soak:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        os.environ["ADCORRE_CACHE"] = str(folder / "cache")
        self.data = write_folders(folder / "data", even(4, 1, 1))
        self.broken = write_folders(folder / "broken", even(4, 1, 1))
        (self.broken / "train/fear/Training_00001.jpg").write_bytes(b"no picture")
        self.runs: set[Path] = set()
        self.counts: dict[str, int] = {}

    def one(self) -> None:
        """A random command with a random fault."""
        run, data = self.folder / f"run{self.rng.randrange(3)}", self.data
        kind = self.rng.choice(("resume", "resume", "overwrite", "new", "evaluate", "check", "shard", "broken", "skip"))
        if kind in ("broken", "skip"):
            run, data = self.folder / kind, self.broken
        module, words, expected = "train.__main__", ["--data", str(data), "--out", str(run), *QUICK], {0}
        words += ["--epochs", "2", "--batch-size", "8", "--workers", str(self.rng.randrange(2))]
        if kind in ("resume", "broken", "skip"):
            words += ["--resume", "auto", "--on-broken", "skip" if kind == "skip" else "fail"]
            expected = {2} if kind == "broken" else {0}
        elif kind == "overwrite":
            words += ["--overwrite"]
        elif kind == "new":
            expected = {2} if (run / MARK).exists() else {0}
        elif kind == "evaluate":
            out = self.folder / f"evaluation{self.counts.get('evaluate', 0)}"
            module, words = "train.evaluate", [str(run), "--resamples", "5", "--tsne", "0", "--samples", "0"]
            words += ["--device", "cpu", "--out", str(out)]
            expected = {0} if (run / "best/model.json").exists() or (run / "best.replaced/model.json").exists() else {2}
        elif kind == "check":
            data = self.rng.choice((self.data, self.broken))
            module, words, expected = "train.data.__main__", ["check", str(data)], {0, 1}
        elif kind == "shard":
            out = self.folder / f"shards{self.counts.get('shard', 0)}"
            module, words = "train.data.__main__", ["shard", str(data), str(out)]
        if module == "train.__main__":
            self.runs.add(run)
        fault = self.rng.choice(FAULTS)
        self.execute(kind, fault, module, words, expected)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        for run in self.runs:
            self.check_run(run)

    def execute(self, kind: str, fault: str, module: str, words: list[str], expected: set[int]) -> None:
        log = self.folder / "log"
        limit = self.rng.choice((20_000, 50_000, 200_000)) if fault == "full disk" else 0
        before = dict(os.environ)
        os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        try:
            process = _context.Process(target=_command, args=(str(log), module, words, limit))
            process.start()
            busy = _context.Process(target=_spin, daemon=True)
            if fault == "busy":
                busy.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        if fault in ("kill", "stop"):
            process.join(self.rng.uniform(0, 4))
            with suppress(ProcessLookupError):  # it has ended before
                os.kill(process.pid or 0, signal.SIGKILL if fault == "kill" else signal.SIGTERM)
        process.join(200)
        code, output = process.exitcode, log.read_text() if log.exists() else ""
        context = f"{kind}, {fault or 'no fault'}: {' '.join(words)}\nexit {code}\n{output}"
        if fault == "busy":
            busy.kill()
            busy.join()
        print(f"{kind:10}{fault or '-':11}exit {code}", flush=True)
        allowed = expected | {"kill": {-9}, "stop": {-15, 143}, "full disk": {2}}.get(fault, set())
        assert code in allowed, context
        assert "Traceback" not in output, context
        if code == 2:
            assert sum(line.startswith("error: ") for line in output.splitlines()) == 1, context
        if code == 143:
            assert "stopped by SIGTERM, with a checkpoint" in output or "interrupted before training began" in output, (
                context
            )
        self.check_processes(process.pid or 0, context)

    def check_processes(self, group: int, context: str) -> None:
        """No process of the command is left: workers of a killed one notice within seconds."""
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)  # it has the output open that whoever started the soak waits for
        raise AssertionError(f"a process is left\n{context}")

    def check_run(self, run: Path) -> None:
        if not (run / MARK).exists():
            return
        for name in THEIRS:
            file = run / name
            if not file.exists():  # not planted yet
                assert name not in self.planted(run), f"{file} is gone"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("mine")
                self.planted(run).add(name)
            assert file.read_text() == "mine"
        own = {path for pattern in OUTPUTS for path in run.glob(pattern)} | {run / MARK, run / LOCK}
        unknown = {path for path in run.rglob("*") if path.is_file()} - own - {run / name for name in THEIRS}
        assert not {path for path in unknown if path.name != f"{MARK}.partial"}, unknown
        if checkpoints(run):
            read_checkpoint(run)

    _planted: dict[Path, set[str]] = {}  # noqa: RUF012

    def planted(self, run: Path) -> set[str]:
        return self._planted.setdefault(run, set())

    def finish(self) -> None:
        for run in sorted(self.runs):
            if run.name != "broken":
                data = self.broken if run.name == "skip" else self.data
                words = ["--data", str(data), "--out", str(run), "--resume", "auto", *QUICK, "--epochs", "2"]
                words += ["--batch-size", "8", "--on-broken", "skip" if run.name == "skip" else "fail"]
                self.execute("finish", "", "train.__main__", words, {0})
                assert (run / "results.json").is_file()
                self.check_run(run)


def soak(seconds: float, seed: int, folder: Path) -> None:
    print(f"soak of {seconds:g} s, --seed {seed}", flush=True)
    began, soaked = time.monotonic(), Soak(folder, seed)
    while time.monotonic() < began + seconds:
        soaked.one()
    soaked.finish()
    print(f"{sum(soaked.counts.values())} commands", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.train.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak(options.seconds, options.seed, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
