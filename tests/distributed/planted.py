"""`python -m tests.distributed.planted [TEXT]`: faults in the code for ranks and chunks.

Each is an editing mistake that a single process, or a batch of one chunk, does not show. The test named beside it has
to fail (see tests/kernels/planted.py). With TEXT, only the faults whose file or test contains it.
"""

import sys

from tests.kernels.planted import Fault, main

LOSS, REDUCTION, METRIC = "adcorre/loss.py", "adcorre/distributed.py", "adcorre/metric.py"
VIRTUAL, REPLAY, RANKS = "adcorre/virtual.py", "adcorre/replay.py", "train/ranks.py"
CASES = "tests/distributed/test_ranks.py::test_every_case[2]"
CHUNKS = "tests/virtual/test_virtual.py::test_"
MISTAKES = "tests/virtual/test_mistakes.py::test_"
COMMAND = "tests/train/test_ranks.py::test_"
FAULTS = [
    # sums that are not reduced, or over other ranks than the group's
    Fault(REDUCTION, "    torch.distributed.all_reduce(packed, group=_group(process_group))\n", "", CASES),
    Fault(REDUCTION, "all_reduce(packed, group=_group(process_group))", "all_reduce(packed)", CASES),
    Fault(REDUCTION, "    torch.distributed.all_reduce(between.sums, group=group)\n", "", CASES),
    Fault(REDUCTION, "all_reduce(between.sums, group=group)", "all_reduce(between.sums)", CASES),
    Fault(REDUCTION, "get_world_size(_group(process_group))", "get_world_size()", CASES),
    Fault(REDUCTION, "get_rank(group) * places", "get_rank() * places", CASES.replace("2", "3")),
    Fault(REDUCTION, "own.new_tensor([own.shape[0]]), group=group)", "own.new_tensor([own.shape[0]]))", CASES),
    Fault(LOSS, "self._attention(whole, record)", "self._attention(part.sums, record)", CASES),
    Fault(METRIC, "self._count(means, sums)", "self._count(means, BatchSums(flat, counts, sums.ce))", CASES),
    Fault("train/evaluation.py", "for part in ranks.all_gather(outputs) for batch in part", "for batch in outputs",
          COMMAND + "two_processes_end_to_end"),
    # the factor against the averaging over ranks, once too often or too little
    Fault(LOSS, "world_size(self.process_group) if averaged else 1", "world_size(self.process_group)", CASES),
    Fault("adcorre/equation.py", "scale, zero = upstream * lambd,",
          "scale, zero = upstream * batch.gradient_factor * lambd,", CASES),
    Fault(METRIC, 'world_size(group) if self.gradient_reduction == "mean" else 1', "world_size(group)", CASES),
    # padding that takes part; a batch that is counted twice
    Fault(REDUCTION, "n.new_full((places,), options.ignore_index)", "n.new_zeros(places)", CASES),
    Fault(REDUCTION, "gathered.view(-1, places)[filled].unique() if", "gathered.unique() if", CASES),
    Fault(LOSS, "weights(None if record else counts)", "weights(counts)", CHUNKS + "equals_one_ordinary_batch"),
    # one rank leaves and the others wait
    Fault(REDUCTION, "    if places:\n        torch.distributed.all_gather_into_tensor(all_labels",
          "    if x.shape[0]:\n        torch.distributed.all_gather_into_tensor(all_labels", CASES),
    Fault(LOSS, "if self.process_group is None:\n            _check_labels",
          "if True:\n            _check_labels", CASES),
    Fault(VIRTUAL, "with nullcontext() if last else _without_reduction(self.model):", "with nullcontext():", CASES),
    # chunks: one is dropped, or has the gradient of another
    Fault(VIRTUAL, "self.packed += packed", "self.packed = packed.double()", CHUNKS + "equals_one_ordinary_batch"),
    Fault(VIRTUAL, "enumerate(parts, first)", "enumerate(parts)", CHUNKS + "every_setting_of_the_loss"),
    Fault(VIRTUAL, "whole[first : first + len(parts)]", "whole[: len(parts)]",
          "tests/virtual/test_metric.py::test_equals_the_ordinary_batch"),
    Fault(VIRTUAL, "labels.append(chunk[1].long())", "labels.insert(0, chunk[1].long())",
          CHUNKS + "every_setting_of_the_loss"),
    Fault(VIRTUAL, "one if self.scaler is None else self.scaler.scale(one)", "one",
          CHUNKS + "autocast_and_a_gradient_scaler"),
    Fault(VIRTUAL, "targets, record=True)", "targets)", CHUNKS + "equals_one_ordinary_batch"),
    Fault(VIRTUAL, "if last and next(chunks, None) is not None:", "if False:", MISTAKES + "another_number_of_chunks"),
    # a second pass of another network, or an error that leaves something behind
    Fault(VIRTUAL, "                    state.restore()\n", "",
          CHUNKS + "an_iterator_that_draws_random_numbers_between_the_chunks"),
    Fault(VIRTUAL, "        initial_state.restore()\n", "",
          CHUNKS + "a_loader_that_draws_from_the_default_generator_is_replayed"),
    Fault(VIRTUAL, "        self.buffers.restore()\n        initial", "        initial",
          CHUNKS + "batch_norm_buffers_are_those_of_plain_accumulation"),
    Fault(VIRTUAL, "self.hook = model.module.register_forward_pre_hook(self._copy_buffers_once)", "pass", CASES),
    Fault(VIRTUAL, "        self.attention.restore()\n", "", MISTAKES + "one_image_augmented_again"),
    Fault(VIRTUAL, "            parameter.grad = None\n", "            pass\n", MISTAKES + "one_image_augmented_again"),
    Fault(REPLAY, "(buffer, buffer.detach().clone())", "(buffer, buffer.detach())",
          CHUNKS + "batch_norm_buffers_are_those_of_plain_accumulation"),
    Fault(REPLAY, "(a.labels != b.labels).any()", "(a.labels != b.labels).all()",
          MISTAKES + "a_loader_that_shuffles_again_raises_an_error"),
    # the training command
    Fault("train/data/loading.py", "range(place + self.ranks.rank,", "range(place,",
          COMMAND + "each_image_is_in_one_chunk_of_one_rank"),
    Fault("train/loop.py", "self.ranks.broadcast(module, buffers_only=True)", "pass",
          COMMAND + "two_processes_end_to_end"),
    Fault(RANKS, "                if whole is not tensor:\n                    tensor.copy_(whole)\n", "", CASES),
    Fault(RANKS, "model.buffers() if buffers_only else model.state_dict().values()", "model.buffers()", CASES),
    Fault(RANKS, "broadcast_object_list(values, 0)", "broadcast_object_list([value], 0)", CASES),
]  # fmt: skip

if __name__ == "__main__":
    text = sys.argv[1] if sys.argv[1:] else ""
    sys.exit(main([fault for fault in FAULTS if text in fault.file or text in fault.test]))
