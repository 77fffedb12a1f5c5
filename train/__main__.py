"""`python -m train`: one training run from the command line."""

import sys
from collections.abc import Sequence

from train.errors import UserError, message_of
from train.settings import parser, resolve


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        settings = resolve(vars(parser().parse_args(arguments)))
        from train.loop import run  # after the arguments: --help and their errors do not wait for PyTorch

        run(settings)
    except UserError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the checkpoints of finished epochs are in the run folder", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
