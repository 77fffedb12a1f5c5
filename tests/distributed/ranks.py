"""One rank of a group on this machine: python -m tests.distributed.ranks WORLD RANK FOLDER [CASE...].

Runs the cases one after the other in one group and writes what failed to FOLDER.
"""

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed.cases import CASES


def main(world: int, rank: int, folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    failed: dict[str, str] = {}
    for name in names or CASES:
        dist.barrier()
        torch.manual_seed(0)
        try:
            CASES[name](rank, world)
        except Exception:
            failed[name] = traceback.format_exc()
            break  # the other ranks may be elsewhere now
    (folder / f"rank{rank}.json").write_text(json.dumps(failed))
    if not failed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
