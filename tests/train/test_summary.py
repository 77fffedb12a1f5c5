"""docs/reproduction.md's tables from rows."""

import csv
from pathlib import Path

import pytest
from scipy import stats

from train.ablation import rows, summary

ARMS = {"CE": (0.50, 0.51, 0.53), "paper": (0.47, 0.49, 0.49)}


def test_means_and_paired_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, page = tmp_path / "study.csv", tmp_path / "page.md"
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows.COLUMNS)
        writer.writeheader()
        for arm, values in ARMS.items():
            for seed, value in enumerate(values):
                about = {"study": "small", "regime": "clean", "arm": arm, "seed": seed, "minutes": 30}
                writer.writerow(about | {f"validation_{name}": value for name in rows.METRICS})
    page.write_text(f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n")
    monkeypatch.setattr(summary, "ROWS", file)
    monkeypatch.setattr(summary, "PAGE", page)
    assert summary.main([]) == 0
    text = page.read_text()
    interval = stats.ttest_rel(ARMS["paper"], ARMS["CE"]).confidence_interval()
    low, high = (f"{100 * bound:+.2f}" for bound in interval)
    assert "| paper | 3 | 48.33 ± 1.15 | 48.33 ± 1.15 | 0.483 ± 0.012 |" in text
    assert f"| -3.00 ({low} to {high}) |" in text
    assert text.startswith(f"before\n{summary.BEGIN}\n6 runs so far, 3.0 hours.\n")
    assert text.endswith(f"{summary.END}\nafter\n")
    assert "old" not in text
