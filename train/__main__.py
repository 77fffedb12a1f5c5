"""`python -m train`: one training run from the command line, or one process of it under torchrun."""

import os
import sys
from collections.abc import Callable, Sequence

from train.entry import exit_code, leave
from train.options import parser
from train.recipe import merge_given, resolve
from train.unused_options import unused_notes


def main(arguments: Sequence[str] | None = None) -> int:
    def call() -> int:
        given = vars(parser().parse_args(arguments))
        settings = resolve(given)
        if os.environ.get("RANK", "0") == "0":
            notes = [] if settings.run.resume else unused_notes(given, settings)
            print("\n".join([*notes, "starting: PyTorch, the data, the model"]), flush=True)
        from train.loop import Stopped, run  # after the arguments: --help and their errors do not wait for PyTorch

        try:
            run(settings, merge_given(given))
        except Stopped as stopped:
            if os.environ.get("RANK", "0") == "0":
                print(f"\n{stopped}", file=sys.stderr)
            return 128 + stopped.number
        return 0

    return exit_code(call)


if __name__ == "__main__":
    entry: Callable[..., int | None] = main
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from train.entry import prepare_process

        prepare_process()  # before PyTorch
        from torch.distributed.elastic.multiprocessing.errors import record

        entry = record(main)  # torchrun's last words are then the failed process's own traceback
    leave(entry() or 0)
