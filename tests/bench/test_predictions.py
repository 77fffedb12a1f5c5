"""`bench tune --dry` and the times over n of `bench static`, which need no GPU."""

import pytest
import torch

pytest.importorskip("triton")

from adcorre_kernels.gpu import gpus, plan
from bench import static, times, tune


def test_candidates_differ_in_one_setting() -> None:
    current = gpus.STREAMING["sm_90", 2]
    first, *others = tune.candidates(current)
    assert first == current
    assert len(set(others)) == len(others) > 10
    for other in others:
        differing = [name for name, a, b in zip(current._fields, current, other, strict=True) if a != b]
        assert len(differing) == 1
        if differing == ["gram"] and other.gram is not None:
            assert sum(a != b for a, b in zip(current.gram, other.gram, strict=True)) == 1


def test_settings_are_in_use_within_and_restored_after() -> None:
    before = gpus.STREAMING["sm_90", 4]
    arguments = (1 << 20, 7, 256, 7, -1.0, 4, True, "sm_90", 132)
    grid = plan.plan_statistics(*arguments).grid
    with tune.using("sm_90", 4, before._replace(programs=1)):
        assert plan.plan_statistics(*arguments).grid[0] == grid[0] // 2
    assert gpus.STREAMING["sm_90", 4] is before
    assert plan.plan_statistics(*arguments).grid == grid


def test_dry_compiles_ranks_and_prints_rows(monkeypatch, capsys) -> None:
    """The settings with fewer cycles win; here the built-in ones, since the variants spill or take longer."""
    current = gpus.STREAMING["sm_90", 4]
    worse = current._replace(row_elements=256)  # half as many samples at once
    monkeypatch.setattr(tune, "candidates", lambda given: iter([worse, given]))
    assert tune.main(["--dry", "--family", "sm_90", "--bytes", "4"]) == 0
    *tried, head, row = capsys.readouterr().out.splitlines()
    assert len(tried) == 2
    assert head == "rows of gpus.STREAMING:"
    assert eval(f"{{{row}}}", vars(gpus)) == {("sm_90", 4): current}


@pytest.mark.parametrize("arguments, message", [([], "expected a GPU"), (["--dry"], "--family with --dry")])
def test_missing_arguments_and_devices_are_named(arguments, message, capsys) -> None:
    if not arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        tune.main(arguments)
    assert message in capsys.readouterr().err


def test_predicted_times_count_traffic_slots_and_launches() -> None:
    model = gpus.MODELS["H200"]
    by_n = [times.predicted(torch.float32, n, (168.0, 265.0), model) for n in times.SIZES]
    assert [entry.launches for entry in by_n] == [4, 6, 6]
    for entry in by_n:
        least = 3 * entry.n * times.K * times.D * 4 / model.bandwidth
        assert entry.seconds > least + entry.launches * times.LAUNCH_SECONDS
        assert entry.copy_share == pytest.approx(least / entry.seconds)
        assert 0 < entry.slots <= 2 * 4 * plan.SLOT_ELEMENTS
        assert 1 <= entry.busiest < 1.1
    assert by_n[0].copy_share < by_n[1].copy_share < by_n[2].copy_share
    slow = times.predicted(torch.float32, 1 << 20, (168.0, 2000.0), model)
    assert slow.seconds > (1 << 20) / model.multiprocessors * 2000 / model.clock


def test_the_lines_of_the_committed_table() -> None:
    lines = list(times.lines(static.read()))
    assert len(lines) == 2 * len(times.SIZES)
    readme = (static.LIMITS.parents[1] / "kernels" / "README.md").read_text()
    for line in lines:
        microseconds = line.partition(": ")[2].split()[0]
        assert microseconds in readme, line
