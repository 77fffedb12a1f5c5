"""Convert every form of a virtual batch to chunks (inputs, targets) that can be iterated twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from adcorre.checks import check_tensor

Chunk = tuple[Any, Tensor]
Inputs = Tensor | Iterable[Chunk] | Callable[[], Iterable[Chunk]]


def chunk_source(inputs: Inputs, targets: Tensor | None, chunk_size: int, keep: bool) -> Callable[[], Iterable[Any]]:
    """Return a function that returns the same chunks each time it is called."""
    if targets is not None:
        check_tensor("targets", targets)
    if isinstance(inputs, Tensor):
        if targets is None or inputs.dim() == 0 or targets.shape[:1] != inputs.shape[:1]:
            got = "none" if targets is None else f"shape {tuple(targets.shape)}"
            raise ValueError(f"targets: expected one for each of the inputs {tuple(inputs.shape)}; got {got}")
        pairs = list(zip(inputs.split(chunk_size), targets.split(chunk_size), strict=True))
        return lambda: pairs
    if targets is not None:
        raise ValueError("targets: expected None, since chunks are pairs (inputs, targets); got targets too")
    if callable(inputs):
        return inputs
    if not isinstance(inputs, Iterable):
        raise TypeError(
            "inputs: expected a tensor, a list of chunks (inputs, targets), a callable that yields chunks or another "
            f"iterable of them; got {type(inputs).__name__}"
        )
    if isinstance(inputs, list | tuple) or not keep:
        chunks = inputs
        return lambda: chunks
    return ReplayedChunks(inputs)


class ReplayedChunks:
    """A callable that yields an iterable's chunks each time it is called; it stores them."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        self.rest = iter(iterable)
        self.chunks: list[Any] = []

    def __call__(self) -> Iterator[Any]:
        yield from self.chunks
        for chunk in self.rest:
            self.chunks.append(chunk)
            yield chunk


def peek(open_chunks: Callable[[], Iterable[Any]]) -> tuple[list[Chunk], Iterator[Chunk]]:
    """Read the first two chunks (one if there is only one) and return them and an iterator over the rest."""
    chunks = map(_check_chunk, open_chunks())
    return list(islice(chunks, 2)), chunks


def drain(first: list[Chunk], rest: Iterator[Chunk]) -> Iterator[Chunk]:
    while first:
        yield first.pop(0)  # frees each chunk once it has been used
    yield from rest


def _check_chunk(chunk: Any) -> Chunk:
    if not isinstance(chunk, list | tuple) or len(chunk) != 2 or not isinstance(chunk[1], Tensor):
        raise TypeError(f"a chunk: expected a pair (inputs, targets), targets a tensor; got {describe_type(chunk)}")
    return chunk[0], chunk[1]


def describe_type(value: Any) -> str:
    name = type(value).__name__
    return f"{name} of {', '.join(type(x).__name__ for x in value)}" if isinstance(value, list | tuple) else name
