"""`python -m tests.kernels.planted`: faults in the kernels' source text, and whether the test named beside each fails.

All of them, or each SHARES-th from that of a given number on. Each runs in a process of its own, in
Triton's interpreter, on a copy of the checkout that has the fault. `tests/distributed/planted.py` has other faults.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ["TRITON_INTERPRET"] = "1"

import hypothesis  # noqa: F401 - imported once, for all processes
import pytest
import sklearn.metrics  # noqa: F401
import torch
import triton  # noqa: F401

ROOT = Path(__file__).parents[2]
SHARES = 6
COPIED = ("adcorre", "kernels", "train", "tests")
GPU = "kernels/adcorre_kernels/gpu/"


class Fault(NamedTuple):
    """`before`, which occurs once in the file, becomes `after`. Paths are relative to the checkout."""

    file: str
    before: str
    after: str
    test: str


LAUNCHED = "tests/kernels/launched/"
BUDGET, GRAM, LOGITS, LOSS = (f"{LAUNCHED}test_{name}.py::test_" for name in ("budget", "gram", "logits", "loss"))
RUN = LOSS + "values_and_gradients_of_a_run_are_the_references"
FAULTS = [  # files of GPU
    Fault("logits.py", "return tl.min(tl.where(tl.where(any_nan, is_nan, logits == largest), column, BC), 1)",
          "return tl.max(tl.where(tl.where(any_nan, is_nan, logits == largest), column, -1), 1)",
          LOGITS + "predictions_of_ties_nan_and_infinity_are_argmaxs"),
    Fault("logits.py", "tl.where(any_nan, is_nan, logits == largest)", "logits == largest",
          LOGITS + "predictions_of_ties_nan_and_infinity_are_argmaxs"),
    Fault("logits.py", "smoothing / C * every\n",
          "smoothing / BC * every\n", LOGITS + "shapes[dtype0-shape2]"),
    Fault("logits.py", "weights = tl.where(column < C, 1.0, 0.0).to(WORK)",
          "weights = tl.full((BC,), 1.0, WORK)", LOGITS + "cross_entropy_is_torchs[False-False-0.1-dtype1]"),
    Fault("logits.py", 'tl.where(tl.max(bad, 0) > 0, float("nan"), divisor)',
          "divisor", LOGITS + "a_bad_label_is_nan_and_nothing_outside_is_read[7]"),
    Fault("logits.py", "for start in range(0, programs, BP):",
          "for start in range(0, BP, BP):", LOGITS + "many_programs_and_tiles"),
    Fault("logits.py", " - every - own", " - own", LOGITS + "shapes[dtype0-shape2]"),
    Fault("logits.py", "gradient, 0 * upstream)",
          "gradient, 0.0)", LOGITS + "a_bad_label_is_nan_and_nothing_outside_is_read[7]"),
    Fault("attention.py", "column < tl.where(step == position, 0, C)", "inside",
          LOSS + "the_ring_is_the_confusion_matrix_of_the_window"),
    Fault("attention.py", "(position + 1) % window)", "position + 1)", RUN + "[plain]"),
    Fault("attention.py", "tl.maximum(all_seen, 1)", "all_seen", LOSS + "classes_without_samples"),
    Fault("attention.py", "if RECORD:", "if COUNT:", LOSS + "which_steps_the_attention_map_records"),
    Fault("attention.py", "values_ptr + ATTENTION + 2 * C + column, seen", "values_ptr + ATTENTION + C + column, seen",
          LOSS + "checkpointing_has_the_gradient_of_the_plain_step"),
    Fault("reduce.py", "(end - 1) // chunk + 1, first)", "end // chunk, first)",
          BUDGET + "one_order_of_all_samples[shape0]"),
    Fault("reduce.py", "any_bad = tl.sum(bad, 0)", "any_bad = 0", LOSS + "a_bad_label_is_nan_everywhere[5]"),
    Fault("reduce.py", "2 * size + c * K + entry", "2 * size + entry", RUN + "[plain]"),
    Fault("reduce.py", "slot_row % ROWS == 0, count, 0", "slot_row >= 0, count, 0", RUN + "[plain]"),
    Fault("loss.py", "(2 * num_classes + 2) * 2 if", "(2 * num_classes + 2) if",
          LOSS + "several_programs_over_the_logits"),
    Fault("loss.py", "loss_plan.tables - 1", "loss_plan.tables - 2", RUN + "[plain]"),
    Fault("loss.py", "double = logits is not None and logits[0] == torch.float64", "double = False",
          LOSS + "logits_of_another_dtype_and_a_scaled_loss"),
    Fault("terms.py", "tl.where(divisor == 0, 1.0, divisor)", "divisor", RUN + "[everything]"),
    Fault("terms.py", "(factor / divisor)", "(1.0 / divisor)", LOSS + "the_factor_multiplies_the_gradient_alone"),
    Fault("terms.py", "to_h *= to_loss * MD", "to_h *= to_loss", RUN + "[everything]"),
    Fault("terms.py", "to_ed *= to_loss * ED", "to_ed *= to_loss", RUN + "[everything]"),
    Fault("gram_per_sample.py", "inverse = tl.where(off_centre > 0, 0.0, inverse)\n", "pass\n",
          GRAM + "some_vectors_are_far_from_centred[30.0-dtype0]"),
    Fault("gram_per_sample.py", "pairs += tl.where(same_sample, gram * (inverse[:, None] * inverse[None, :]), 0.0)",
          "pairs += gram * (inverse[:, None] * inverse[None, :])", GRAM + "constant_vectors[dtype0]"),
    Fault("gram_per_sample.py", "square_sum += tl.where(inverse == 0, 0.0, 1.0)\n        embedding",
          "square_sum += 1.0\n        embedding", GRAM + "constant_vectors[dtype0]"),
    Fault("gram_per_sample.py", "return tl.sum(total, 1) * (1.0 / D)", "return tl.sum(total, 1) * (1.0 / (D + 16))",
          GRAM + "constant_vectors[dtype0]"),
    Fault("gram_per_sample.py", "far_squares += ", "far_squares = ",
          GRAM + "some_vectors_are_far_from_centred[30.0-dtype0]"),
]  # fmt: skip


def verdict(fault: Fault) -> str:
    """ "found", "missed", or pytest's other exit status."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "pyproject.toml", folder)
        for part in COPIED:
            shutil.copytree(ROOT / part, Path(folder) / part)
        path = Path(folder) / fault.file
        text = path.read_text()
        if text.count(fault.before) != 1:
            return f"the text occurs {text.count(fault.before)} times"
        path.write_text(text.replace(fault.before, fault.after))
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os._exit(_run(folder, fault.test, writer))
        os.close(writer)
        with os.fdopen(reader) as output:
            printed = output.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "missed", 1: "found"}.get(code, f"pytest ended with {code}: {printed[-2000:]}")


def _run(folder: str, test: str, writer: int) -> int:
    """In the child: run the test in the copy, so that its processes too import the package with the fault."""
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.path[:0] = [folder, f"{folder}/kernels"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    if not test.startswith(LAUNCHED):
        del os.environ["TRITON_INTERPRET"]
    import adcorre_kernels

    assert Path(adcorre_kernels.__file__).is_relative_to(folder)
    with os.fdopen(writer, "w") as output, contextlib.redirect_stdout(io.StringIO()) as text:
        code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", "--tb=no", test]))
        output.write(text.getvalue())
    return code


def main(faults: list[Fault]) -> int:
    verdicts = []
    for fault in faults:
        verdicts.append(verdict(fault))
        print(f"{verdicts[-1]}: {fault.file}: {fault.before.strip()} -> {fault.after.strip()}", flush=True)
    print(f"{verdicts.count('found')} of {len(verdicts)} found")
    return int(set(verdicts) != {"found"})


if __name__ == "__main__":
    share = FAULTS[int(sys.argv[1]) :: SHARES] if sys.argv[1:] else FAULTS
    sys.exit(main([fault._replace(file=GPU + fault.file) for fault in share]))
