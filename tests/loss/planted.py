"""`python -m tests.loss.planted`: faults in the CPU kernels' source text, and whether the test named beside each fails.

See tests/kernels/planted.py. Each copy of the checkout compiles its own kernels.
"""

import sys

from tests.kernels.planted import Fault, main

CPU = "kernels/adcorre_kernels/cpu/"
EMBEDDINGS, TABLES, LOGITS, MEMORY = (f"{CPU}{name}.py" for name in ("embeddings", "tables", "logits", "memory"))
KERNELS, LOSS = "tests/loss/test_numba.py::test_", "tests/loss/test_whole_loss.py::test_"
RUN = LOSS + "values_and_gradients_of_a_run_are_the_references"
EVERYTHING = RUN + "[numba-everything]"
FAULTS = [
    # class sums, in groups of samples and in shares
    Fault(EMBEDDINGS, "means[l], means[padded + l], means[2 * padded + l],",
          "means[l], means[padded + l], means[padded + l],", KERNELS + "many_embeddings[3]"),
    Fault(EMBEDDINGS, "(2 * t + (begin[a] >= t * share))", "(2 * t)", KERNELS + "many_classes[-1]"),
    Fault(EMBEDDINGS, "    while l < k:\n        if k - l <= 4:", "    while l < k - 1:\n        if k - l <= 4:",
          KERNELS + "many_embeddings[9]"),
    Fault(EMBEDDINGS, "np.nan if bad else begin[a + 1]", "begin[a + 1]", KERNELS + "edges[bad label]"),
    Fault(EMBEDDINGS, "constant = squared_length <= squared_length_of_x * limit", "constant = squared_length < zero",
          KERNELS + "edges[constant]"),
    # the gradient of the embeddings
    Fault(EMBEDDINGS, "dot * inverse[l] * inverse[l] * inverse[l]", "dot * inverse[l] * inverse[l]",
          KERNELS + "many_embeddings[3]"),
    Fault(EMBEDDINGS, "factor * inverse[l], scratch, scale * inverse[l],", "factor * inverse[l], scratch, scale,",
          KERNELS + "many_embeddings[3]"),
    # terms, tables and the attention map
    Fault(TABLES, "own = k * (n - 1) * samples", "own = k * n * samples", KERNELS + "many_classes[-1]"),
    Fault(TABLES, "md += abs(difference)", "md += difference", RUN + "[numba-other targets]"),
    Fault(TABLES, "place[0] = (place[0] + 1) % window", "place[0] = min(place[0] + 1, window - 1)",
          LOSS + "the_ring_is_the_confusion_matrix_of_the_window[numba]"),
    Fault(TABLES, "scale[4] = factor / divisor", "scale[4] = factor", EVERYTHING),
    # logits, labels and half precision
    Fault(LOGITS, "upstream * share * (w[j] if weight else 1.0)", "upstream * share", EVERYTHING),
    Fault(LOGITS, "(1 - smoothing) * (w[label] if weight else 1.0) * (log_sum",
          "(w[label] if weight else 1.0) * (log_sum", EVERYTHING),
    Fault(MEMORY, " and label != ignore_index", "", KERNELS + "the_whole_loss[settings1]"),
    Fault(MEMORY, "    bits = bitcast(small, np.uint32(0)) if exponent == np.uint32(0) else bits\n", "",
          KERNELS + "half_precision_as_bits[dtype0]"),
    Fault(MEMORY, "bits + np.uint32(0x7FFF) + odd", "bits + np.uint32(0x8000)",
          KERNELS + "half_precision_as_bits[dtype1]"),
    # threads
    Fault(f"{CPU}threads.py", "os.register_at_fork(after_in_child=_forget_pool)", "pass",
          KERNELS + "a_forked_child_computes_and_ends"),
]  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(FAULTS))
