"""When to stop, and when a checkpoint is due: the same answer on every rank."""

import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import torch

from train.errors import Aborted
from train.ranks import Ranks

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is a scheduler's warning that time runs out


class Stopped(Exception):
    """A signal was obeyed: the run can be resumed."""

    def __init__(self, number: int, folder: Any) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}, with a checkpoint; "
            f"python -m train --resume {folder} continues it"
        )
        self.number = number


class Interrupted(Exception):
    """A signal came during an evaluation."""


class Watch:
    """SIGTERM, SIGINT, SIGUSR1 and the clock. The first signal is stored for `poll`; a second one ends the process.

    Before `training` is set there is nothing to save: a signal then ends the run at once, by Aborted.

    Ranks add up what they know in a small all-reduce of its own, which is read one step later: no step waits for it.
    """

    def __init__(self, ranks: Ranks, minutes: float) -> None:
        self.ranks = ranks
        self.minutes = minutes
        self.number = 0
        self.training = False
        self.since = time.monotonic()
        self.group: Any = torch.distributed.new_group(backend="gloo") if ranks.world > 1 else None
        self.pending: tuple[Any, torch.Tensor] | None = None
        self.just_written = False

    def __enter__(self) -> "Watch":
        self.before = {number: signal.signal(number, self._store) for number in SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _store(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self.training:
            raise Aborted(number)

    def poll(self) -> tuple[int, bool]:
        """(the signal that came, or 0; whether a checkpoint is due by the clock). Once a step, by every rank."""
        due = self.ranks.is_first and 0 < self.minutes < (time.monotonic() - self.since) / 60
        if self.group is None:
            return self.number, due
        result = 0, False
        if self.pending is not None:
            work, flags = self.pending
            work.wait()
            number, late = flags.tolist()
            result = number, bool(late) and not self.just_written
        self.just_written = False
        flags = torch.tensor([self.number, int(due)])
        work = torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=self.group, async_op=True)
        self.pending = work, flags
        return result

    def checkpoint_written(self) -> None:
        """There is a checkpoint now; every rank says so."""
        self.since = time.monotonic()
        self.just_written = True  # the other ranks' flags were sent before it was

    def interruptible(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of an evaluation. A single process leaves it at a signal, by Interrupted, several end it."""
        for batch in batches:
            if self.number and self.group is None:
                raise Interrupted
            yield batch


GRACE = 30  # seconds


def ignore_in_worker() -> None:
    """A terminal and job schedulers signal a whole process group: loading ends when the process that it is for does.

    At the latest so many seconds after the first SIGTERM, which may have come from that process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(GRACE)  # a second one may have come at once, and be lost

    signal.signal(signal.SIGTERM, once)
