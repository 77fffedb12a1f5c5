"""Tests marked sample(m) run every m-th case; ADCORRE_SAMPLE selects which."""

from types import SimpleNamespace

import pytest

from tests.conftest import left_out


def items(cases: int, m: int) -> list:
    def item(name: str, marker: pytest.Mark | None) -> SimpleNamespace:
        return SimpleNamespace(nodeid=name, get_closest_marker=lambda _: marker)

    marker = pytest.mark.sample(m).mark
    others = [item("test_other[0]", None), item("test_other[1]", None)]
    return [*(item(f"test_long[{i}]", marker) for i in range(cases)), *others, item("test_last[a]", marker)]


@pytest.mark.parametrize("cases, m", [(17, 4), (8, 4), (5, 1), (2, 5)])
def test_each_case_runs_for_one_seed_of_m(cases: int, m: int) -> None:
    counts: dict[str, int] = {}
    for seed in range(10 * m, 11 * m):
        everything = items(cases, m)
        names = {item.nodeid for item in everything} - {item.nodeid for item in left_out(everything, seed)}
        assert abs(sum(name.startswith("test_long") for name in names) - cases / m) < 1
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    assert counts == {item.nodeid: m if "other" in item.nodeid else 1 for item in items(cases, m)}
