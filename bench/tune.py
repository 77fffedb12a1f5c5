"""`python -m bench tune`: launch settings of the streaming kernels for one family of GPUs.

Changes one setting at a time of a family's entry in `gpus.STREAMING` and prints the best entry for each element size,
to be pasted there. On a GPU of that family forward and backward are timed; with `--dry` candidates are compiled and
ranked by the static model: no stack, then the cycles of a sample's instructions, then bytes in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from adcorre_kernels.gpu import gpus
from bench import measure, rows
from bench.compiled import TARGETS, compile_launch, loss_launches, machine_code, resources
from bench.host import forget_plans
from bench.loss import Shape, Step, make_inputs
from bench.rivals import CONTENDERS
from bench.static import STREAMING, streaming_loop

DTYPES = {4: torch.float32, 2: torch.bfloat16}
CHANGES: dict[str, tuple[Any, ...]] = {
    "max_width": (128, 256),
    "row_elements": (512, 1024),
    "look_ahead": (False, True),
    "programs": (1, 2, 3),
    "gradient_steps": (8, 16, 32),
    "gradient_programs": (16, 32),
}
GRAM_CHANGES: dict[str, tuple[int, ...]] = {"width": (32, 64), "stages": (3, 5, 7), "programs": (6, 8, 10)}


def candidates(current: gpus.StreamingSettings) -> Iterator[gpus.StreamingSettings]:
    """The family's own settings first, then those that differ in one of them."""
    yield current
    for name, values in CHANGES.items():
        for value in values:
            if value != getattr(current, name):
                yield current._replace(**{name: value})
    if current.gram is not None:
        yield current._replace(gram=None)
        for name, numbers in GRAM_CHANGES.items():
            for number in numbers:
                if number != getattr(current.gram, name):
                    yield current._replace(gram=current.gram._replace(**{name: number}))


@contextmanager
def using(family: str, itemsize: int, settings: gpus.StreamingSettings) -> Iterator[None]:
    with mock.patch.dict(gpus.STREAMING, {(family, itemsize): settings}):
        forget_plans()
        yield
    forget_plans()


def compiled_rank(family: str, itemsize: int) -> tuple[float, ...]:
    """Least is best: bytes of stack, cycles of issue a sample (both passes), minus bytes in flight."""
    stack, cycles, flight = 0, 0.0, 0.0
    for launch in loss_launches(1 << 20, 7, 256, 7, DTYPES[itemsize], target=family):
        if launch.name not in STREAMING:
            continue
        compiled = compile_launch(launch, family)
        used = resources(compiled)
        stack += used.stack
        first, last = streaming_loop(machine_code(compiled))
        warps, samples = launch.options["num_warps"], launch.constants.get("BS", 1)
        cycles += (last - first + 1) * warps / samples / 4
        flight += launch.constants.get("STAGES", 1) * samples
    return stack, cycles, -flight


def timed_rank(itemsize: int, n: int) -> Callable[[], tuple[float, ...]]:
    device = torch.device("cuda")
    x, targets, attention = make_inputs(Shape(n=n, dtype=str(DTYPES[itemsize])[6:]), device, seed=0)
    step = Step(CONTENDERS["triton"], [x], targets, attention)
    return lambda: (min(measure.in_turns({"step": step}, device, seconds=2, most=50, warm=3)["step"]),)


def main(argv: list[str]) -> int:
    parser = rows.parser("tune", __doc__)
    nvidia = [name for name in TARGETS if name.startswith("sm_")]
    parser.add_argument("--family", choices=nvidia, help="default: the family of this machine's GPU")
    parser.add_argument("--bytes", type=int, nargs="+", choices=DTYPES, default=list(DTYPES), help="element sizes")
    parser.add_argument("--n", type=int, default=1 << 18, help="samples of a timed step")
    parser.add_argument("--dry", action="store_true", help="compile and rank by the static model: no GPU needed")
    options = parser.parse_args(argv)
    if not options.dry and not torch.cuda.is_available():
        parser.error("expected a GPU to time on; got none (--dry ranks compiled code instead)")
    own = None if options.dry else gpus.family(torch.device("cuda", torch.cuda.current_device()))
    family = options.family or own
    if family is None or (own is not None and family != own):
        parser.error(f"expected --family {own or 'with --dry'}; got {family}")
    best = []
    for itemsize in options.bytes:
        ranked = []
        rank = partial(compiled_rank, family, itemsize) if options.dry else timed_rank(itemsize, options.n)
        for settings in candidates(gpus.STREAMING[family, itemsize]):
            with using(family, itemsize, settings):
                ranked.append((rank(), settings))
            print(f"{family} {itemsize} bytes  {ranked[-1][0]}  {settings}", flush=True)
        best.append(f'    ("{family}", {itemsize}): {min(ranked, key=lambda entry: entry[0])[1]},')
    print("\n".join(["rows of gpus.STREAMING:", *best]))
    return 0
