"""`python -m train`: one training run from the command line, or one process of it under torchrun."""

import os
import sys
from collections.abc import Callable, Sequence

from train.disk import FULL
from train.errors import UserError, message_of
from train.settings import layers, parser, resolve


def main(arguments: Sequence[str] | None = None) -> int:
    rank = os.environ.get("RANK", "0")
    try:
        given = vars(parser().parse_args(arguments))
        settings = resolve(given)
        from train.loop import Stopped, run  # after the arguments: --help and their errors do not wait for PyTorch

        try:
            run(settings, layers(given))
        except Stopped as stopped:
            if rank == "0":
                print(f"\n{stopped}", file=sys.stderr)
            return 128 + stopped.number
    except UserError as error:
        print(f"error{f' (process {rank})' if rank != '0' else ''}: {message_of(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"error: {FULL[error.errno]} ({error}); the last checkpoints are kept, --resume goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted before training began", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    entry: Callable[..., int | None] = main
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        entry = record(main)  # torchrun's last words are then the failed process's own traceback
    sys.exit(entry())
