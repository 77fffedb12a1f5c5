"""`python -m train`: one training run from the command line, or one process of it under torchrun."""

import os
import sys
from collections.abc import Callable, Sequence

from train.errors import UserError, message_of
from train.settings import parser, resolve


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        settings = resolve(vars(parser().parse_args(arguments)))
        from train.loop import run  # after the arguments: --help and their errors do not wait for PyTorch

        run(settings)
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        print(f"error{f' (process {rank})' if rank != '0' else ''}: {message_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the checkpoints of finished epochs are in the run folder", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    entry: Callable[..., int | None] = main
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        entry = record(main)  # torchrun's last words are then the failed process's own traceback
    sys.exit(entry())
