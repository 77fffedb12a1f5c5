"""The study's pictures from made-up rows and from a small run."""

import csv
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from train.ablation import rows
from train.ablation.pictures import main, mean_interval
from train.ablation.summary import in_study_order


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.csv"
    with path.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows.COLUMNS)
        writer.writeheader()
        for study, regime, arm, values in (
            ("small", "clean", "paper", (0.4, 0.5)),
            ("small", "clean", "CE", (0.5, 0.6, 0.7)),
            ("regimes", "30 % n", "CE", (0,)),
            ("finetune", "", "CE", (0.8,)),
            ("resnet18", "", "CE", (0.9,)),
        ):
            for seed, value in enumerate(values):
                about = {"study": study, "regime": regime, "arm": arm, "seed": seed}
                writer.writerow(about | {f"validation_{name}": value for name in rows.METRICS})
    return path


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """What is drawn, by file name."""
    figure_of_file: dict[str, Figure] = {}
    save = Figure.savefig

    def savefig(self: Figure, path: Path) -> None:
        figure_of_file[path.name] = self
        save(self, path)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figure_of_file


def test_arms_from_rows(file: Path, tmp_path: Path, figures: dict[str, Figure]) -> None:
    assert main(["--rows", str(file), "--out", str(tmp_path / "out")]) == 0
    assert set(figures) == {f"study-{name}.png" for name in ("clean", "30-n", "finetune", "resnet18")}
    accuracy, *_ = figures["study-clean.png"].axes
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["CE", "paper"]
    centres = [bar.lines[0].get_xdata()[0] for bar in accuracy.containers]
    assert centres == pytest.approx([60, 45])
    low, high = stats.t.interval(0.95, 2, loc=60, scale=stats.sem([50, 60, 70]))
    segment = accuracy.containers[0].lines[2][0].get_segments()[0]
    assert segment[:, 0] == pytest.approx([low, high])
    assert mean_interval([3.0, 5.0]) == (4.0, 0.0)
    with Image.open(tmp_path / "out/study-clean.png") as image:
        assert image.width > 500


def test_runs_beside_each_other(finished_run: Path, tmp_path: Path, figures: dict[str, Figure]) -> None:
    runs = [f"CE={finished_run}", f"paper={finished_run}"]
    assert main([*runs, "--rows", str(tmp_path / "none.csv"), "--out", str(tmp_path)]) == 0
    assert {"study-correlations.png", "study-curves.png", "study-tsne.png"} <= set(figures)
    curves = figures["study-curves.png"].axes
    assert [axes.get_title() for axes in curves] == ["Cross-entropy", "Terms", "", ""]
    assert [len(axes.lines) for axes in curves] == [1, 3, 1, 3]
    assert [axes.get_title() for axes in figures["study-tsne.png"].axes] == ["CE", "paper"]
    assert [axes.get_title() for axes in figures["study-correlations.png"].axes][:2] == ["CE", "Paper"]


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = ["--rows", str(tmp_path / "none.csv"), "--out", str(tmp_path / "out")]
    assert main(nothing) == 2
    assert "has no rows, and no run is named" in capsys.readouterr().err
    assert main(["runs/first", *nothing]) == 2
    assert "runs/first: expected NAME=FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_studies_order() -> None:
    assert in_study_order({"zzz", "paper", "CE"}) == ["CE", "paper", "zzz"]
