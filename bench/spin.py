"""Effect of OpenMP's spinning threads: training steps of one process alone, and of two on the same cores.

Spinning threads are the fastest on an idle machine; if another process runs, the two slow each other down. The setting
in `train/entry.py` keeps nearly all of the first figure and doubles the second.
"""

import os
import statistics
import subprocess
import sys

from train.entry import WAITING, SuggestingParser

SPIN_COUNTS = (0, 1_000, 10_000, 100_000)
SETTINGS = ("", *(f"GOMP_SPINCOUNT={count}" for count in SPIN_COUNTS), "OMP_WAIT_POLICY=passive")
STEP = """
import json, sys, time
import timm, torch
threads, seconds = int(sys.argv[1]), float(sys.argv[2])
torch.set_num_threads(threads)
torch.manual_seed(0)
model = timm.create_model("resnet10t", num_classes=7)
images, targets = torch.randn(32, 3, 64, 64), torch.randint(7, (32,))
def step():
    torch.nn.functional.cross_entropy(model(images), targets).backward()
step(), step()
print("ready", flush=True)
for _ in sys.stdin:
    began, steps = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        step()
        steps += 1
    print(32 * steps / (time.perf_counter() - began), flush=True)
"""


def images_per_second(setting: str, threads: int, seconds: float) -> tuple[float, float]:
    """Of one process while another waits, and the mean of the two at once."""
    environment = {key: value for key, value in os.environ.items() if key not in (*WAITING, "OMP_NUM_THREADS")}
    environment |= dict([setting.split("=")]) if setting else {}
    command = [sys.executable, "-c", STEP, str(threads), str(seconds)]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]

    def measured(some: list[subprocess.Popen[str]]) -> float:
        for child in some:
            assert child.stdin
            child.stdin.write("\n")
            child.stdin.flush()
        return statistics.mean(float(child.stdout.readline()) for child in some if child.stdout)

    try:
        for child in children:
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
        alone, beside, again = measured(children[:1]), measured(children), measured(children[:1])
        return max(alone, again), beside
    finally:
        for child in children:
            child.kill()
            child.wait()


def main(argv: list[str] | None = None) -> int:
    parser = SuggestingParser(prog="python -m bench spin", description=__doc__)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of each process (default: one per core)"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each measurement (default: 3)")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="NAME=VALUE (default: a few useful ones)")
    options = parser.parse_args(argv)
    print(f"images/s, {options.threads} threads{'':16}alone   one of two")
    for setting in options.settings:
        alone, beside = images_per_second(setting, options.threads, options.seconds)
        print(f"{setting or 'as it is':34}{alone:10.0f}{beside:10.0f}", flush=True)
    return 0
