"""`python -m train` as one rank, of which the last dies once: killed.py STEP TRAINING'S OPTIONS, under torchrun.

With SIGKILL, after STEP optimizer steps of the first attempt: no chance to say or save anything.
"""

import os
import signal
import sys

from torch.optim.optimizer import register_optimizer_step_post_hook

from train.__main__ import main

STEPS = 0


def count(*_: object) -> None:
    global STEPS
    STEPS += 1
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_attempt and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1) and str(STEPS) == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)


register_optimizer_step_post_hook(count)
sys.exit(main(sys.argv[2:]))
