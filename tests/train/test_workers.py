"""A function over items in processes: ordered results, errors, and no child, alive or dead, blocks the parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train import starts
from train.errors import UserError
from train.ranks import ALONE
from train.stopping import Watch
from train.workers import map_in_processes


def children() -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    return [int(pid) for pid in listing.split()]


@pytest.fixture
def no_new_child() -> Iterator[None]:
    before = set(children())
    yield
    left = [pid for pid in set(children()) - before if Path(f"/proc/{pid}/exe").exists()]
    assert not left, "processes are left"


def mapped(function, items, processes: int = 2) -> list:
    return list(map_in_processes(function, items, processes, "testing"))


@pytest.mark.usefixtures("no_new_child")
@pytest.mark.parametrize("processes", [1, 2, 3, 50])
def test_results_come_in_order(processes: int) -> None:
    slowest_first = [(0.02 if i % 3 == 0 else 0, i) for i in range(20)]

    def work(item: tuple[float, int]) -> int:
        time.sleep(item[0])
        return item[1] ** 2

    assert mapped(work, slowest_first, processes) == [i**2 for i in range(20)]
    assert mapped(work, [], processes) == []


@pytest.mark.usefixtures("no_new_child")
@pytest.mark.parametrize("error", [UserError("no"), FileNotFoundError(2, "none", "x"), ZeroDivisionError("0")])
def test_an_exception_is_the_parents_too(error: Exception) -> None:
    def work(item: int) -> int:
        if item == 3:
            raise error
        return item

    with pytest.raises(type(error)) as caught:
        mapped(work, range(10))
    assert str(caught.value) == str(error)
    assert "in work" in caught.value.__notes__[0], "where it was raised"


@pytest.mark.usefixtures("no_new_child")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_killed_child_is_named(number: signal.Signals) -> None:
    """Under `Watch`, whose handlers a child must not inherit."""

    def work(item: range) -> int:
        if item.start == 50:
            os.kill(os.getpid(), number)
        return item.start

    with (
        Watch(ALONE, 0),
        pytest.raises(UserError, match=rf"\(PID \d+, at images 50 to 99\) was killed by {number.name}"),
    ):
        mapped(work, [range(50), range(50, 100), range(100, 150), range(150, 200)])


@pytest.mark.usefixtures("no_new_child")
def test_a_child_that_dies_while_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a result is in the pipe: reading the rest would block forever if others held the pipe open."""
    from multiprocessing.connection import Connection

    def send_half(self: Connection, data: bytes) -> None:
        os.write(self.fileno(), len(data).to_bytes(4, "big") + data[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Connection, "send_bytes", send_half)
    with pytest.raises(UserError, match="was killed by SIGKILL"):
        mapped(lambda item: bytes(100_000), range(8))


@pytest.mark.usefixtures("no_new_child")
def test_children_have_the_default_handlers() -> None:
    def handlers(item: int) -> list[int]:
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
        return [int(signal.getsignal(number)) for number in numbers] + [len(masked)]

    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with Watch(ALONE, 0):
            actual = mapped(handlers, range(4))
            assert callable(signal.getsignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert actual == [[signal.SIG_DFL, signal.SIG_IGN, signal.SIG_IGN, signal.SIG_DFL, 0]] * 4


@pytest.mark.usefixtures("no_new_child")
def test_a_loop_that_is_left_leaves_no_process() -> None:
    for _ in map_in_processes(lambda item: time.sleep(item), [0, 100, 100], 2, "testing"):
        break


FORKED = """
import os, time
from train.workers import map_in_processes

def work(item):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(0.3)

list(map_in_processes(work, range(1000), 3, "testing"))
"""
LOADING = """
import multiprocessing, os
from torch.utils.data import DataLoader
from train.data.loading import _init_worker

class Numbers:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        os.write(1, b"%d\\n" % os.getpid())
        return index

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")  # the default from Python 3.14 on
    batches = iter(DataLoader(Numbers(), num_workers=1, prefetch_factor=3, worker_init_fn=_init_worker))
    input()
"""


@pytest.mark.parametrize("code", [FORKED, pytest.param(LOADING, marks=pytest.mark.slow)])
def test_children_end_with_a_parent_that_is_killed(code: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"  # a fork server imports it anew
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(starts.ROOT), str(starts.ROOT / "kernels")))}
    parent = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    pids = {int(parent.stdout.readline()) for _ in range(3)}
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while alive := [pid for pid in pids if starts.is_alive(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_drawing_ends_it_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """It ends within two seconds, and no process is left."""
    code = "import os, sys, train.data.synthetic.dataset as s, train.entry, train.__main__\n"
    code += "real = s.SyntheticFaces._draw_all\n"
    code += "def draw(*a):\n    os.write(1, b'drawing %d\\n' % os.getpid())\n    return real(*a)\n"
    code += "s.SyntheticFaces._draw_all = draw\n"
    code += "train.entry.leave(train.__main__.main(['--image-size', '128', '--device', 'cpu', '--out', sys.argv[1]]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        cwd=starts.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    lines = [process.stdout.readline().split() for _ in range(3)]
    assert [line[0] for line in lines] == ["starting:", "drawing", "drawing"]
    began = time.monotonic()
    process.send_signal(number)
    error_text = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 2
    assert process.returncode == 128 + number
    assert error_text == "\ninterrupted before training began\n"
    assert not any(starts.is_alive(int(line[1])) for line in lines[1:])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_starts_beside_a_busy_machine() -> None:
    """$ADCORRE_STARTS starts; the full test is `python -m tests.train.starts --count 200`."""
    count = os.environ.get("ADCORRE_STARTS", "2")
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.starts", "--count", count, "--draws", "20"], cwd=starts.ROOT
    )
    assert done.returncode == 0
