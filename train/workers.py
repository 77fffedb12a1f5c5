"""A function over many items in forked processes.

Nothing waits for a process that is gone: each has a pipe of its own, which ends with it. At the end, whatever its
reason, all of them are killed; no handler and no lock can keep one alive. They are forked, so that neither the function
nor the items are pickled and a script needs no `if __name__ == "__main__"`.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from train.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def default_processes() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    item: int | None = None  # which one it works on


def map_in_processes(function: Callable[[T], R], items: Sequence[T], processes: int | None, doing: str) -> Iterator[R]:
    """`function` of each item, in order, by `processes` forked processes (None: one per core; below 2: by this one).

    An exception of the function is raised here. Raises UserError that says what a process was `doing`, and on which
    item, where it ends before its time.
    """
    processes = min(default_processes() if processes is None else processes, len(items))
    if processes < 2 or multiprocessing.current_process().daemon:  # which may start none
        yield from map(function, items)
        return
    workers: list[_Worker] = []
    results: dict[int, Any] = {}
    waiting = iter(range(len(items)))
    try:
        for _ in range(processes):
            workers.append(_start(function, items, [worker.connection for worker in workers]))
            _send_next(workers[-1], waiting)
        for index in range(len(items)):
            while index not in results:
                busy = {worker.connection: worker for worker in workers if worker.item is not None}
                for connection in wait(list(busy)):
                    worker = busy[connection]  # type: ignore[index]
                    results[worker.item or 0] = _receive(worker, items, doing)
                    _send_next(worker, waiting)
            yield results.pop(index)
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


def _start(function: Callable[[T], R], items: Sequence[T], others: list[Connection]) -> _Worker:
    context = multiprocessing.get_context("fork")
    parent_end, worker_end = context.Pipe()
    # Blocked until the process has put away the handlers that it inherits: none may swallow a signal for it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            arguments = (worker_end, [*others, parent_end], function, items, before)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        worker_end.close()
    return _Worker(process, parent_end)


def _serve(
    connection: Connection, parents: list[Connection], function: Callable[[T], R], items: Sequence[T], mask: set[int]
) -> None:
    """In the worker: answer each number of an item with the function's result, until the parent closes or is gone."""
    for other in parents:  # inherited; while one is open here, another worker does not see the parent's end
        other.close()
    reset_signal_handlers()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:  # OpenMP's threads do not live on in a forked process: a parallel region would hang
        sys.modules["torch"].set_num_threads(1)
    try:
        while True:
            number = connection.recv()
            try:
                answer = pickle.dumps((True, function(items[number])))
            except Exception as error:
                answer = _pickled(error)
            connection.send_bytes(answer)
    except (EOFError, OSError):  # the parent is gone
        return


def reset_signal_handlers() -> None:
    """Forget handlers that were written for the parent. Ctrl-C and a scheduler's SIGUSR1 are for the parent alone."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _pickled(error: Exception) -> bytes:
    error.add_note("".join(traceback.format_exception(error)))
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)  # an exception with arguments of its own may not come back
        return answer
    except Exception:
        return pickle.dumps((False, RuntimeError("".join(traceback.format_exception(error)))))


def _send_next(worker: _Worker, waiting: Iterator[int]) -> None:
    worker.item = next(waiting, None)
    if worker.item is not None:
        with suppress(OSError):  # it is gone: reading from it says so
            worker.connection.send(worker.item)


def _receive(worker: _Worker, items: Sequence[Any], doing: str) -> Any:
    try:
        succeeded, result = pickle.loads(worker.connection.recv_bytes())
    except (EOFError, OSError):
        process = worker.process
        process.join()
        item = items[worker.item or 0]
        on = f"{item.start} to {item.stop - 1}" if isinstance(item, range) else str(item)
        raise UserError(
            f"a process that was {doing} (PID {process.pid}, at images {on}) {describe_exit(process.exitcode or 0)}"
        ) from None
    if not succeeded:
        raise result
    return result


def describe_exit(status: int) -> str:
    """A process's exit code in words."""
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (": did the memory run out?" if name == "SIGKILL" else "")
