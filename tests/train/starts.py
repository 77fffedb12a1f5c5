"""`python -m tests.train.starts`: many starts of `python -m train` beside a busy process on each core; none may hang.

A start that takes longer than --timeout counts as hung: its stack is printed. --draws repeats only what forks, inside
one process: the drawing of 210 faces in each split, under the handlers of a run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = ("--limit", "210", "--epochs", "1", "--image-size", "32", "--backbone", "resnet10t", "--device", "cpu")
DRAW = """
import faulthandler, sys, time
from train.data import Request, load_data
from train.ranks import ALONE
from train.stopping import Watch
for number in range(int(sys.argv[1])):
    faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
    with Watch(ALONE, 0):
        splits = load_data("synthetic", Request(image_size=16, limit=210, seed=number))
    assert len(splits.train) == 210
"""


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.train.starts", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="whole starts")
    parser.add_argument("--draws", type=int, default=200, help="drawings alone")
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="busy processes beside them")
    parser.add_argument("--timeout", type=float, default=300, help="seconds until a start counts as hung")
    options = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels")))}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    hung = failed = 0
    began = time.monotonic()
    try:
        draw = [sys.executable, "-c", DRAW, str(options.draws), str(options.timeout)]
        status = subprocess.run(draw, cwd=ROOT, env=environment).returncode
        print(f"{options.draws} drawings: {'none hung' if not status else f'exit {status}'}", flush=True)
        for number in range(options.count):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-X", "faulthandler", "-m", "train", *COMMAND, "--out", f"{folder}/run"]
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
                try:
                    error_text = process.communicate(timeout=options.timeout)[1]
                except subprocess.TimeoutExpired:
                    process.send_signal(6)  # SIGABRT: faulthandler prints the stacks
                    error_text = process.communicate()[1]
                    hung += 1
                else:
                    failed += process.returncode != 0
                print(f"start {number + 1}: exit {process.returncode}, {time.monotonic() - began:.0f} s", flush=True)
                if process.returncode:
                    print(error_text, flush=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    seconds = time.monotonic() - began
    print(
        f"{options.count} starts beside {options.busy} busy: {hung} hung, {failed} failed, {seconds:.0f} s", flush=True
    )
    return int(bool(status or hung or failed))


if __name__ == "__main__":
    sys.exit(main())
