"""Twenty random mutants of fast kernels are found; `make ptx-mutants` runs all and lists the missed ones."""

import itertools
from pathlib import Path

import pytest

from tests.ptx.mutants import CASES, RESULTS, SAME_CODE, draw_mutants, read, remarked, summary

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2], ids=lambda number: str(CASES[number]))
def test_drawn_mutants_are_found(number: int) -> None:
    """One of ten may change nothing, which must be proved by hand."""
    verdicts = []
    for row, judge in itertools.islice(draw_mutants(number, 10, 1), 10):
        verdicts.append(remarked(row._replace(verdict=judge())))
    missed = [row for row in verdicts if row.verdict == "missed"]
    assert len(verdicts) == 10
    assert len(missed) <= 1, missed


def test_the_committed_table() -> None:
    """95 % of the effective mutants are found, at most a tenth are proved equivalent, each missed one has a remark."""
    rows = list(read(RESULTS).values())
    verdicts = [row.verdict for row in rows]
    detected = sum(verdict.startswith("found: ") for verdict in verdicts)
    proved = sum(verdict.startswith("equivalent: ") and verdict != SAME_CODE for verdict in verdicts)
    missed = sum(verdict.startswith("missed: ") for verdict in verdicts)
    assert detected + proved + missed + verdicts.count(SAME_CODE) == len(rows)
    assert detected >= 0.95 * (detected + missed)
    assert proved <= 0.1 * len(rows)
    assert summary(rows) in (ROOT / "kernels" / "README.md").read_text()
