"""The CPU kernels (`backend="numba"`): the terms and the whole loss against the reference, and what they promise."""

import errno
import logging
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from adcorre import AdCorreLoss, adcorre_terms, backends
from adcorre.backends import resolve_options
from adcorre_kernels import cpu
from adcorre_kernels.cpu import compiled
from tests.loss.tools import TARGETS, assert_close, draw, run

numba = pytest.importorskip("numba")


@pytest.mark.parametrize("target", TARGETS)
def test_many_classes(target) -> None:
    problem = draw(600, 2, 16, 300, between=target, mean=target, embedding=target)
    assert_close(problem, run(problem, "numba"), run(problem, "reference"))


@pytest.mark.parametrize("k", [*range(1, 11), 12, 13, 17])
def test_many_embeddings(k) -> None:
    """The kernels add up a sample's k directions four or eight at a time."""
    problem = draw(14, k, 12, 3)
    assert_close(problem, run(problem, "numba"), run(problem, "reference"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_as_bits(dtype) -> None:
    """Every number is read as PyTorch reads it; results are rounded as PyTorch rounds them."""
    from adcorre_kernels.cpu import memory

    code = {torch.float16: memory.FLOAT16, torch.bfloat16: memory.BFLOAT16}[dtype]
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    row = torch.empty(2**16)
    memory.widen(numbers.view(torch.uint16).numpy(), code, row.numpy())
    torch.testing.assert_close(row, numbers.float(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(row.signbit(), numbers.signbit())
    # Halfway between two neighbours, and next to it on either side, over all exponents, infinity and NaN included.
    exact = numbers.float()
    halfway = (
        exact.view(torch.int32) + torch.tensor([[-1], [0], [1]]) + (2**12 if dtype == torch.float16 else 2**15)
    ).int()
    values = torch.cat((exact, halfway.view(torch.float32).flatten(), exact * 0.37, exact * 1.5))
    out = torch.empty(len(values), dtype=dtype)
    memory.store(values.numpy(), out.data_ptr(), code)
    torch.testing.assert_close(out, values.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1, "ignore_index": 2}, {"ce_weight": True}])
def test_the_whole_loss(settings) -> None:
    """Loss, both gradients, counts and attention weights over two steps, with labels that are ignored."""
    problem = draw(50, 3, 16, 5)
    logits = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if "ce_weight" in settings:
        settings = {"ce_weight": torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0], dtype=torch.float64)}
    results = {}
    for backend in ("numba", "reference"):
        loss_fn = AdCorreLoss(5, backend=backend, **settings).double()
        for _ in range(2):
            x, scores = problem.x.clone().requires_grad_(), logits.clone().requires_grad_()
            output = loss_fn(scores, x, problem.targets)
            output.loss.backward()
        results[backend] = (*(value.detach() for value in output), x.grad, scores.grad, loss_fn.attention_map.counts)
    for got, expected in zip(results["numba"], results["reference"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_another_default_device() -> None:
    """Buffers are the CPU's, whatever device PyTorch allocates on by default."""
    problem = draw(20, 3, 8, 4, dtype=torch.float32)
    logits = problem.x[:, 0, :4]
    expected = AdCorreLoss(4, backend="numba")(logits, problem.x, problem.targets), run(problem, "numba")
    loss = AdCorreLoss(4, backend="numba")
    with torch.device("meta"):
        got = loss(logits, problem.x, problem.targets), run(problem, "numba")
    for one, other in zip((*got[0], *got[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["ce_weight", "logit_adjustment", "attention_map"])
def test_a_loss_on_another_device_is_refused(name) -> None:
    """The kernels take addresses: one of another device would end the process."""
    vectors = {"ce_weight": torch.ones(4), "logit_adjustment": torch.ones(4)}
    loss = AdCorreLoss(4, backend="numba", **vectors)
    setattr(loss, name, loss.attention_map.to("meta") if name == "attention_map" else vectors[name].to("meta"))
    problem = draw(20, 3, 8, 4)
    with pytest.raises(ValueError, match="cpu; got one of shape .* on meta: move the loss there"):
        loss(problem.x[:, 0, :4], problem.x, problem.targets)


@pytest.mark.parametrize("case", ["bad label", "constant", "nan", "empty", "strided"])
def test_edges(case) -> None:
    problem = draw(20, 3, 8, 4)
    x, targets = problem.x.clone(), problem.targets.clone()
    if case == "bad label":
        targets[3] = 9
    elif case == "constant":
        x[2, 1] = 5.0
    elif case == "nan":
        x[4, 0, 0] = torch.nan
        targets[4] = -100  # takes no part: touches nothing
    elif case == "empty":
        x, targets = x[:0], targets[:0]
    else:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    problem = problem._replace(x=x, targets=targets)
    values, truth = (run(problem, backend, validate=False) for backend in ("numba", "reference"))
    for got, expected in zip(values, truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12, equal_nan=True)


@pytest.fixture
def threads() -> Iterator[None]:
    """More than one, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [7, 2000])
def test_equal_bits_on_any_number_of_threads(num_classes, dtype, threads) -> None:
    problem = draw(3000, 7, 64, num_classes, dtype=dtype)
    logits = torch.randn(3000, num_classes)
    results = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        x, scores = problem.x.clone().requires_grad_(), logits.clone().requires_grad_()
        out = AdCorreLoss(num_classes, backend="numba")(scores, x, problem.targets)
        out.loss.backward()
        results.append((*run(problem, "numba"), *out, x.grad, scores.grad))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_several_python_threads_at_once(threads) -> None:
    problem = draw(600, 7, 64, 7, dtype=torch.float32)
    truth = run(problem, "numba")
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: run(problem, "numba"), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(result, truth, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_and_ends(threads) -> None:
    """On a pool of its own."""
    problem = draw(3000, 7, 64, 7, dtype=torch.float32)
    truth = [result.numpy() for result in run(problem, "numba")]
    child = multiprocessing.get_context("fork").Process(target=_compare_in_a_child, args=(problem, truth))
    began = time.monotonic()
    child.start()
    child.join(10)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0, f"exit status {child.exitcode} after {time.monotonic() - began:.1f} s"


def _compare_in_a_child(problem, truth) -> None:
    for got, expected in zip(run(problem, "numba"), truth, strict=True):
        assert (got.numpy() == expected).all()


def test_ops() -> None:
    problem = draw(12, 2, 8, 3, dtype=torch.float32)
    torch.library.opcheck(cpu.statistics, (problem.x, problem.targets, 3, -100, -1.0))
    flat = cpu.statistics(problem.x, problem.targets, 3, -100, -1.0)
    torch.library.opcheck(cpu.terms, (flat, problem.attention, 2, 8, -1.0, 0.3, -1.0))
    _, *tables = cpu.terms(flat, problem.attention, 2, 8, -1.0, 0.3, -1.0)
    upstream = torch.ones(4)
    torch.library.opcheck(cpu.embedding_gradient, (problem.x, problem.targets, upstream, *tables, -100, -1.0))
    logits = torch.randn(12, 3)
    torch.library.opcheck(cpu.logits_sums, (logits, problem.targets, None, None, 0.1, -100))
    torch.library.opcheck(cpu.logits_gradient, (logits, problem.targets, torch.ones(()), None, None, 0.1, -100))


def test_auto_takes_it_on_a_cpu(monkeypatch) -> None:
    """Else torch: without a word where Numba is not installed, with one warning where it does not work."""
    x = torch.zeros(4, 2, 8)
    with warnings.catch_warnings(action="error"):
        assert all(resolve_options(x.to(dtype), 3).backend == "numba" for dtype in cpu.DTYPES)
        assert resolve_options(x.to("meta"), 3).backend == "torch"
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "installed", lambda: False)
            assert resolve_options(x, 3).backend == "torch"
    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace())  # `from numba import config` fails
    for cached in (compiled.why_unavailable, backends._warn_once):
        cached.cache_clear()
    try:
        with pytest.warns(UserWarning, match='backend "auto" uses "torch": Numba cannot be imported') as seen:
            assert [resolve_options(x, 3).backend for _ in range(2)] == ["torch", "torch"]
        assert len(seen) == 1
        with pytest.raises(ValueError, match='backend="numba": Numba cannot be imported'):
            resolve_options(x, 3, "numba")
    finally:
        for cached in (compiled.why_unavailable, backends._warn_once):
            cached.cache_clear()


def test_at_most_eight_compiled_variants() -> None:
    """Of all dtypes, strides, labels, targets and settings together."""
    for dtype in cpu.DTYPES:
        for target in (-1, 0.3):
            problem = draw(9, 2, 8, 3, dtype=dtype, between=target, mean=target, embedding=target)
            for x in (
                problem.x,
                problem.x.transpose(0, 1).contiguous().transpose(0, 1),
                problem.x.repeat(1, 2, 2)[:, ::2, ::2],
            ):
                logits = x.sum(-1)[:, :1].repeat(1, 3).requires_grad_()
                for targets in (problem.targets, problem.targets.to(torch.uint8), problem.targets.repeat(2)[::2]):
                    loss = AdCorreLoss(3, **problem.options, label_smoothing=0.1, ce_weight=torch.ones(3))
                    loss(logits, x.requires_grad_(), targets).loss.backward()
    assert len(compiled.compiled) == 8
    assert all(name in compiled.KERNELS for name, _ in compiled.compiled)


def empty_kernel(number) -> None:
    """Compiled in no time."""


def _full(*_) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("cause", ["cached", "no folder", "a full disk", "damaged"])
def test_a_cache_on_disk_where_that_is_possible(cause, monkeypatch, tmp_path, caplog) -> None:
    folder = tmp_path / "cache"
    if cause == "a full disk":
        monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", _full)
    elif cause == "no folder":
        monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    monkeypatch.setitem(compiled.KERNELS, "empty_kernel", ("embeddings", "i"))
    monkeypatch.setattr(compiled, "import_module", lambda _: SimpleNamespace(empty_kernel=empty_kernel))
    compiled._announce_uncached.cache_clear()
    with caplog.at_level(logging.WARNING, "adcorre_kernels"):
        compiled._compile("empty_kernel", False)(0)
        files = [path for path in folder.rglob("*") if path.is_file()]
        if cause == "damaged":
            for file in files:
                file.write_bytes(b"")
            compiled._compile("empty_kernel", False)(0)
    assert bool(files) == (cause in ("cached", "damaged"))
    assert ("cannot be cached on disk" in caplog.text) == (cause != "cached")
    if cause == "cached":
        [index] = folder.rglob("*.nbi")
        before = index.read_bytes()
        compiled._compile("empty_kernel", False)(0)
        assert index.read_bytes() == before  # loaded
        monkeypatch.setattr(compiled, "_sources", lambda: "other kernels")
        compiled._compile("empty_kernel", False)(0)
        assert index.read_bytes() != before  # compiled again


def test_a_wait_of_more_than_a_second_is_announced_once(monkeypatch, caplog) -> None:
    monkeypatch.setattr(compiled, "WAIT", 0.001)
    compiled._announce.cache_clear()
    for _ in range(2):
        with compiled._announced_wait("compiling"):
            deadline = time.monotonic() + 5
            while not compiled._announce.cache_info().currsize and time.monotonic() < deadline:
                time.sleep(0.001)
    assert [record.getMessage() for record in caplog.records] == ["adcorre: compiling takes some seconds at first use"]


class Terms(Dataset):
    """Computes terms where the data are loaded."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.cat([result.flatten() for result in run(draw(40, 3, 16, 4, seed=index), "numba")])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_in_a_dataloader_worker() -> None:
    loaded = list(DataLoader(Terms(), num_workers=1, multiprocessing_context="fork"))
    assert all(torch.equal(loaded[index][0], Terms()[index]) for index in range(2))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="CPU tensors"):
        adcorre_terms(
            torch.empty(4, 2, 8, device="meta"),
            torch.empty(4, dtype=torch.int64, device="meta"),
            torch.empty(3, device="meta"),
            backend="numba",
        )


BITS = """
import hashlib, torch
from adcorre import AdCorreLoss
x = (torch.randn(40, 7, 100, generator=torch.Generator().manual_seed(0)) + 0.3).requires_grad_()
logits = x.detach()[:, 0, :5].clone().requires_grad_()
AdCorreLoss(5, backend="numba")(logits, x, torch.arange(40) % 5).loss.backward()
for gradient in (x.grad, logits.grad):
    print(hashlib.sha256(gradient.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_code_from_the_cache_gives_the_same_bits(tmp_path) -> None:
    """The process that compiles the kernels, and one that loads them: functions that are not inlined differed."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    outputs, compiled_files = [], []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", BITS], env=environment, check=True, capture_output=True, text=True)
        outputs.append(run.stdout)
        compiled_files.append({file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nbc")})
    assert outputs[0] == outputs[1] != ""
    assert compiled_files[0] == compiled_files[1] != {}
