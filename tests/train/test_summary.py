"""docs/reproduction.md's tables from rows."""

import csv
from pathlib import Path

import pytest
from scipy import stats

from train.ablation import rows, summary

ARMS = {"CE": (0.50, 0.51, 0.53), "paper": (0.47, 0.49, 0.49), "FD": (0.49, 0.53, 0.52)}


@pytest.fixture(autouse=True)
def three_seeds_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "CONFIRMATION", range(10, 13))


def write(file: Path, first_seed: int = 0, study: str = "small", regime: str = "clean") -> Path:
    """Rows with the accuracies of ARMS; test accuracies are 0.1 above, of three times as many images."""
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, rows.COLUMNS)
        if not opened.tell():
            writer.writeheader()
        for arm, values in ARMS.items():
            for seed, value in enumerate(values, first_seed):
                row = {"study": study, "regime": regime, "arm": arm, "seed": seed, "minutes": 30}
                row |= {"validation_samples": 100, "test_samples": 300}
                row |= {f"validation_{name}": value for name in rows.METRICS}
                writer.writerow(row | {f"test_{name}": round(value + 0.1, 2) for name in rows.METRICS})
    return file


def gain(arm: str) -> str:
    interval = stats.ttest_rel(ARMS[arm], ARMS["CE"]).confidence_interval()
    low, high = (f"{100 * bound:+.2f}" for bound in interval)
    return f"-3.00 ({low} to {high})"


def test_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = tmp_path / "page.md", tmp_path / "readme.md"
    for page in pages:
        page.write_text(f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n")
    monkeypatch.setattr(summary, "ROWS", write(tmp_path / "study.csv", first_seed=10))
    monkeypatch.setattr(summary, "PAGE", pages[0])
    monkeypatch.setattr(summary, "README", pages[1])
    assert summary.main([]) == 0
    texts = [page.read_text() for page in pages]
    assert texts[0].startswith(f"before\n{summary.BEGIN}\n9 runs so far, 4.5 hours.\n")
    assert "| 3 seeds | accuracy | ECE | MAP@R |" in texts[1]
    assert "| CE | 61.33 ± 1.53 |" in texts[1]
    assert f"| paper | {gain('paper')} |" in texts[1]
    for text in texts:
        assert text.endswith(f"{summary.END}\nafter\n")
        assert "old" not in text


def test_screening_is_shown_on_the_validation_split(tmp_path: Path) -> None:
    text = summary.markdown(write(tmp_path / "study.csv"))
    assert "PrivateTest" not in text
    assert "| paper | 3 | 48.33 ± 1.15 | 48.33 ± 1.15 | 0.483 ± 0.012 |" in text
    assert f"| {gain('paper')} |" in text


def test_confirmation_is_shown_on_the_test_split(tmp_path: Path) -> None:
    text = summary.markdown(write(write(tmp_path / "study.csv"), first_seed=10))
    final, screening = text.split("screening")
    assert "| paper | 3 | 48.33 ± 1.15 | 58.33 ± 1.15 | 55.83 ± 1.15 | 58.33 ± 1.15 | 0.583 ± 0.012 |" in final
    assert f"| paper | {gain('paper')} |" in final  # p is 0.035, and 0.07 after the correction for two arms
    assert "| paper | 3 | 48.33 ± 1.15 | 48.33 ± 1.15 |" in screening


def test_what_differs_after_the_correction_is_bold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ARMS, "FD")
    assert f"| paper | **{gain('paper')}** |" in summary.markdown(write(tmp_path / "study.csv", first_seed=10))


def test_larger_studies_have_tables_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "ED", ARMS["FD"])
    text = summary.markdown(write(write(tmp_path / "study.csv"), study="finetune", regime=""))
    assert text.index("**clean**, screening") < text.index("**finetune**, PrivateTest")
    larger = text.partition("**finetune**")[2]
    assert "| FD |" in larger
    assert "| ED |" not in larger  # no arm of that study


def test_nothing_is_shown_on_the_test_split_before_an_arms_last_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(write(tmp_path / "study.csv"), first_seed=10)
    monkeypatch.setattr(summary, "CONFIRMATION", range(10, 14))
    assert "PrivateTest" not in summary.markdown(file)
    assert summary.short_table(file) == ""


def test_a_page_without_marks_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine\n")
    monkeypatch.setattr(summary, "ROWS", write(tmp_path / "study.csv"))
    monkeypatch.setattr(summary, "PAGE", page)
    assert summary.main([]) == 2
    assert f"{page}: expected the lines {summary.BEGIN}" in capsys.readouterr().err
    assert page.read_text() == "mine\n"
